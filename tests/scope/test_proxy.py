"""`current_session` and `session.proxy` stand for the real session."""

from __future__ import annotations

import pydoc
from typing import TYPE_CHECKING

import pytest
from flask import Flask
from sqlalchemy import inspect, select
from sqlalchemy.orm import Query, Session, object_session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.support import User

if TYPE_CHECKING:
    from sqlalchemy import Engine


@pytest.fixture
def engine(memory: Engine) -> Engine:
    return memory


@pytest.fixture(params=["current_session", "session.proxy"])
def proxy(
    request: pytest.FixtureRequest, session: FlaskScopedSession[Session]
) -> Session:
    """Each of the two proxies to the default session."""
    return current_session if request.param == "current_session" else session.proxy


def test_a_proxy_is_the_session(
    app: Flask, session: FlaskScopedSession[Session], proxy: Session
) -> None:
    with app.app_context():
        assert isinstance(proxy, Session)
        assert proxy == session()
        assert session() == proxy
        assert hash(proxy) == hash(session())
        assert bool(proxy)
        assert repr(proxy) == repr(session())
        assert set(dir(Session)) <= set(dir(proxy))
    with app.app_context():
        assert proxy == session()


def test_a_proxy_begins_and_tells_of_its_transaction(
    app: Flask, proxy: Session, engine: Engine
) -> None:
    with app.app_context():
        with proxy.begin():
            assert proxy.in_transaction()
            proxy.add(User(name="ann"))
        assert not proxy.in_transaction()
        with proxy as entered:
            assert entered == proxy
            assert entered.scalars(select(User.name)).one() == "ann"


def test_an_objects_session_is_the_proxied_one(app: Flask, proxy: Session) -> None:
    with app.app_context():
        user = User(name="ann")
        proxy.add(user)
        assert user in proxy
        assert list(proxy) == [user]
        assert proxy == object_session(user)
        assert object_session(user) == proxy
        assert inspect(user).session is object_session(user)


def test_a_query_can_be_given_the_proxy(app: Flask, proxy: Session) -> None:
    with app.app_context(), proxy.begin():
        proxy.add(User(name="ann"))
        query = Query[User](User).with_session(proxy)
        assert [user.name for user in query] == ["ann"]


def test_a_write_reaches_the_session_and_no_other(app: Flask, proxy: Session) -> None:
    with app.app_context():
        proxy.autoflush = False
        assert not current_session.autoflush
    with app.app_context():
        assert proxy.autoflush


def test_a_proxy_is_of_the_current_app(app: Flask, engine: Engine) -> None:
    other = Flask("other")
    first = FlaskScopedSession(sessionmaker(engine), app)
    second = FlaskScopedSession(sessionmaker(engine), other)
    with app.app_context():
        assert current_session == first() == first.proxy
        with other.app_context():
            assert current_session == second() == second.proxy
            with pytest.raises(RuntimeError, match="has another session"):
                _ = first.proxy.info


def test_a_proxy_of_another_name_is_of_that_session(app: Flask, engine: Engine) -> None:
    class Reports(Session):
        def title(self) -> str:
            return "report"

    session = FlaskScopedSession(sessionmaker(engine), app)
    reports = FlaskScopedSession(sessionmaker(class_=Reports), app, name="reports")
    with app.app_context():
        assert reports.proxy == reports()
        assert isinstance(reports.proxy, Reports)
        assert reports.proxy.title() == "report"
        assert reports.proxy != session.proxy


def test_a_proxy_outside_a_context_can_be_looked_at(proxy: Session) -> None:
    assert bool(proxy) is False
    assert "unbound" in repr(proxy)
    assert "execute" in dir(proxy)
    assert proxy.__doc__
    assert "outside an" in pydoc.render_doc(proxy)
    assert not hasattr(proxy, "execute")


def test_a_proxy_in_an_app_that_was_not_set_up_can_be_looked_at(
    proxy: Session,
) -> None:
    with Flask("bare").app_context():
        assert bool(proxy) is False
        assert "unbound" in repr(proxy)
        assert "execute" in dir(proxy)
        assert not hasattr(proxy, "execute")
        with pytest.raises(AttributeError, match="'bare' has no session"):
            _ = proxy.info
