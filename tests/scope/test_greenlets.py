"""Promise 1 among greenlets and tasks, which share a thread."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING

import gevent
import pytest
from gevent.event import Event
from sqlalchemy import create_engine, text

from flask_sqlalchemy_session import current_session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flask import Flask
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from flask_sqlalchemy_session import FlaskScopedSession
    from tests.support import Held

MANY = 50


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """An engine with a connection for each of many sessions at a time."""
    engine = create_engine(f"sqlite:///{tmp_path}/test.sqlite3", pool_size=MANY)
    yield engine
    engine.dispose()


def test_greenlets_with_contexts_of_their_own_have_sessions_of_their_own(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    """All of them are inside their contexts at once, on one thread."""
    everyone_is_inside = Event()
    inside: list[Session] = []

    def work() -> bool:
        with app.app_context():
            mine = session()
            mine.execute(text("SELECT 1"))
            inside.append(mine)
            everyone_is_inside.wait()
            return session() is mine and current_session == mine

    workers = [gevent.spawn(work) for _ in range(MANY)]
    while len(inside) < MANY:
        gevent.sleep()
    assert held.count == len({id(one) for one in inside}) == MANY
    everyone_is_inside.set()
    gevent.joinall(workers, raise_error=True)
    assert all(worker.value for worker in workers)
    assert held.count == 0


def test_a_greenlet_starts_outside_the_context_of_the_one_that_spawned_it(
    app: Flask, session: FlaskScopedSession[Session]
) -> None:
    with app.app_context():
        session()
        with pytest.raises(RuntimeError, match="outside an application context"):
            gevent.spawn(session).get()


def test_a_greenlet_that_is_given_the_context_shares_its_session(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    with app.app_context():
        shared = [
            gevent.spawn(partial(copy_context().run, session)) for _ in range(MANY)
        ]
        gevent.joinall(shared, raise_error=True)
        assert {id(one.value) for one in shared} == {id(session())}
        session.execute(text("SELECT 1"))
    assert held.count == 0


def test_tasks_of_one_context_share_its_session(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    async def use() -> Session:
        await asyncio.sleep(0)
        session.execute(text("SELECT 1"))
        return session()

    async def use_in_tasks() -> list[Session]:
        return await asyncio.gather(*(use() for _ in range(MANY)))

    with app.app_context():
        used = asyncio.run(use_in_tasks())
        assert {id(one) for one in used} == {id(session())}
        assert held.count == 1
    assert held.count == 0


def test_tasks_of_different_contexts_never_share_a_session(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    inside: list[Session] = []

    async def work(everyone_is_inside: asyncio.Event) -> bool:
        with app.app_context():
            mine = session()
            mine.execute(text("SELECT 1"))
            inside.append(mine)
            if len(inside) == MANY:
                assert held.count == MANY
                everyone_is_inside.set()
            await everyone_is_inside.wait()
            return session() is mine and current_session == mine

    async def work_in_tasks() -> list[bool]:
        event = asyncio.Event()
        return await asyncio.gather(*(work(event) for _ in range(MANY)))

    assert all(asyncio.run(work_in_tasks()))
    assert len({id(one) for one in inside}) == MANY
    assert held.count == 0


def test_a_task_can_have_a_context_inside_the_one_that_it_inherited(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    async def work() -> Session:
        inherited = session()
        with app.app_context():
            session.execute(text("SELECT 1"))
            await asyncio.sleep(0)
            mine = session()
        assert session() is inherited
        return mine

    async def work_in_tasks() -> list[Session]:
        return await asyncio.gather(*(work() for _ in range(MANY)))

    with app.app_context():
        outer = session()
        inner = asyncio.run(work_in_tasks())
    assert len({id(one) for one in [outer, *inner]}) == MANY + 1
    assert held.count == 0


PATCHED = """
from gevent.monkey import patch_all
patch_all()

import contextvars, gc, warnings
from concurrent.futures import ThreadPoolExecutor
import gevent
from flask import Flask
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from flask_sqlalchemy_session import FlaskScopedSession, current_session

gc.disable()
warnings.simplefilter("error")
app = Flask("shop")
engine = create_engine("sqlite:///test.sqlite3")
FlaskScopedSession(sessionmaker(engine), app)

def use():
    return str(current_session.scalar(text("SELECT 1")))

@app.get("/greenlet")
def greenlet():
    use()
    return gevent.spawn(contextvars.copy_context().run, use).get()

@app.get("/thread")
def thread():
    use()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, use).result()

@app.get("/async")
async def asynchronous():
    return use()

client = app.test_client()
for path in ("/greenlet", "/thread", "/async"):
    print(path, client.get(path).text, engine.pool.checkedout())
"""


def test_a_session_that_others_were_given_is_closed_in_a_patched_process(
    tmp_path: Path,
) -> None:
    """Under gevent a thread's number is a greenlet's."""
    done = subprocess.run(  # noqa: S603  # our own program
        [sys.executable, "-c", PATCHED],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "/greenlet 1 0\n/thread 1 0\n/async 1 0\n", done.stderr
