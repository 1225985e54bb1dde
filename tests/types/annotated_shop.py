"""A small application whose annotations beartype and typeguard are to hold it to.

`tests/types/test_run_time.py` imports it by their import hooks. The names that are
annotated are imported for real, as a tool that looks them up needs it.
"""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from flask_sqlalchemy_session import (
    FlaskScopedSession,
    SessionFactory,
    current_session,
)
from flask_sqlalchemy_session.asyncio import (
    AsyncSessionFactory,
    FlaskAsyncScopedSession,
    current_async_session,
)
from flask_sqlalchemy_session.testing import Isolatable
from tests.support import User

S = TypeVar("S", bound=Session)


class ShopSession(Session):
    def count_users(self) -> int:
        return self.query(User).count()


class AsyncShopSession(AsyncSession):
    """What is told from a plain one by its class alone."""


maker: sessionmaker[ShopSession] = sessionmaker(class_=ShopSession)
session: FlaskScopedSession[ShopSession] = FlaskScopedSession(maker)
shop: ShopSession = session.proxy
async_session: FlaskAsyncScopedSession[AsyncShopSession] = FlaskAsyncScopedSession(
    async_sessionmaker(class_=AsyncShopSession)
)
async_shop: AsyncShopSession = async_session.proxy


class Users:
    """A repository, which keeps the session of every context."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def named(self, name: str) -> User | None:
        return self.session.query(User).filter_by(name=name).one_or_none()


def set_up(
    factory: SessionFactory[ShopSession], engine: Engine | None = None
) -> FlaskScopedSession[ShopSession]:
    if isinstance(factory, sessionmaker):
        factory.configure(bind=engine)
    return FlaskScopedSession(factory)


def set_up_async(factory: AsyncSessionFactory[AsyncShopSession]) -> Isolatable:
    return FlaskAsyncScopedSession(factory)


def name_of(session: Isolatable) -> str:
    return session.name


def get_proxy(session: FlaskScopedSession[S]) -> S:
    return session.proxy


def take_session(session: Session) -> Session:
    return session


def take_shop_session(session: ShopSession) -> ShopSession:
    return session


def take_async_session(session: AsyncSession) -> AsyncSession:
    return session


def take_async_shop_session(session: AsyncShopSession) -> AsyncShopSession:
    return session


def use_without_a_context() -> None:
    """Pass everything that is there before there is a context."""
    take_session(current_session)
    take_session(shop)
    take_shop_session(shop)
    take_shop_session(get_proxy(session))
    take_async_session(current_async_session)
    take_async_session(async_shop)
    take_async_shop_session(async_shop)
    Users(current_session)
    Users(shop)
    set_up(ShopSession)
    set_up(lambda: ShopSession())  # noqa: PLW0108  # a lambda is what is passed
    set_up_async(AsyncShopSession)
    name_of(session)
    name_of(async_session)


def use_in_a_context() -> int:
    """Pass what a context has, and use it."""
    use_without_a_context()
    user: User | None = Users(current_session).named("ann")
    assert user is Users(shop).named("ann")
    assert take_session(session()) is session()
    return take_shop_session(shop).count_users()
