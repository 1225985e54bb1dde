"""A listener that uses the async session while it is closed comes to an end."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from flask import Flask
from sqlalchemy import event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from flask_sqlalchemy_session.asyncio import (
    FlaskAsyncScopedSession,
    current_async_session,
    use_one_event_loop,
)
from tests.async_support import run, settle
from tests.support import Held, use

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("no_collector")

SELECT_1 = text("SELECT 1")


@pytest.fixture
def made() -> list[AsyncSession]:
    """Every session that the application's factory made."""
    return []


@pytest.fixture
def app(async_engine: AsyncEngine, made: list[AsyncSession]) -> Flask:
    app = Flask("shop")
    use_one_event_loop(app)

    def factory() -> AsyncSession:
        made.append(async_sessionmaker(async_engine)())
        return made[-1]

    FlaskAsyncScopedSession(factory, app)
    return app


@pytest.fixture
def held(async_engine: AsyncEngine) -> Held:
    return Held(async_engine.sync_engine)


TARGETS: dict[str, Callable[[AsyncEngine], object]] = {
    "after_transaction_end": lambda _: Session,
    "rollback": lambda engine: engine.sync_engine,
}


@pytest.fixture(params=TARGETS)
def listening(
    request: pytest.FixtureRequest, async_engine: AsyncEngine
) -> Iterator[list[str]]:
    """Use the session whenever the event comes, as an audit trail may."""
    target = TARGETS[request.param](async_engine)
    on: list[str] = []

    def listen(*_: object) -> None:
        if on:
            current_async_session.sync_session.execute(SELECT_1)

    event.listen(target, request.param, listen)
    yield on
    on.clear()
    event.remove(target, request.param, listen)


@pytest.mark.parametrize("end", ["teardown", "remove", "on the loop"])
def test_a_listener_that_uses_the_session_at_its_end_is_bounded(
    end: str, app: Flask, made: list[AsyncSession], listening: list[str], held: Held
) -> None:
    async def use_and_listen() -> None:
        await current_async_session.run_sync(use)
        listening.append("on")
        if end == "remove":
            session = app.extensions["sqlalchemy_async_session"]["default"]
            try:
                await session.remove()
            finally:
                listening.clear()

    async def use_in_a_context_of_its_own() -> None:
        with app.app_context():
            await use_and_listen()

    # It may be told, by the `ScopeError`, and need not.
    with suppress(RuntimeError):
        if end == "on the loop":
            run(use_in_a_context_of_its_own)
        else:
            with app.app_context():
                app.ensure_sync(use_and_listen)()
    run(settle)
    listening.clear()
    assert len(made) <= 30
    assert held.count == 0
    assert not any(session.in_transaction() for session in made)


def test_a_listener_that_uses_its_own_session_at_its_end_is_bounded(
    app: Flask, made: list[AsyncSession], held: Held
) -> None:
    calls: list[Session] = []

    def listen(session: Session, _: object) -> None:
        calls.append(session)
        session.execute(SELECT_1)

    async def use_and_listen() -> None:
        await current_async_session.run_sync(use)
        event.listen(
            current_async_session.sync_session, "after_transaction_end", listen
        )

    with suppress(SQLAlchemyError), app.app_context():
        app.ensure_sync(use_and_listen)()
    assert len(calls) <= 200
    assert held.count == 0
    assert not any(session.in_transaction() for session in made)
