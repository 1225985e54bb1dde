"""The session type is inferred, and kept, for async sessions too."""

from __future__ import annotations

from functools import partial

from flask import Flask
from sqlalchemy import select
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    AsyncSessionTransaction,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.orm import Session
from typing_extensions import assert_type

from flask_sqlalchemy_session.asyncio import (
    AsyncSessionFactory,
    FlaskAsyncScopedSession,
    current_async_session,
    flask_async_scoped_session,
    use_one_event_loop,
)
from tests.support import User
from tests.types.usage import check


class AsyncShopSession(AsyncSession):
    async def count_users(self) -> int:
        return len((await self.scalars(select(User))).all())


def make() -> AsyncShopSession:
    return AsyncShopSession()


def make_bound(engine: AsyncEngine | None) -> AsyncShopSession:
    return AsyncShopSession(engine)


def takes_factory(factory: AsyncSessionFactory[AsyncSession]) -> AsyncSession:
    return factory()


def takes_scoped(session: async_scoped_session[AsyncShopSession]) -> AsyncSession:
    return session()


def test_the_types_of_factories_are_inferred() -> None:
    app = Flask("async")
    check(assert_type(use_one_event_loop(app), None), type(None))
    session = FlaskAsyncScopedSession(async_sessionmaker(), app)
    shop = FlaskAsyncScopedSession(
        async_sessionmaker(class_=AsyncShopSession), app, name="shop"
    )
    of_class = FlaskAsyncScopedSession(AsyncShopSession, app, name="class")
    of_function = FlaskAsyncScopedSession(make, app, name="function")
    of_lambda = FlaskAsyncScopedSession(lambda: make(), app, name="lambda")  # noqa: PLW0108  # it is what is tested
    bound = partial(make_bound, None)
    of_partial = flask_async_scoped_session(bound, app, name="partial")
    plain: FlaskAsyncScopedSession = session
    with app.app_context():
        check(assert_type(session(), AsyncSession), AsyncSession)
        check(assert_type(plain(), AsyncSession), AsyncSession)
        check(assert_type(shop(), AsyncShopSession), AsyncShopSession)
        check(assert_type(shop.proxy, AsyncShopSession), AsyncShopSession)
        check(assert_type(of_class(), AsyncShopSession), AsyncShopSession)
        check(assert_type(of_function(), AsyncShopSession), AsyncShopSession)
        check(assert_type(of_lambda(), AsyncShopSession), AsyncShopSession)
        check(assert_type(of_partial(), AsyncShopSession), AsyncShopSession)
        check(assert_type(takes_factory(make), AsyncSession), AsyncShopSession)
        check(assert_type(takes_scoped(shop), AsyncSession), AsyncShopSession)
        check(assert_type(shop.name, str), str)


def test_the_types_of_what_is_used_are_exact() -> None:
    app = Flask("async")
    use_one_event_loop(app)
    session = FlaskAsyncScopedSession(async_sessionmaker(), app)

    async def view() -> None:
        check(assert_type(current_async_session, AsyncSession), AsyncSession)
        check(assert_type(session.sync_session, Session), Session)
        check(assert_type(session.in_transaction(), bool), bool)
        check(assert_type(session.in_nested_transaction(), bool), bool)
        none = type(None)
        assert_type(session.get_transaction(), AsyncSessionTransaction | None)
        assert_type(session.get_nested_transaction(), AsyncSessionTransaction | None)
        check(assert_type(await session.run_sync(count_new), int), int)
        async with session as entered:
            check(assert_type(entered, AsyncSession), AsyncSession)
        check(assert_type(await session.remove(), None), none)

    app_context = app.app_context()
    with app_context:
        app.ensure_sync(view)()


def count_new(session: Session) -> int:
    return len(session.new)


async def queries() -> None:
    """Read by checkers alone: tests/asyncio has what needs a database."""
    users = select(User)
    names = select(User.name)
    assert_type(await current_async_session.get(User, 1), User | None)
    assert_type(await current_async_session.get_one(User, 1), User)
    assert_type((await current_async_session.scalars(users)).one(), User)
    assert_type((await current_async_session.scalars(names)).all()[0], str)
    assert_type(await current_async_session.scalar(names), str | None)
    async with current_async_session.begin() as transaction:
        assert_type(transaction, AsyncSessionTransaction)
