"""What makes no async session is no factory, and no name is made up."""

from __future__ import annotations

import pytest
from flask import Flask
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from flask_sqlalchemy_session.asyncio import (
    FlaskAsyncScopedSession as AsyncScoped,
    current_async_session,
    use_one_event_loop,
)


def make_nothing() -> None:
    pass


@pytest.fixture
def other() -> Flask:
    app = Flask("other")
    use_one_event_loop(app)
    return app


def test_a_sync_session_is_none(other: Flask) -> None:
    session = AsyncScoped(Session, other)  # rejected: it is not async
    with other.app_context(), pytest.raises(TypeError, match="async_sessionmaker"):
        session()


def test_a_sync_sessionmaker_is_no_factory(other: Flask) -> None:
    session = AsyncScoped(sessionmaker(), other)  # rejected: its sessions are not async
    with other.app_context(), pytest.raises(TypeError, match="async_sessionmaker"):
        session()


def test_nothing_is_no_session(other: Flask) -> None:
    session = AsyncScoped(make_nothing, other)  # rejected: it returns nothing
    with other.app_context(), pytest.raises(TypeError, match="returned None"):
        session()


def test_none_is_no_factory(other: Flask) -> None:
    with pytest.raises(TypeError, match="not callable"):
        AsyncScoped(None, other)  # rejected: it can't be called


def test_a_misspelt_name_is_none(other: Flask) -> None:
    session = AsyncScoped(async_sessionmaker(), other)
    with other.app_context():
        with pytest.raises(AttributeError, match="exceute"):
            _ = session.exceute  # rejected: it is `execute`
        with pytest.raises(AttributeError, match="exceute"):
            _ = session().exceute  # rejected: it is `execute`
        with pytest.raises(AttributeError, match="exceute"):
            _ = current_async_session.exceute  # rejected: it is `execute`
