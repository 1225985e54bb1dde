"""The proxies find the right session by their own short way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy.orm import Session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession, current_session

if TYPE_CHECKING:
    from flask import Flask


class Counting(Session):
    """A session with an attribute that fails, and counts how often it is read."""

    reads = 0

    @property
    def failing(self) -> str:
        self.reads += 1
        raise KeyError("failing")


def test_each_proxy_finds_its_own_session_whichever_was_made_first(app: Flask) -> None:
    default = FlaskScopedSession(sessionmaker(), app)
    other = FlaskScopedSession(sessionmaker(), app, name="other")
    with app.app_context():
        other().info["name"] = "other"
        assert current_session.info == default.proxy.info == {}
        default().info["name"] = "default"
        assert current_session.info == default.proxy.info == {"name": "default"}
        assert other.proxy.info == {"name": "other"}


def test_a_proxy_of_a_name_that_is_not_used_yet_makes_its_own_session(
    app: Flask,
) -> None:
    default = FlaskScopedSession(sessionmaker(), app)
    other = FlaskScopedSession(sessionmaker(), app, name="other")
    with app.app_context():
        default().info["name"] = "default"
        assert other.proxy.info == {}
        assert other.registry.has()


def test_an_error_of_an_attribute_is_raised_as_it_is_and_once(app: Flask) -> None:
    session = FlaskScopedSession(Counting, app)
    with app.app_context():
        made = session()
        for number, proxy in enumerate((session.proxy, current_session), start=1):
            with pytest.raises(KeyError, match="failing"):
                getattr(proxy, "failing")  # noqa: B009  # current_session is typed Session
            assert made.reads == number
            assert session() is made


def test_an_error_of_the_factory_is_raised_without_the_lookup_that_came_before(
    app: Flask,
) -> None:
    def refuse() -> Session:
        raise LookupError("no database")

    session = FlaskScopedSession(refuse, app)
    with app.app_context():
        for proxy in (session.proxy, current_session):
            with pytest.raises(LookupError, match="no database") as error:
                _ = proxy.is_active
            assert error.value.__context__ is None
