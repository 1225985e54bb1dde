"""What makes no session is no factory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from flask import Blueprint, Flask
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession as Scoped, SessionFactory
from tests.types.usage import Shop, ShopSession


def needs_an_engine(engine: Engine) -> Session:
    return Session(engine)


def needs_a_keyword(*, engine: Engine) -> Session:
    return Session(engine)


def make_engine() -> Engine:
    return create_engine("sqlite://")


def make_nothing() -> None:
    pass


def make_or_not() -> Session | None:
    return None


def make_later() -> Iterator[Session]:
    yield Session()


def make_sessionmaker() -> sessionmaker[Session]:
    return sessionmaker()


async def make_async() -> Session:
    return Session()  # pragma: no cover  # a call makes only a coroutine


class Unrelated:
    """What has a session's methods and is none."""

    def close(self) -> None:
        pass


@pytest.fixture
def other() -> Iterator[Flask]:
    """Another application, in a context of its own."""
    app = Flask("other")
    with app.app_context():
        yield app


def test_one_with_a_required_parameter(other: Flask) -> None:
    with pytest.raises(TypeError):
        Scoped(needs_an_engine, other)()  # rejected: a required parameter


def test_one_with_a_required_keyword(other: Flask) -> None:
    with pytest.raises(TypeError):
        Scoped(needs_a_keyword, other)()  # rejected: a required parameter


def test_a_partial_that_leaves_a_parameter(other: Flask) -> None:
    with pytest.raises(TypeError):
        Scoped(partial(needs_an_engine), other)()  # rejected: a required parameter


def test_a_lambda_with_a_parameter(other: Flask) -> None:
    with pytest.raises(TypeError):
        Scoped(lambda engine: Session(bind=engine), other)()  # rejected: parameter


def test_an_unbound_method(other: Flask) -> None:
    with pytest.raises(TypeError):
        Scoped(Shop.make, other)()  # rejected: `self` is a required parameter


def test_one_that_returns_an_engine(other: Flask) -> None:
    with pytest.raises(TypeError, match=r"must return a sqlalchemy.orm.Session"):
        Scoped(make_engine, other)()  # rejected: returns no Session


def test_one_that_returns_nothing(other: Flask) -> None:
    with pytest.raises(TypeError, match="returned None"):
        Scoped(make_nothing, other)()  # rejected: returns no Session


def test_one_that_may_return_nothing(other: Flask) -> None:
    with pytest.raises(TypeError, match="returned None"):
        Scoped(make_or_not, other)()  # rejected: may return no Session


def test_a_lambda_that_returns_a_string(other: Flask) -> None:
    with pytest.raises(TypeError, match="returned 'session'"):
        Scoped(lambda: "session", other)()  # rejected: returns no Session


def test_a_generator(other: Flask) -> None:
    with pytest.raises(TypeError, match="returned <generator"):
        Scoped(make_later, other)()  # rejected: returns an iterator


def test_one_that_returns_a_sessionmaker(other: Flask) -> None:
    with pytest.raises(TypeError, match="returned sessionmaker"):
        Scoped(make_sessionmaker, other)()  # rejected: returns a factory


def test_another_class(other: Flask) -> None:
    with pytest.raises(TypeError, match="returned <"):
        Scoped(Unrelated, other)()  # rejected: makes no Session


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_coroutine_function(other: Flask) -> None:
    with pytest.raises(TypeError, match="returned <coroutine"):
        Scoped(make_async, other)()  # rejected: returns a coroutine


def test_an_async_sessionmaker(other: Flask) -> None:
    with pytest.raises(TypeError, match="AsyncSession"):
        Scoped(async_sessionmaker(), other)()  # rejected: makes an AsyncSession


def test_the_async_session_class(other: Flask) -> None:
    with pytest.raises(TypeError, match="AsyncSession"):
        Scoped(AsyncSession, other)()  # rejected: makes an AsyncSession


def test_an_engine(engine: Engine) -> None:
    with pytest.raises(TypeError, match="not callable"):
        Scoped(engine)  # rejected: an Engine


def test_a_session() -> None:
    with pytest.raises(TypeError, match="not callable"):
        Scoped(Session())  # rejected: a Session


def test_a_string() -> None:
    with pytest.raises(TypeError, match="not callable"):
        Scoped("sqlite://")  # rejected: a URL


def test_none() -> None:
    with pytest.raises(TypeError, match="not callable"):
        Scoped(None)  # rejected: nothing


def test_no_factory() -> None:
    with pytest.raises(TypeError):
        Scoped()  # rejected: no factory


def test_a_string_for_an_application() -> None:
    with pytest.raises(AttributeError):
        Scoped(Session, "shop")  # rejected: no Flask application


def test_a_blueprint_for_an_application() -> None:
    with pytest.raises(AttributeError):
        Scoped(Session).init_app(Blueprint("a", "a"))  # rejected: a Blueprint


def test_none_for_an_application() -> None:
    with pytest.raises(AttributeError):
        Scoped(Session).init_app(None)  # rejected: no application


def test_a_name_without_its_keyword(app: Flask) -> None:
    with pytest.raises(TypeError):
        Scoped(Session, app, "other")  # rejected: `name` is a keyword


def test_a_misspelt_keyword(app: Flask) -> None:
    with pytest.raises(TypeError):
        Scoped(Session, app, bind_key="other")  # rejected: no such keyword


def test_a_factory_of_sessions_is_none_of_a_subclass() -> None:
    plain: SessionFactory[Session] = sessionmaker()
    shop: SessionFactory[ShopSession] = plain  # rejected: makes plain sessions
    assert not isinstance(shop(), ShopSession)


def test_a_type_that_is_no_session() -> None:
    def use(session: Scoped[Engine]) -> None:  # rejected: not a Session
        pass

    assert callable(use)
