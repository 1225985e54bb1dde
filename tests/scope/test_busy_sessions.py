"""A context that ends while another thread is inside its session.

The end waits for that thread, and nothing is closed under what it executes.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import QueuePool, create_engine, event, text
from sqlalchemy.exc import IllegalStateChangeError, InvalidRequestError
from sqlalchemy.orm import Session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession
from tests.scope.flask_versions import before_flask_3_2
from tests.support import Held, User, raises

if TYPE_CHECKING:
    from pathlib import Path

    from flask import Flask
    from flask.ctx import AppContext
    from sqlalchemy import Engine

pytestmark = [
    pytest.mark.usefixtures("no_collector"),
    pytest.mark.parametrize("engine", ["postgresql"], indirect=True),
]

SELECT_1 = text("SELECT 1")


def query(session: FlaskScopedSession[Session]) -> None:
    session.execute(SELECT_1)


def write(session: FlaskScopedSession[Session]) -> None:
    session.add(User(name="busy"))
    session.commit()


def push_and_query(context: AppContext, session: FlaskScopedSession[Session]) -> None:
    context.push()
    query(session)


class Gate:
    """Keeps a thread in an event of an engine until it is opened, or for some time."""

    def __init__(self, engine: Engine, name: str, seconds: float = 30) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self._seconds = seconds
        event.listen(engine, name, self._wait)

    def _wait(self, *_: object) -> None:
        self.reached.set()
        self.opened.wait(self._seconds)


def answer_while_a_job_is_in(
    gate: Gate, place: str, app: Flask, session: FlaskScopedSession[Session]
) -> ThreadPoolExecutor:
    """Give the application a view that leaves a job in its session."""
    pool = ThreadPoolExecutor(1)

    @app.get("/")
    def index() -> str:
        session()
        variables = contextvars.copy_context()
        pool.submit(variables.run, PLACES[place], session)
        assert gate.reached.wait(30)
        return "the view's"

    return pool


def invalidated_by(engine: Engine) -> list[object]:
    """Every connection that was closed instead of given back."""
    invalidated: list[object] = []
    event.listen(engine, "invalidate", lambda *args: invalidated.append(args))
    return invalidated


def executed_by(engine: Engine) -> list[bool]:
    """One for each statement that was executed to its end."""
    executed: list[bool] = []
    event.listen(engine, "after_cursor_execute", lambda *_: executed.append(True))
    return executed


def wait_for_the_pool(engine: Engine) -> None:
    assert isinstance(engine.pool, QueuePool)
    deadline = time.monotonic() + 20
    while engine.pool.checkedout() and time.monotonic() < deadline:
        time.sleep(0.01)


PLACES = {
    "do_connect": query,
    "begin": query,
    "before_cursor_execute": query,
    "commit": write,
}


@pytest.mark.parametrize("place", PLACES)
def test_the_end_of_a_context_waits_for_a_job_that_is_in(
    place: str,
    app: Flask,
    session: FlaskScopedSession[Session],
    engine: Engine,
    held: Held,
) -> None:
    invalidated = invalidated_by(engine)
    engine.dispose()  # so that the job connects first
    gate = Gate(engine, place, seconds=0.1)
    pool = answer_while_a_job_is_in(gate, place, app, session)
    response = app.test_client().get("/")
    assert (response.status_code, response.text) == (200, "the view's")
    assert held.count == 0
    assert not invalidated
    pool.shutdown()  # whatever the job met when its session was closed


@pytest.mark.parametrize("place", PLACES)
def test_a_session_that_stays_busy_is_closed_when_its_thread_lets_go(
    place: str,
    app: Flask,
    session: FlaskScopedSession[Session],
    engine: Engine,
    held: Held,
) -> None:
    invalidated = invalidated_by(engine)
    engine.dispose()
    gate = Gate(engine, place)
    pool = answer_while_a_job_is_in(gate, place, app, session)
    with pytest.warns(ResourceWarning, match="in use by another thread") as told:  # noqa: PT031  # a thread of its own tells, later
        response = app.test_client().get("/")
        deadline = time.monotonic() + 20
        while not told.list and time.monotonic() < deadline:
            time.sleep(0.01)
    assert (response.status_code, response.text) == (200, "the view's")
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 1
    gate.opened.set()
    pool.shutdown()
    wait_for_the_pool(engine)
    assert held.count == 0
    assert not invalidated


@pytest.mark.parametrize("removes_before", [True, False])
def test_an_error_of_the_same_class_from_a_remove_of_ones_own_reaches_the_caller(
    removes_before: bool, app: Flask, engine: Engine, held: Held
) -> None:
    class Strict(FlaskScopedSession[Session]):
        def remove(self) -> None:
            if removes_before:
                super().remove()
            raise IllegalStateChangeError("its own")

    session = Strict(sessionmaker(engine), app)

    def use_it() -> None:
        with app.app_context():
            query(session)

    with raises(IllegalStateChangeError, "its own"):
        use_it()
    assert held.count == 0


def test_a_thread_that_closes_the_session_first_does_not_change_the_response(
    app: Flask, engine: Engine, held: Held
) -> None:
    gate = Gate(engine, "before_cursor_execute", seconds=0.3)
    removed = threading.Event()

    class Logged(FlaskScopedSession[Session]):
        def remove(self) -> None:
            try:
                super().remove()
            finally:
                if threading.current_thread() is threading.main_thread():
                    assert removed.wait(30)

    session = Logged(sessionmaker(engine), app)

    def job() -> None:
        query(session)
        session.remove()
        removed.set()

    with ThreadPoolExecutor(1) as pool:

        @app.get("/")
        def index() -> str:
            session()
            pool.submit(contextvars.copy_context().run, job)
            assert gate.reached.wait(30)
            return "the view's"

        assert app.test_client().get("/").text == "the view's"
    assert held.count == 0


def test_a_session_that_another_thread_closes_is_refused_when_its_context_has_ended(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine, held: Held
) -> None:
    rollback = Gate(engine, "rollback", seconds=0.3)
    given, ended = threading.Event(), threading.Event()

    def remove() -> None:
        assert given.wait(30)
        session.remove()

    def use_late() -> None:
        taken = session()
        given.set()
        assert ended.wait(30)
        taken.execute(SELECT_1)

    with ThreadPoolExecutor(2) as pool:
        with app.app_context():
            query(session)
            jobs = [
                pool.submit(contextvars.copy_context().run, job)
                for job in (remove, use_late)
            ]
            assert rollback.reached.wait(30)
        ended.set()
        jobs[0].result(30)
        with raises(InvalidRequestError, "[closed-session]"):
            jobs[1].result(30)
    assert held.count == 0


def test_a_thread_that_lost_the_first_use_is_given_no_session_that_has_ended(
    app: Flask, engine: Engine, held: Held
) -> None:
    made, wanted = threading.Event(), threading.Event()
    closing, ended = threading.Event(), threading.Event()

    def is_late() -> bool:
        return threading.current_thread() is not threading.main_thread()

    class Slow(Session):
        def close(self) -> None:
            if is_late() and not ended.is_set():
                closing.set()
                assert ended.wait(30)
            super().close()

    def make() -> Slow:
        if is_late():
            made.set()
            assert wanted.wait(30)
        return Slow(engine)

    session = FlaskScopedSession(make, app)
    with (  # noqa: PT031  # it warns of that which is late, and of the one given up
        pytest.warns(ResourceWarning, match="late-session"),
        ThreadPoolExecutor(1) as pool,
    ):
        with app.app_context():
            job = pool.submit(contextvars.copy_context().run, session)
            assert made.wait(30)
            first = session()
            wanted.set()
            assert closing.wait(30)
        ended.set()
        late = job.result(30)
        del job
    assert late is not first
    assert held.count == 0


@before_flask_3_2("it refuses to pop a context that is not current")
def test_who_ends_the_context_of_another_thread_waits_for_its_statement(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine, held: Held
) -> None:
    gate = Gate(engine, "before_cursor_execute", seconds=0.3)
    executed = executed_by(engine)
    context = app.app_context()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(push_and_query, context, session)
        assert gate.reached.wait(30)
        with pytest.raises((AssertionError, LookupError, RuntimeError, ValueError)):
            context.pop()  # Flask's own error, once the context was torn down
        assert executed
        assert held.count == 0
        future.result(30)


@before_flask_3_2("it refuses to pop a context that is not current")
def test_the_session_of_a_thread_that_stays_busy_is_not_closed_by_who_ends_its_context(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine, held: Held
) -> None:
    gate = Gate(engine, "before_cursor_execute")
    context = app.app_context()
    with ThreadPoolExecutor(1) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        future = pool.submit(push_and_query, context, session)
        assert gate.reached.wait(30)
        with pytest.raises((AssertionError, LookupError, RuntimeError, ValueError)):
            context.pop()
        time.sleep(0.2)  # in which the thread that closes it at last could do so
        assert held.count == 1
        gate.opened.set()
        future.result(30)
        wait_for_the_pool(engine)
    assert held.count == 0


def test_the_end_of_a_context_waits_a_second_for_all_its_sessions_together(
    app: Flask, engine: Engine, held: Held
) -> None:
    gate = Gate(engine, "begin")
    with ThreadPoolExecutor(3) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with app.app_context():
            for name in ("default", "reports", "audit"):
                session = FlaskScopedSession(sessionmaker(engine), app, name=name)
                session()
                gate.reached.clear()
                pool.submit(contextvars.copy_context().run, query, session)
                assert gate.reached.wait(30)
            began = time.monotonic()
        assert time.monotonic() - began < 2
        assert held.count == 3
        gate.opened.set()
        wait_for_the_pool(engine)
    assert held.count == 0


def test_a_busy_thread_is_waited_for_among_many_that_share_another_session(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine, held: Held
) -> None:
    gate = Gate(engine, "before_cursor_execute")
    executed = executed_by(engine)
    many = 1100
    together = threading.Barrier(many)

    def share(variables: contextvars.Context) -> None:
        variables.run(session)
        together.wait(30)

    with ThreadPoolExecutor(1) as busy, ThreadPoolExecutor(many) as others:
        with app.app_context():
            session()
            busy.submit(contextvars.copy_context().run, query, session)
            assert gate.reached.wait(30)
            with app.app_context():
                session()
                jobs = [
                    others.submit(share, contextvars.copy_context())
                    for _ in range(many)
                ]
                for job in jobs:
                    job.result(30)
            threading.Timer(0.2, gate.opened.set).start()
        assert executed
    assert held.count == 0


@pytest.mark.leaks
def test_the_safety_net_does_not_wait_for_a_busy_session(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine, held: Held
) -> None:
    gate = Gate(engine, "begin")

    def leave(pool: ThreadPoolExecutor) -> None:
        app.app_context().push()
        pool.submit(session().execute, SELECT_1)
        assert gate.reached.wait(30)

    with ThreadPoolExecutor(1) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        variables = contextvars.copy_context()
        variables.run(leave, pool)
        del variables
        began = time.monotonic()
        gc.collect()
        assert time.monotonic() - began < 0.9
        assert held.count == 1
        gate.opened.set()
        wait_for_the_pool(engine)
    assert held.count == 0


def test_an_async_view_that_gives_up_a_query_has_its_response(
    app: Flask, engine: Engine
) -> None:
    small = create_engine(engine.url, pool_size=1, max_overflow=0, pool_timeout=0.4)
    held = Held(small)
    invalidated = invalidated_by(small)
    session = FlaskScopedSession(sessionmaker(small), app)

    @app.get("/")
    async def index() -> str:
        session()
        try:
            await asyncio.wait_for(asyncio.to_thread(query, session), 0.05)
        except asyncio.TimeoutError:
            return "gave up"
        return "read"

    taken = small.connect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        response = app.test_client().get("/")
    assert (response.status_code, response.text) == (200, "gave up")
    assert held.count == 1
    taken.close()
    assert held.count == 0
    assert not invalidated
    with app.app_context():
        session.execute(SELECT_1)
    assert held.count == 0
    small.dispose()


def test_an_async_view_that_gives_up_gives_back_what_its_thread_got_late(
    app: Flask, engine: Engine
) -> None:
    small = create_engine(engine.url, pool_size=1, max_overflow=0)
    held = Held(small)
    session = FlaskScopedSession(sessionmaker(small), app)
    taken = small.connect()

    @app.get("/")
    async def index() -> str:
        session()
        try:
            await asyncio.wait_for(asyncio.to_thread(query, session), 0.05)
        except asyncio.TimeoutError:
            threading.Timer(0.1, taken.close).start()
            return "gave up"
        return "read"

    response = app.test_client().get("/")
    assert (response.status_code, response.text) == (200, "gave up")
    assert held.count == 0
    with app.app_context():
        session.execute(SELECT_1)
    assert held.count == 0
    small.dispose()


CRASH = """
import contextvars, gc, sys, threading, time, warnings
from concurrent.futures import ThreadPoolExecutor
from flask import Flask
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from flask_sqlalchemy_session import FlaskScopedSession

