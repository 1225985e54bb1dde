"""The model of the scope, with async sessions on the loop that all views share."""

from __future__ import annotations

import asyncio
from contextvars import Context
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, TypeVar

from hypothesis import settings
from sqlalchemy import AsyncAdaptedQueuePool, text
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from flask_sqlalchemy_session.asyncio import (
    FlaskAsyncScopedSession,
    use_one_event_loop,
)
from tests.async_support import run, running_loop, settle
from tests.scope import test_model
from tests.scope.flask_versions import before_flask_3_2
from tests.scope.test_model import Faulty, Line, Planned, Scoped, Scopes, run_elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flask import Flask
    from sqlalchemy import Engine

T = TypeVar("T")


class FaultyAsyncSession(AsyncSession):
    """A session whose close fails, before or after it has done its work, if told."""

    fault: str | None = None

    async def close(self) -> None:
        if self.fault == "before":
            raise Planned
        await super().close()
        if self.fault == "after":
            raise Planned


class FaultyAsyncScopedSession(FlaskAsyncScopedSession[FaultyAsyncSession]):
    """A scoped session whose `remove` fails for the sessions that are told so."""

    async def remove(self) -> None:
        if self.registry.has() and self().fault == "remove":
            raise Planned
        await super().remove()


class LoopLine(Line):
    """A line on the event loop itself, where nothing can wait for a session's end."""

    def run(self, action: Callable[[], T]) -> T:
        return run_elsewhere(action, self.run_on_loop)

    def run_on_loop(self, action: Callable[[], None]) -> None:
        ended = Event()
        loop = run(running_loop)
        loop.call_soon_threadsafe(action, context=self.variables)
        loop.call_soon_threadsafe(ended.set)
        ended.wait()


class AsyncScopes(Scopes):
    extension = "sqlalchemy_async_session"

    def __init__(self) -> None:
        super().__init__()
        self.lines.append(LoopLine(Context()))

    def make_app(self, numbers: list[int]) -> Flask:
        app = super().make_app(numbers)
        use_one_event_loop(app)
        return app

    def make_engine(self) -> Engine:
        self.async_engine = create_async_engine(
            "sqlite+aiosqlite://", poolclass=AsyncAdaptedQueuePool, pool_size=100
        )
        return self.async_engine.sync_engine

    def make_objects(self, names: list[str]) -> Sequence[Scoped[Faulty]]:
        factory = async_sessionmaker(self.async_engine, class_=FaultyAsyncSession)
        self.async_scoped = [
            FaultyAsyncScopedSession(factory, name=name) for name in names
        ]
        return self.async_scoped

    def execute(self, number: int) -> None:
        session = self.async_scoped[number]
        if is_on_the_loop():  # a hook, which nothing can await there
            session()
        else:
            self.apps[0].ensure_sync(session.execute)(text("SELECT 1"))

    def execute_in(self, line: Line, number: int) -> None:
        # Never on the loop's own thread, which would wait for itself.
        Line.run(line, partial(self.execute, number))

    def remove_in(self, line: Line, number: int) -> None:
        Line.run(line, self.apps[0].ensure_sync(self.async_scoped[number].remove))

    def raises_what_closing_raises(self, line: Line) -> bool:
        return not isinstance(line, LoopLine)

    def settle(self) -> None:
        run(settle)

    def dispose(self) -> None:
        run(self.async_engine.dispose)


def is_on_the_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


TestAsyncScopes = before_flask_3_2("what is pushed above another again is not current")(
    AsyncScopes.TestCase
)
TestAsyncScopes.settings = settings(
    test_model.TestScopes.settings,
    max_examples=max(10, test_model.TestScopes.settings.max_examples // 4),
)
