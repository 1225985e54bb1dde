"""A listener that uses the session while it is closed comes to an end."""

from __future__ import annotations

import contextvars
import gc
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from flask import has_app_context
from sqlalchemy import event, select, text
from sqlalchemy.exc import InvalidRequestError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.support import Held, User, default_session, many_connections, raises, use

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flask import Flask
    from sqlalchemy import Engine

pytestmark = pytest.mark.usefixtures("no_collector")


@pytest.fixture
def made(app: Flask, engine: Engine) -> list[Session]:
    """Every session that the application's factory made."""
    made: list[Session] = []

    def factory() -> Session:
        made.append(sessionmaker(engine)())
        return made[-1]

    FlaskScopedSession(factory, app)
    return made


LISTENERS: dict[str, Callable[[Engine], tuple[object, str]]] = {
    "after_transaction_end": lambda _: (Session, "after_transaction_end"),
    "rollback": lambda engine: (engine, "rollback"),
    "reset": lambda engine: (engine.pool, "reset"),
}


@pytest.fixture(params=LISTENERS)
def listening(request: pytest.FixtureRequest, engine: Engine) -> Iterator[list[str]]:
    """Use the session whenever the event comes, as an audit trail may."""
    target, name = LISTENERS[request.param](engine)
    on: list[str] = []

    def listen(*_: object) -> None:
        if on:
            current_session.execute(text("SELECT 1"))

    event.listen(target, name, listen)
    yield on
    on.clear()
    event.remove(target, name, listen)


@many_connections
def test_a_listener_that_uses_the_session_at_its_end_is_bounded(
    app: Flask, made: list[Session], listening: list[str], held: Held
) -> None:
    # It may be told, by the `ScopeError`, and need not: a pool logs what is raised.
    with suppress(RuntimeError), app.app_context():
        use(default_session())
        listening.append("on")
    listening.clear()
    assert len(made) <= 30
    assert held.count == 0
    assert not any(session.in_transaction() for session in made)
    with app.app_context():
        assert "mark" not in current_session.info
        current_session.execute(text("SELECT 1"))
    assert held.count == 0


@pytest.mark.parametrize("times", [9, 10])
def test_a_listener_may_use_the_session_ten_times_at_its_end(
    times: int, app: Flask, made: list[Session], held: Held
) -> None:
    def listen(*_: object) -> None:
        if len(made) <= times:
            current_session.connection()

    event.listen(Session, "after_transaction_end", listen)
    try:
        with app.app_context():
            current_session.connection()
    finally:
        event.remove(Session, "after_transaction_end", listen)
    assert len(made) == times + 1
    assert held.count == 0
    assert not any(session.in_transaction() for session in made)


@pytest.mark.parametrize("by_hand", [None, "close", "remove"])
@many_connections
def test_a_listener_of_a_pools_checkin_that_uses_the_session_takes_no_place_in_it(
    by_hand: str | None, app: Flask, made: list[Session], engine: Engine, held: Held
) -> None:
    # SQLAlchemy loses the place of a connection whose listener of "checkin" raises.
    def listen(*_: object) -> None:
        if has_app_context():  # and not when the fixture disposes of the engine
            current_session.execute(text("SELECT 1"))

    event.listen(engine.pool, "checkin", listen)
    for count in range(1, 4):
        with app.app_context():
            use(default_session())
            if by_hand is not None:
                getattr(current_session, by_hand)()
        assert len(made) <= 30 * count
        assert held.count == 0
        assert not any(session.in_transaction() for session in made)


def test_a_listener_of_checkin_that_uses_the_session_keeps_a_database_in_memory(
    app: Flask, memory: Engine
) -> None:
    # Its one connection takes no place in a pool, and has all the rows.
    FlaskScopedSession(sessionmaker(memory), app)
    calls: list[object] = []

    def listen(*called: object) -> None:
        calls.append(called)
        if len(calls) <= 10:  # as often as it is given one
            current_session.execute(text("SELECT 1"))

    with app.app_context():
        current_session.add(User(name="kept"))
        current_session.commit()
        event.listen(memory.pool, "checkin", listen)
        current_session.execute(text("SELECT 1"))
    assert len(calls) == 11
    with app.app_context():
        assert current_session.scalars(select(User.name)).all() == ["kept"]


@many_connections
def test_a_listener_that_uses_its_own_session_at_its_end_is_bounded(
    app: Flask, made: list[Session], held: Held
) -> None:
    calls: list[Session] = []

    def listen(session: Session, _: object) -> None:
        calls.append(session)
        session.execute(text("SELECT 1"))

    with suppress(SQLAlchemyError), app.app_context():
        use(default_session())
        event.listen(default_session(), "after_transaction_end", listen)
    assert len(calls) <= 200
    assert held.count == 0
    assert not any(session.in_transaction() for session in made)


@pytest.mark.parametrize("times", [10, 11])
def test_a_listener_may_use_its_own_session_ten_times_at_its_end(
    times: int, app: Flask, made: list[Session], held: Held
) -> None:
    calls: list[Session] = []

    def listen(session: Session, _: object) -> None:
        calls.append(session)
        if len(calls) <= times:
            session.connection()

    def use_and_listen() -> None:
        with app.app_context():
            use(default_session())
            event.listen(default_session(), "after_transaction_end", listen)

    if times == 10:
        use_and_listen()
    else:
        with raises(InvalidRequestError, match="Autobegin is disabled"):
            use_and_listen()
    assert held.count == 0
    assert not any(session.in_transaction() for session in made)


@many_connections
def test_a_listener_that_uses_the_session_when_it_is_removed_is_bounded(
    app: Flask,
    made: list[Session],
    listening: list[str],
    held: Held,
) -> None:
    session: FlaskScopedSession[Session] = app.extensions["sqlalchemy_session"][
        "default"
    ]
    with suppress(RuntimeError), app.app_context():
        use(session())
        listening.append("on")
        try:
            session.remove()
        finally:
            listening.clear()
    assert len(made) <= 30
    assert held.count == 0
    assert not any(session.in_transaction() for session in made)


def begin_under_two_thousand_names(app: Flask, engine: Engine) -> list[Session]:
    names = [f"name {number}" for number in range(2000)]
    used = [
        FlaskScopedSession(sessionmaker(engine), app, name=name)() for name in names
    ]
    for session in used:
        session.begin()
    return used


def test_two_thousand_names_in_one_context_are_released(
    app: Flask, memory: Engine
) -> None:
    with app.app_context():
        used = begin_under_two_thousand_names(app, memory)
    assert not any(session.in_transaction() for session in used)


@pytest.mark.filterwarnings("ignore:A session:ResourceWarning")
def test_two_thousand_names_are_released_by_the_safety_net_too(
    app: Flask, memory: Engine
) -> None:
    used: list[Session] = []

    def forget() -> None:
        app.app_context().push()
        used.extend(begin_under_two_thousand_names(app, memory))

    contextvars.Context().run(forget)
    gc.collect()  # the context is in a cycle with the tokens that it keeps
    assert not any(session.in_transaction() for session in used)