warnings.simplefilter("ignore")
sys.setswitchinterval(1e-6)
app = Flask("script")
engine = create_engine(
    f"sqlite:///{sys.argv[1]}/crash.sqlite3",
    pool_size=1,  # it closes what it has no room for
    connect_args={"check_same_thread": False},
)
session = FlaskScopedSession(sessionmaker(engine), app)
jobs = ThreadPoolExecutor(16)
statement = text(
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) "
    "SELECT count(*) FROM n"
)


def job():
    for _ in range(2):
        session.execute(statement).all()
        session.rollback()


def serve(_):
    for _ in range(4):
        with app.app_context():
            session()
            variables = contextvars.copy_context()
            left.append(jobs.submit(variables.run, job))


left = []
with ThreadPoolExecutor(16) as servers:
    list(servers.map(serve, range(8)))
for each in left:
    each.exception()
jobs.shutdown()
left.clear()
gc.collect()
# Threads of the library close what was busy for longer than its context.
deadline = time.monotonic() + 20
while engine.pool.checkedout() and time.monotonic() < deadline:
    time.sleep(0.01)
print(engine.pool.checkedout())
"""


def test_sqlite_survives_contexts_that_end_under_a_statement(
    engine: Engine, tmp_path: Path
) -> None:
    done = subprocess.run(  # noqa: S603  # a script of ours
        [sys.executable, "-c", CRASH, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr
