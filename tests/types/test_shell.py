"""`help()`, `dir()` and `repr()` tell of a session in a shell, context or none."""

from __future__ import annotations

import pydoc
from typing import TYPE_CHECKING

import pytest
from flask import Flask
from sqlalchemy import select
from sqlalchemy.orm import Session

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.support import User

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMBERS = {name for name in dir(Session) if not name.startswith("_")}


class ShopSession(Session):
    """Sessions of the shop."""

    def count_users(self) -> int:
        return len(self.scalars(select(User)).all())


@pytest.fixture
def app() -> Flask:
    return Flask("shop")


@pytest.fixture
def session(app: Flask) -> FlaskScopedSession[ShopSession]:
    return FlaskScopedSession(ShopSession, app)


@pytest.fixture(params=["no context", "a context", "a context that is not set up"])
def context(app: Flask, request: pytest.FixtureRequest) -> Iterator[None]:
    """Where the shell is."""
    match request.param:
        case "no context":
            yield
        case "a context":
            with app.app_context():
                yield
        case _:
            with Flask("bare").app_context():
                yield


def render_help(thing: object) -> str:
    return pydoc.plain(pydoc.render_doc(thing))


@pytest.mark.usefixtures("context")
def test_dir_names_what_a_session_has(session: FlaskScopedSession[ShopSession]) -> None:
    assert set(dir(current_session)) >= MEMBERS
    assert set(dir(session.proxy)) >= MEMBERS
    forwarded = MEMBERS - {"connection_callable", "dispatch"}  # SQLAlchemy's own use
    assert set(dir(session)) >= {*forwarded, "proxy", "init_app"}


def test_dir_names_what_a_session_of_a_subclass_has_in_a_context(
    app: Flask, session: FlaskScopedSession[ShopSession]
) -> None:
    with app.app_context():
        assert "count_users" in dir(current_session)
        assert "count_users" in dir(session.proxy)


@pytest.mark.usefixtures("context")
def test_help_says_what_a_proxy_stands_for(
    session: FlaskScopedSession[ShopSession],
) -> None:
    for proxy in (current_session, session.proxy):
        text = render_help(proxy)
        assert "Stands for the session" in text
        assert "help(Session)" in text


@pytest.mark.usefixtures("context")
def test_help_describes_a_scoped_session(
    session: FlaskScopedSession[ShopSession],
) -> None:
    text = render_help(session)
    assert "One session for each application context." in text
    assert "init_app(self, app" in text


@pytest.mark.usefixtures("context")
def test_help_on_a_scoped_session_makes_no_session(
    session: FlaskScopedSession[ShopSession],
) -> None:
    render_help(session)
    assert not session.registry.has()


def test_repr_shows_the_session_in_a_context(
    app: Flask, session: FlaskScopedSession[ShopSession]
) -> None:
    with app.app_context():
        assert repr(current_session) == repr(session.proxy) == repr(session())


def test_repr_says_that_there_is_no_session(
    session: FlaskScopedSession[ShopSession],
) -> None:
    assert repr(current_session) == "<CurrentSession unbound>"
    assert repr(session.proxy) == "<SessionProxy unbound>"
    with Flask("bare").app_context():
        assert repr(current_session) == "<CurrentSession unbound>"
        assert repr(session.proxy) == "<SessionProxy unbound>"


@pytest.mark.usefixtures("context")
def test_repr_of_a_scoped_session_names_its_class(
    session: FlaskScopedSession[ShopSession],
) -> None:
    assert "FlaskScopedSession" in repr(session)
