"""What the README says of other ways: the faults that this library exists for."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest
from flask import g
from sqlalchemy import StaticPool, create_engine, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flask import Flask

FLASK = tuple(int(part) for part in version("flask").split(".")[:2])


@pytest.fixture
def factory() -> Iterator[sessionmaker[Session]]:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    yield sessionmaker(engine)
    engine.dispose()


def removing(session: scoped_session[Session]) -> Callable[[object], None]:
    def remove(error: object) -> None:
        session.remove()

    return remove


def raise_error(error: object) -> None:
    raise LookupError


def test_a_thread_scope_is_shared_by_nested_contexts(
    app: Flask, factory: sessionmaker[Session]
) -> None:
    session = scoped_session(factory)
    with app.app_context():
        outer = session()
        with app.app_context():
            assert session() is outer
    session.remove()


def test_a_thread_scope_is_handed_on_when_nothing_removed_it(
    app: Flask, factory: sessionmaker[Session]
) -> None:
    session = scoped_session(factory)
    with app.app_context():
        session.info["whose"] = "the first request's"
    with app.app_context():
        assert session.info["whose"] == "the first request's"
    session.remove()


def test_a_teardown_function_is_skipped_when_another_raises_first(
    app: Flask, factory: sessionmaker[Session]
) -> None:
    session = scoped_session(factory)
    app.teardown_appcontext(removing(session))
    app.teardown_appcontext(raise_error)
    with suppress(LookupError), app.app_context():
        session.execute(text("SELECT 1"))
    assert session.registry.has() is (FLASK < (3, 2))
    session.remove()


def test_a_teardown_function_that_runs_later_can_use_the_session_again(
    app: Flask, factory: sessionmaker[Session]
) -> None:
    session = scoped_session(factory)

    @app.teardown_appcontext
    def log(error: object) -> None:
        session.execute(text("SELECT 1"))

    app.teardown_appcontext(removing(session))
    with app.app_context():
        pass
    assert session.registry.has()
    session.remove()


def test_a_number_of_a_context_is_used_again(
    app: Flask, factory: sessionmaker[Session]
) -> None:
    # `g` is made and dropped with its context.
    session = scoped_session(factory, scopefunc=lambda: id(g._get_current_object()))
    found = False
    for _ in range(1000):
        with app.app_context():
            found = found or "whose" in session.info
            session.info["whose"] = "an earlier request's"
    assert found
