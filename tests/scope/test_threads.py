"""Sixteen threads at once, on any build of Python, also one without the GIL."""

from __future__ import annotations

import contextvars
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from flask_sqlalchemy_session.testing import isolate
from tests.support import Held, many_connections

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from flask import Flask
    from sqlalchemy import Engine

T = TypeVar("T")

THREADS = 16
TURNS = 25
SELECT_1 = text("SELECT 1")


@pytest.fixture(autouse=True)
def threads_that_switch_often() -> Iterator[None]:
    """Let a build with the GIL run them by turns as short as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def at_once(function: Callable[[], T]) -> list[T]:
    """Call a function in each thread, all at the same moment."""
    barrier = threading.Barrier(THREADS, timeout=30)

    def run() -> T:
        barrier.wait()
        return function()

    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(run) for _ in range(THREADS)]
        return [future.result() for future in futures]


@many_connections
def test_contexts_of_many_threads_never_share_a_session(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    def work() -> list[Session]:
        seen = []
        for turn in range(TURNS):
            mark = threading.get_ident(), turn
            with app.app_context():
                assert not current_session.info
                current_session.info["mark"] = mark
                current_session.execute(SELECT_1)
                assert session().info == {"mark": mark}
                seen.append(session())
        return seen

    # SQLAlchemy may miss an event of a class whose first session is made by several
    # threads at once, and the check for what is left open goes by events.
    with app.app_context():
        session.execute(SELECT_1)
    seen = [one for each in at_once(work) for one in each]
    assert len(set(map(id, seen))) == THREADS * TURNS
    assert not any(one.in_transaction() for one in seen)
    assert held.count == 0


@many_connections
def test_many_threads_that_race_for_the_first_use_get_one_session(
    app: Flask, engine: Engine, held: Held
) -> None:
    made: list[Session] = []

    def use_in_one_of(
        copies: list[contextvars.Context], session: Callable[[], Session]
    ) -> Session:
        return copies.pop().run(session)

    def factory() -> Session:
        made.append(Session(engine))
        return made[-1]

    session = FlaskScopedSession(factory, app)
    for _ in range(TURNS):
        with app.app_context():
            copies = [contextvars.copy_context() for _ in range(THREADS)]
            got = at_once(partial(use_in_one_of, copies, session))
            assert {id(one) for one in got} == {id(session())}
            session.execute(SELECT_1)
            assert held.count == 1
        assert held.count == 0
    assert not any(one.in_transaction() for one in made)


@many_connections
def test_sessions_that_are_made_while_an_isolation_ends_leave_nothing(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine, held: Held
) -> None:
    ended = threading.Event()

    def work() -> list[Session]:
        seen, turns = [], TURNS
        while turns:
            turns -= ended.is_set()
            with app.app_context():
                seen.append(session())
                session.execute(SELECT_1)
        return seen

    isolation = isolate(session)
    isolation.__enter__()
    with app.app_context():
        session.execute(SELECT_1)
    with ThreadPoolExecutor(1) as pool:
        threads = pool.submit(at_once, work)
        isolation.__exit__(None, None, None)
        ended.set()
        seen = [one for each in threads.result() for one in each]
    assert len(set(map(id, seen))) == len(seen)
    assert held.count == 0
    with app.app_context():  # and it is over
        assert session.connection().engine is engine
        assert held.count == 1
    assert held.count == 0


@pytest.mark.skipif(find_spec("greenlet") is None, reason="async needs greenlet")
def test_the_event_loop_serves_many_threads(app: Flask, tmp_path: Path) -> None:
    from sqlalchemy.ext.asyncio import (  # noqa: PLC0415  # needs greenlet
        AsyncSession,
        async_sessionmaker,
        create_async_engine,
    )

    from flask_sqlalchemy_session.asyncio import (  # noqa: PLC0415  # as above
        FlaskAsyncScopedSession,
        use_one_event_loop,
    )

    use_one_event_loop(app)
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shop.sqlite3")
    session = FlaskAsyncScopedSession(async_sessionmaker(engine), app)
    held = Held(engine.sync_engine)

    async def view() -> AsyncSession:
        assert not session().info
        session().info["mark"] = mark = object()
        await session.execute(SELECT_1)
        assert session().info == {"mark": mark}
        return session()

    def work() -> list[AsyncSession]:
        seen = []
        for _ in range(5):
            with app.app_context():
                seen.append(app.ensure_sync(view)())
        return seen

    seen = [one for each in at_once(work) for one in each]
    assert len(set(map(id, seen))) == THREADS * 5
    assert held.count == 0
    app.ensure_sync(engine.dispose)()
