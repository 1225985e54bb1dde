"""`isolate`: what it takes, and what it leaves of a function that it decorates."""

from __future__ import annotations

from flask import Flask
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import sessionmaker
from typing_extensions import assert_type

from flask_sqlalchemy_session import FlaskScopedSession
from flask_sqlalchemy_session.asyncio import (
    FlaskAsyncScopedSession,
    use_one_event_loop,
)
from flask_sqlalchemy_session.testing import (
    Isolatable,
    Isolation,
    IsolationError,
    isolate,
)
from tests.types.usage import ShopSession, check

Shop = FlaskScopedSession[ShopSession]


def test_it_takes_scoped_sessions_of_every_sort(session: Shop, app: Flask) -> None:
    plain = FlaskScopedSession(sessionmaker(), app, name="plain")
    async_session = FlaskAsyncScopedSession(async_sessionmaker(), app)
    check(assert_type(isolate(session), Isolation), Isolation)
    check(assert_type(isolate(session, plain), Isolation), Isolation)
    check(assert_type(isolate(async_session, session), Isolation), Isolation)


def test_it_takes_engines_after_them(session: Shop, engine: Engine) -> None:
    check(assert_type(isolate(session, engine), Isolation), Isolation)


def takes_any(session: Isolatable) -> Isolation:
    return isolate(session)


def test_a_helper_can_take_what_it_takes(session: Shop) -> None:
    check(assert_type(takes_any(session), Isolation), Isolation)


def test_it_is_a_context_manager(session: Shop) -> None:
    none = type(None)
    with isolate(session) as entered:
        check(assert_type(entered, None), none)
    reached = False
    with isolate(session):
        reached = True
    assert reached  # a checker that took errors to be swallowed would complain


def test_it_is_an_async_context_manager(app: Flask) -> None:
    use_one_event_loop(app)
    session = FlaskAsyncScopedSession(async_sessionmaker(), app)

    async def use() -> None:
        async with isolate(session) as entered:
            check(assert_type(entered, None), type(None))

    app.ensure_sync(use)()


def test_a_decorated_function_keeps_its_type(session: Shop) -> None:
    @isolate(session)
    def count(name: str, *, times: int = 1) -> int:
        return len(name) * times

    check(assert_type(count("ann"), int), int)
    check(assert_type(count("ann", times=2), int), int)


def test_its_error_is_a_runtime_error() -> None:
    error: RuntimeError = IsolationError()
    check(error, IsolationError)
