"""What an async engine keeps of the request that connected with it: nothing."""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import os
import signal
import subprocess
import sys
import threading
import weakref
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy
from flask import Flask, current_app, g, request
from flask.globals import app_ctx
from sqlalchemy import URL, AsyncAdaptedQueuePool, event, make_url, text
from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.util import greenlet_spawn

from flask_sqlalchemy_session.asyncio import FlaskAsyncScopedSession, use_one_event_loop
from tests.async_support import async_url, in_a_thread, run, settle
from tests.leaks import collect
from tests.scope.flask_versions import FLASK_3_2

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import Any, TypeAlias

    from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect

    Use: TypeAlias = Callable[[AsyncConnection], Coroutine[object, object, None]]


class Kept:
    """Something of a request's own, that can be seen to go."""


@pytest.fixture
def app() -> Flask:
    app = Flask("shop")
    app.testing = True
    use_one_event_loop(app)
    return app


@pytest.fixture
def fresh(async_engine: AsyncEngine) -> Iterator[AsyncEngine]:
    """An engine that has not connected yet."""
    # The default, for files of SQLite too since SQLAlchemy 2.0.38.
    engine = create_async_engine(async_engine.url, poolclass=AsyncAdaptedQueuePool)
    yield engine
    run(engine.dispose)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("through", ["session", "engine", "raw connection"])
def test_a_pooled_connection_keeps_nothing_of_the_request_that_opened_it(
    app: Flask, fresh: AsyncEngine, through: str
) -> None:
    session = FlaskAsyncScopedSession(async_sessionmaker(fresh), app)
    of_the_request: list[weakref.ref[object]] = []

    async def by_session() -> None:
        await session.execute(text("SELECT 1"))

    async def by_engine() -> None:
        async with fresh.connect() as connection:
            await connection.execute(text("SELECT 1"))

    async def by_raw_connection() -> None:
        await greenlet_spawn(lambda: fresh.sync_engine.raw_connection().close())

    use: dict[str, Callable[[], Coroutine[object, object, None]]] = {
        "session": by_session,
        "engine": by_engine,
        "raw connection": by_raw_connection,
    }

    @app.get("/")
    async def view() -> str:
        g.kept = Kept()
        of_the_request.extend(map(weakref.ref, (g.kept, _context(), *_request())))
        await use[through]()
        return ""

    app.test_client().get("/")
    run(settle)
    assert {reference() for reference in of_the_request} == {None}
    assert "Connections in pool: 1" in fresh.pool.status()


def test_a_connection_that_belongs_to_another_loop_is_replaced(
    app: Flask, fresh: AsyncEngine
) -> None:
    """As below an ASGI server, after a set-up that it did not call."""
    loop = asyncio.new_event_loop()
    server = threading.Thread(target=loop.run_forever)
    server.start()

    async def query() -> None:
        async with fresh.connect() as connection:
            for _ in range(3):
                await connection.execute(text("SELECT 1"))

    made: list[object] = []
    event.listen(fresh.sync_engine, "connect", lambda *args: made.append(args))
    for _ in range(3):
        app.ensure_sync(query)()
        asyncio.run_coroutine_threadsafe(query(), loop).result(30)
    # Those of the others belong to no loop.
    assert len(made) == (6 if fresh.driver == "asyncpg" else 1)
    assert "Connections in pool: 1" in fresh.pool.status()
    asyncio.run_coroutine_threadsafe(fresh.dispose(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    server.join()
    loop.close()


# asyncio warns of what the loop that has ended can no longer close.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_connection_whose_loop_has_ended_is_replaced(
    app: Flask, fresh: AsyncEngine
) -> None:
    async def query() -> object:
        async with fresh.connect() as connection:
            return await connection.scalar(text("SELECT 1"))

    assert asyncio.run(query()) == 1
    for _ in range(2):
        assert app.ensure_sync(query)() == 1
    assert "Connections in pool: 1" in fresh.pool.status()
    collect()


async def _connect(url: str, driver: str) -> object:
    module = importlib.import_module(driver)
    connected: object = await getattr(module, "AsyncConnection", module).connect(url)
    return connected


async def _connect_apart(url: str, driver: str) -> object:
    connecting = _connect(url, driver)
    return await contextvars.Context().run(asyncio.create_task, connecting)


async def _select(connection: AsyncConnection) -> None:
    await connection.execute(text("SELECT 1"))


async def _fetch(connection: AsyncConnection) -> None:
    driver_connection: Any = (await connection.get_raw_connection()).driver_connection
    await driver_connection.fetch("SELECT 1")


SETTINGS: dict[str, tuple[Use, bool, dict[str, object]]] = {
    "asyncpg connects by itself": (_select, True, {"async_creator": _connect}),
    "asyncpg connects apart": (_select, False, {"async_creator": _connect_apart}),
    "psycopg connects by itself": (_select, False, {"async_creator": _connect}),
    "asyncpg caches for a while": (_fetch, True, {}),
    "asyncpg caches for ever": (
        _fetch,
        False,
        {"connect_args": {"max_cached_statement_lifetime": 0}},
    ),
}


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("setting", SETTINGS)
def test_what_the_page_says_of_the_driver_keeps_the_request(
    app: Flask, setting: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    driver = setting.split(maxsplit=1)[0]
    url = async_url(driver, request, tmp_path)
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    use, kept, arguments = SETTINGS[setting]
    if creator := arguments.get("async_creator"):
        assert callable(creator)
        arguments = {"async_creator": partial(creator, plain, driver)}
    engine = create_async_engine(url, **arguments)
    of_the_request: list[weakref.ref[object]] = []

    @app.get("/")
    async def view() -> str:
        g.kept = Kept()
        of_the_request.extend(map(weakref.ref, (g.kept, *_request())))
        async with engine.connect() as connection:
            await use(connection)
        return ""

    app.test_client().get("/")
    run(settle)
    assert {reference() is not None for reference in of_the_request} == {kept}
    run(engine.dispose)
    run(settle)
    assert {reference() for reference in of_the_request} == {None}


def _context() -> object:
    context: object = app_ctx._get_current_object()  # type: ignore[attr-defined]  # Flask types the proxy as the context
    return context


def _request() -> list[object]:
    """Return the request, where it goes with its last reference."""
    real: object = request._get_current_object()  # type: ignore[attr-defined]  # Flask types the proxy as the request
    return [] if FLASK_3_2 else [real]  # 3.2 leaves it in its own environ


# The collector may end the connection before the session, and then SQLAlchemy says so,
# and psycopg where it is not ended gracefully.
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_abandoned_context_that_opened_the_connection_is_reclaimed(
    app: Flask, fresh: AsyncEngine
) -> None:
    session = FlaskAsyncScopedSession(async_sessionmaker(fresh), app)
    kept: list[weakref.ref[Kept]] = []

    async def view() -> None:
        g.kept = Kept()
        kept.append(weakref.ref(g.kept))
        await session.execute(text("SELECT 1"))

    def leave() -> None:
        app.test_request_context().push()
        app.ensure_sync(view)()

    in_a_thread(leave)
    assert fresh.pool.status().endswith("out connections: 1")
    collect()
    run(settle)
    assert kept[0]() is None
    assert fresh.pool.status().endswith("out connections: 0")


def test_the_applications_own_listeners_connect_in_its_context(
    app: Flask, fresh: AsyncEngine
) -> None:
    seen: list[str] = []

    @event.listens_for(fresh.sync_engine, "do_connect")
    def note(*_: object) -> None:
        seen.append(current_app.name)

    async def connect() -> None:
        async with fresh.connect():
            seen.append("connected")

    with app.app_context():
        app.ensure_sync(connect)()
    assert seen == ["shop", "connected"]


def test_a_listener_that_makes_the_connection_is_asked_once(
    app: Flask, fresh: AsyncEngine
) -> None:
    made: list[DBAPIConnection] = []

    @event.listens_for(fresh.sync_engine, "do_connect")
    def connect(
        dialect: Dialect,
        entry: object,
        arguments: list[object],
        keywords: dict[str, object],
    ) -> DBAPIConnection:
        made.append(dialect.connect(*arguments, **keywords))
        return made[0]

    async def driver_connection() -> object:
        async with fresh.connect() as connection:
            return (await connection.get_raw_connection()).dbapi_connection

    assert app.ensure_sync(driver_connection)() is made[0]
    assert len(made) == 1


# SQLAlchemy leaves what it could not await.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_connection_that_no_greenlet_waits_for_is_sqlalchemys_error(
    app: Flask, fresh: AsyncEngine
) -> None:
    async def connect() -> None:
        with pytest.raises(MissingGreenlet):
            fresh.sync_engine.connect()

    app.ensure_sync(connect)()
    with pytest.raises(MissingGreenlet):
        fresh.sync_engine.connect()


# Fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("through", ["engine", "options", "raw", "open", "creator"])
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_what_connected_before_a_fork_stays_the_parents(
    driver: str, through: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    told = fork(FORK, async_url(driver, request, tmp_path), WAY=through)
    assert told == ("child: another's\nparent: 0 the same\n", "")


# In asyncio's debug mode nothing may be woken from another thread.
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("debug", ["", "1"])
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_what_waits_for_a_connection_at_a_fork_is_served_by_the_parent(
    driver: str, debug: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = async_url(driver, request, tmp_path)
    told = fork(FORK_BESIDE_A_WAITER, url, PYTHONASYNCIODEBUG=debug)
    lines = ["child: another's", "child: 4 served", "parent: 0 the same", ""]
    assert told == ("\n".join(lines), "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.skipif(
    sqlalchemy.__version__ in {"2.0.22", "2.0.23", "2.0.24"},
    reason="connections that are made at once after a dispose wait for each other",
)
@pytest.mark.parametrize(
    ("driver", "through"),
    [
        ("asyncpg", "session"),
        ("asyncpg", "options"),
        ("psycopg", "engine"),
        ("aiosqlite", "session"),
    ],
)
def test_a_pool_that_was_waited_for_before_a_fork_serves_parent_and_child(
    driver: str, through: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = async_url(driver, request, tmp_path)
    told = fork(FORK_AFTER_A_WAIT, url, WAY=through)
    assert told == ("child: 18 served, heard of\nparent: 0 served\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_child_ends_without_what_its_parent_was_closing(tmp_path: Path) -> None:
    url = make_url(f"sqlite+aiosqlite:///{tmp_path}/test.sqlite3")
    assert fork(FORK_BESIDE_A_CLOSE, url) == ("child: 1\nparent: 0 closed\n", "")


def fork(program: str, url: URL, **environment: str) -> tuple[str, str]:
    """Run a program, and return what it and its child wrote."""
    environment["URL"] = url.render_as_string(hide_password=False)
    # A session of its own, for a child that hangs to end with it.
    process = subprocess.Popen(  # noqa: S603  # a program of the test's own
        # Python warns of forks beside threads, such as the loop's.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )
    try:
        return process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()


FORK_BESIDE_A_CLOSE = """
import asyncio, os, sys, threading
from flask import Flask
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.util import await_only
from flask_sqlalchemy_session.asyncio import (
    FlaskAsyncScopedSession, current_async_session, use_one_event_loop
)

app = Flask("shop")
use_one_event_loop(app)
engine = create_async_engine(os.environ["URL"])
FlaskAsyncScopedSession(async_sessionmaker(engine), app)
closing, forked, closed = (threading.Event() for _ in range(3))
event.listen(engine.sync_engine, "checkin", lambda *_: closed.set())

@event.listens_for(engine.sync_engine, "rollback")
def is_slow_once(_):
    if not closing.is_set():
        closing.set()
        await_only(asyncio.to_thread(forked.wait))

async def select_1():
    return await current_async_session.scalar(text("SELECT 1"))

async def set_up():
    with app.app_context():
        await select_1()

app.ensure_sync(set_up)()
closing.wait()
child = os.fork()
if not child:
    with app.app_context():
        print("child:", app.ensure_sync(select_1)(), flush=True)
    app.ensure_sync(engine.dispose)()
    sys.exit(0)
_, status = os.waitpid(child, 0)
forked.set()
print("parent:", status, "closed" if closed.wait(10) else "not closed")
app.ensure_sync(engine.dispose)()
"""

FORK_AFTER_A_WAIT = """
import asyncio, os, sys, threading
from flask import Flask
from sqlalchemy import AsyncAdaptedQueuePool, event, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from flask_sqlalchemy_session.asyncio import (
    FlaskAsyncScopedSession, current_async_session, use_one_event_loop
)

app = Flask("shop")
use_one_event_loop(app)
engine = create_async_engine(
    os.environ["URL"], poolclass=AsyncAdaptedQueuePool, pool_size=2, max_overflow=0
)
maker = async_sessionmaker(engine)
FlaskAsyncScopedSession(maker, app)
heard, served = [], []
event.listen(engine.pool, "checkout", lambda *_: heard.append(os.getpid()))

async def use():
    if os.environ["WAY"] == "session":
        used = maker()
    elif os.environ["WAY"] == "engine":
        used = engine.connect()
    else:
        used = engine.execution_options(logging_token="shop").connect()
    async with used as used:
        await used.execute(text("SELECT 1"))
        await asyncio.sleep(0.01)

async def use_at_once():
    await asyncio.gather(*[use() for _ in range(5)])

@app.get("/")
async def view():
    await current_async_session.execute(text("SELECT 1"))
    await asyncio.sleep(0.01)
    return "served"

def ask():
    for _ in range(3):
        served.append(app.test_client().get("/").text)

app.ensure_sync(use_at_once)()
child = os.fork()
if not child:
    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = "heard of" if heard.count(os.getpid()) == 18 else "not heard of"
    print("child:", served.count("served"), f"served, {told}", flush=True)
    app.ensure_sync(engine.dispose)()
    sys.exit(0)
_, status = os.waitpid(child, 0)
app.ensure_sync(use_at_once)()
print("parent:", status, "served")
app.ensure_sync(engine.dispose)()
"""

FORK_BESIDE_A_WAITER = """
import asyncio, logging, os, sys, threading, time
from flask import Flask
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from flask_sqlalchemy_session.asyncio import use_one_event_loop

# The debug mode warns of what is slow, as all is on a busy machine.
logging.getLogger("asyncio").setLevel("ERROR")
app = Flask("shop")
use_one_event_loop(app)
engine = create_async_engine(os.environ["URL"], pool_size=1, max_overflow=0)
held, forked = threading.Event(), threading.Event()
backends = []

async def hold():
    async with engine.connect() as connection:
        held.set()
        await asyncio.to_thread(forked.wait)
        await connection.execute(text("SELECT 1"))

async def note():
    async with engine.connect() as connection:
        backends.append(await connection.scalar(text("SELECT pg_backend_pid()")))

async def note_twice():
    await asyncio.gather(note(), note())

app.ensure_sync(note)()
threads = []
for function in (hold, note):
    threads.append(threading.Thread(target=app.ensure_sync(function)))
    threads[-1].start()
    held.wait()
time.sleep(0.2)  # the second thread's call waits for the connection now
child = os.fork()
if not child:
    app.ensure_sync(note)()
    print("child:", "the same" if len(set(backends)) == 1 else "another's")
    app.ensure_sync(note_twice)()
    print("child:", len(backends), "served", flush=True)
    sys.exit(0)
_, status = os.waitpid(child, 0)
forked.set()
for thread in threads:
    thread.join()
print("parent:", status, "the same" if len(set(backends)) == 1 else "another's")
app.ensure_sync(engine.dispose)()
"""


FORK = """
import importlib, os, sys
from flask import Flask
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import greenlet_spawn
from flask_sqlalchemy_session.asyncio import use_one_event_loop

app = Flask("shop")
use_one_event_loop(app)

async def connect():
    driver = importlib.import_module(engine.driver)
    connect = getattr(driver, "AsyncConnection", driver).connect
    url = engine.url.set(drivername="postgresql")
    return await connect(url.render_as_string(hide_password=False))

options = {}
if os.environ["WAY"] == "creator":
    options["async_creator"] = connect
engine = create_async_engine(os.environ["URL"], pool_size=1, max_overflow=0, **options)

def raw():
    connection = engine.sync_engine.raw_connection()
    cursor = connection.cursor()
    cursor.execute("SELECT pg_backend_pid()")
    pid, = cursor.fetchone()
    connection.close()
    return pid

async def open_connection():
    return await engine.connect()

if os.environ["WAY"] == "open":
    kept = {os.getpid(): app.ensure_sync(open_connection)()}
else:
    kept = {}

async def backend():
    if os.getpid() in kept:
        return await kept[os.getpid()].scalar(text("SELECT pg_backend_pid()"))
    if os.environ["WAY"] == "raw":
        return await greenlet_spawn(raw)
    used = engine
    if os.environ["WAY"] == "options":
        used = engine.execution_options(logging_token="shop")
    async with used.connect() as connection:
        return await connection.scalar(text("SELECT pg_backend_pid()"))

def same():
    return "the same" if app.ensure_sync(backend)() == before else "another's"

before = app.ensure_sync(backend)()
child = os.fork()
if not child:
    print("child:", same(), flush=True)
    sys.exit(0)
_, status = os.waitpid(child, 0)
print("parent:", status, same())
for connection in kept.values():
    app.ensure_sync(connection.close)()
"""
