"""The promises of the sync side, for async sessions in async views."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, NoReturn, get_origin, get_type_hints

import pytest
from flask import Flask, Response, g, stream_with_context
from sqlalchemy import func, make_url, select, text
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
)
from sqlalchemy.orm import Session

from flask_sqlalchemy_session.asyncio import (
    AsyncSessionFactory,
    FlaskAsyncScopedSession,
    current_async_session,
    flask_async_scoped_session,
    use_one_event_loop,
)
from tests.async_support import in_a_thread, run, settle, wait_until
from tests.leaks import collect
from tests.support import Held, User, raises

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
    from pathlib import Path
    from typing import TypeVar

    T = TypeVar("T")

REQUESTS = 40


@pytest.fixture
def app() -> Flask:
    app = Flask("shop")
    app.testing = True
    use_one_event_loop(app)
    return app


@pytest.fixture
def held(async_engine: AsyncEngine) -> Held:
    return Held(async_engine.sync_engine)


@pytest.fixture
def session(
    app: Flask, async_engine: AsyncEngine
) -> FlaskAsyncScopedSession[AsyncSession]:
    return FlaskAsyncScopedSession(async_sessionmaker(async_engine), app)


async def count_users() -> int:
    return (await current_async_session.scalars(select(func.count(User.id)))).one()


def serve(app: Flask, view: Callable[[], Coroutine[object, object, object]]) -> None:
    """Answer a request with a view."""
    with app.test_request_context():
        app.ensure_sync(view)()


async def driver_connection(session: AsyncSession) -> object:
    connection = await session.connection()
    return (await connection.get_raw_connection()).driver_connection


# One context, one session


def test_a_view_has_one_session(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession], held: Held
) -> None:
    @app.get("/")
    async def view() -> str:
        assert isinstance(session(), AsyncSession)
        assert isinstance(current_async_session, AsyncSession)
        assert session() is session()
        assert session() == current_async_session == session.proxy
        await current_async_session.execute(text("SELECT 1"))
        await session.execute(text("SELECT 1"))
        assert held.count == 1
        return "shown"

    assert app.test_client().get("/").text == "shown"
    assert held.count == 0


def test_requests_have_sessions_of_their_own_and_share_a_connection(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession]
) -> None:
    seen: list[tuple[AsyncSession, object]] = []

    @app.get("/")
    async def view() -> str:
        assert not session().info
        session().info["seen"] = True
        seen.append((session(), await driver_connection(session())))
        return ""

    client = app.test_client()
    for _ in range(REQUESTS):
        assert client.get("/").status_code == 200
    assert len({id(session) for session, _ in seen}) == REQUESTS
    assert len({id(connection) for _, connection in seen}) == 1


def test_requests_in_threads_share_no_session_and_one_pool(
    app: Flask,
    session: FlaskAsyncScopedSession[AsyncSession],
    async_engine: AsyncEngine,
    held: Held,
    idle_in_transaction: Callable[[], int],
) -> None:
    threads = 8
    using: list[AsyncSession] = []
    together: list[int] = []
    connections: set[object] = set()

    @app.get("/<int:number>")
    async def view(number: int) -> str:
        assert session() not in using
        using.append(session())
        connections.add(await driver_connection(session()))
        together.append(len(using))
        await session.execute(text("SELECT 1"))
        using.remove(session())
        if number % 10 == 9:
            raise LookupError
        return str(number)

    def request(number: int) -> None:
        client = app.test_client()
        if number % 10 == 9:
            with pytest.raises(LookupError):
                client.get(f"/{number}")
        else:
            assert client.get(f"/{number}").text == str(number)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(request, range(threads * REQUESTS)))
    assert max(together) > 1
    assert len(connections) < threads * REQUESTS / 2
    assert held.count == 0
    assert idle_in_transaction() == 0
    assert async_engine.pool.status().endswith("Current Checked out connections: 0")


def test_a_context_that_never_uses_the_session_makes_none(app: Flask) -> None:
    def factory() -> NoReturn:
        pytest.fail("a session was made")

    FlaskAsyncScopedSession[AsyncSession](factory, app)

    @app.get("/")
    async def view() -> str:
        return ""

    assert app.test_client().get("/").status_code == 200


def test_applications_and_names_each_have_sessions_of_their_own(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession], held: Held
) -> None:
    other = FlaskAsyncScopedSession(session.session_factory, app, name="other")
    second = Flask("second")
    use_one_event_loop(second)
    session.init_app(second)
    assert app.extensions["sqlalchemy_async_session"] == {
        "default": session,
        "other": other,
    }

    async def view() -> None:
        await session.execute(text("SELECT 1"))
        await other.execute(text("SELECT 1"))
        assert session() is not other()
        first = session()
        with second.app_context():
            assert session() is not first
            assert current_async_session == session()
            await session.execute(text("SELECT 1"))
            assert held.count == 3
            await session.remove()

    serve(app, view)
    assert held.count == 0


# Always released


def test_sync_code_may_make_the_session_that_a_view_uses(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession], held: Held
) -> None:
    @app.before_request
    def add() -> None:
        session.add(User(name="ann"))

    @app.get("/")
    async def view() -> str:
        return str(await count_users())

    client = app.test_client()
    assert client.get("/").text == "1"
    assert client.get("/").text == "1"  # neither was committed
    assert held.count == 0


def test_sync_code_may_make_a_session_that_nothing_uses(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession]
) -> None:
    user = User(name="ann")
    with app.app_context():
        session.add(user)
        assert user in session
        made = session()
    assert user not in made


def test_remove_closes_the_session_and_the_next_use_makes_another(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession], held: Held
) -> None:
    async def view() -> None:
        first = session()
        await session.execute(text("SELECT 1"))
        await session.remove()
        assert held.count == 0
        assert session() is not first
        await session.remove()
        await session.remove()

    serve(app, view)
    run(session.remove)  # outside a context there is nothing to do


def test_teardown_awaits_a_subclasss_remove(
    app: Flask, async_engine: AsyncEngine, held: Held
) -> None:
    removed: list[AsyncSession] = []

    class Logging(FlaskAsyncScopedSession[AsyncSession]):
        async def remove(self) -> None:
            removed.append(self())
            await self.execute(text("SELECT 1"))
            await super().remove()

    session = Logging(async_sessionmaker(async_engine), app)
    made: list[AsyncSession] = []

    async def view() -> None:
        made.append(session())

    serve(app, view)
    assert made == removed
    assert held.count == 0


def test_when_closing_fails_the_others_are_closed(
    app: Flask,
    session: FlaskAsyncScopedSession[AsyncSession],
    async_engine: AsyncEngine,
    held: Held,
) -> None:
    class Failing(AsyncSession):
        async def close(self) -> None:
            raise LookupError

    first = FlaskAsyncScopedSession(
        async_sessionmaker(async_engine, class_=Failing), app, name="first"
    )
    last = FlaskAsyncScopedSession(async_sessionmaker(async_engine), app, name="last")

    async def view() -> None:
        for scoped in (first, session, last):
            await scoped().execute(text("SELECT 1"))
        assert held.count == 3

    with raises(LookupError):
        serve(app, view)
    assert held.count == 0


def test_terminated_backends_do_not_outlast_the_request(
    app: Flask,
    session: FlaskAsyncScopedSession[AsyncSession],
    async_engine: AsyncEngine,
    held: Held,
) -> None:
    if async_engine.dialect.name == "sqlite":
        pytest.skip("a database in this process")

    async def view() -> None:
        backend = await session.scalar(text("SELECT pg_backend_pid()"))
        async with async_engine.connect() as other:
            kill = text("SELECT pg_terminate_backend(:backend, 5000)")
            await other.execute(kill, {"backend": backend})
        await session.execute(text("SELECT 1"))

    for _ in range(3):
        with pytest.raises(DBAPIError):
            serve(app, view)
        assert held.count == 0

    async def works() -> None:
        assert await session.scalar(text("SELECT 1")) == 1

    for _ in range(20):
        serve(app, works)
    assert held.count == 0


def test_a_streamed_response_is_released_when_it_ends(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession], held: Held
) -> None:
    numbers = text(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
        "WHERE i < 1000) SELECT i FROM n"
    )
    counts: list[int] = []

    async def rows() -> AsyncGenerator[str, None]:
        result = await session.stream(numbers)
        try:
            async for row in result.scalars():
                yield f"{row}\n"
        finally:
            await result.close()

    def iterate(source: AsyncGenerator[str, None]) -> Iterator[str]:
        async def step() -> str | None:
            return await anext(source, None)

        async def end() -> None:
            await source.aclose()

        try:
            while (chunk := app.ensure_sync(step)()) is not None:
                counts.append(held.count)
                yield chunk
        finally:
            app.ensure_sync(end)()

    @app.before_request
    async def before() -> None:
        await session.execute(text("SELECT 1"))

    # Before Flask 3.1.2 an async view, in another thread, could not call this.
    @app.get("/")
    def view() -> Response:
        return Response(stream_with_context(iterate(rows())))

    whole = app.test_client().get("/")
    assert len(whole.text.splitlines()) == 1000
    assert set(counts) == {1}
    whole.close()
    assert held.count == 0

    cut_short = app.test_client().get("/", buffered=False)
    chunks = iter(cut_short.response)
    assert next(chunks) in ("1\n", b"1\n")
    assert held.count == 1
    cut_short.close()  # as a server does when the client hangs up
    assert held.count == 0


# On the loop itself


def test_a_context_inside_a_view_has_a_session_of_its_own(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession], held: Held
) -> None:
    async def view() -> None:
        outer = session()
        await session.execute(text("SELECT 1"))
        with app.app_context():
            assert session() is not outer
            await session.execute(text("SELECT 1"))
            assert held.count == 2
        assert session() is outer

    serve(app, view)
    # Closed by a task that began at the end of the inner context.
    wait_until(lambda: held.count == 0)


def test_a_task_may_outlive_its_view_in_a_context_of_its_own(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession], held: Held
) -> None:
    answered = threading.Event()
    tasks: list[asyncio.Task[None]] = []

    async def work() -> None:
        await asyncio.get_running_loop().run_in_executor(None, answered.wait)
        with app.app_context():
            session.add(User(name="ann"))
            await session.commit()
            await session.remove()

    async def view() -> None:
        await session.execute(text("SELECT 1"))
        tasks.append(asyncio.create_task(work()))

    serve(app, view)
    assert held.count == 0
    answered.set()

    async def ended() -> int:
        await asyncio.wait(tasks)
        return await count_users()

    with app.app_context():
        assert app.ensure_sync(ended)() == 1
    assert held.count == 0


def test_tasks_at_the_same_time_take_sessions_of_their_own(
    app: Flask, async_engine: AsyncEngine, held: Held
) -> None:
    maker = async_sessionmaker(async_engine)
    FlaskAsyncScopedSession(maker, app)

    async def count() -> int:
        async with maker() as session:
            return (await session.scalars(select(func.count(User.id)))).one()

    async def view() -> None:
        assert sum(await asyncio.gather(count(), count_users(), count())) == 0

    serve(app, view)
    assert held.count == 0


def test_one_session_in_several_tasks_is_sqlalchemys_error_and_is_released(
    app: Flask,
    session: FlaskAsyncScopedSession[AsyncSession],
    async_engine: AsyncEngine,
    held: Held,
) -> None:
    run(async_engine.dispose)

    async def view() -> None:
        with pytest.raises(InvalidRequestError, match="concurrent operations are not"):
            await asyncio.gather(count_users(), count_users())

    # Some drivers refuse to roll back what the other task has begun by then.
    with suppress(DBAPIError):
        serve(app, view)
    assert held.count == 0


def test_a_loop_of_ones_own_that_closes_in_time_is_clean(
    app: Flask,
    session: FlaskAsyncScopedSession[AsyncSession],
    async_engine: AsyncEngine,
    held: Held,
) -> None:
    async def script() -> None:
        with app.app_context():
            assert await count_users() == 0
            await session.remove()
        await async_engine.dispose()

    run(async_engine.dispose)
    asyncio.run(script())
    assert held.count == 0


def test_a_context_that_ends_with_its_loop_is_released(
    app: Flask,
    session: FlaskAsyncScopedSession[AsyncSession],
    async_engine: AsyncEngine,
    held: Held,
) -> None:
    async def script() -> None:
        with app.app_context():
            assert await count_users() == 0

    run(async_engine.dispose)
    asyncio.run(script())
    assert held.count == 0
    async_engine.sync_engine.dispose(close=False)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_context_that_outlives_its_loop_says_so_and_drops_the_connection(
    app: Flask,
    session: FlaskAsyncScopedSession[AsyncSession],
    async_engine: AsyncEngine,
) -> None:
    run(async_engine.dispose)
    with pytest.warns(ResourceWarning, match="ensure_sync"), app.app_context():
        asyncio.run(count_users())
    gc.collect()  # the socket: neither driver closes it without its loop
    assert async_engine.pool.status().endswith("out connections: 0")
    with app.app_context():
        assert app.ensure_sync(count_users)() == 0


def test_a_session_that_was_made_and_not_used_may_outlive_its_loop(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession], held: Held
) -> None:
    async def make() -> AsyncSession:
        return session()

    with app.app_context():
        assert asyncio.run(make()) is session()
    assert held.count == 0


def test_the_registry_is_given_a_session(
    app: Flask,
    session: FlaskAsyncScopedSession[AsyncSession],
    async_engine: AsyncEngine,
    held: Held,
) -> None:
    async def replace() -> None:
        second = AsyncSession(async_engine)
        await session.execute(text("SELECT 1"))
        session.registry.set(second)
        assert session() is second
        await session.execute(text("SELECT 1"))

    with app.app_context():
        app.ensure_sync(replace)()
    run(settle)
    assert held.count == 0


# The safety net


def test_a_thread_that_kept_the_context_is_released_when_it_ends(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession], held: Held
) -> None:
    answered = threading.Event()

    def late() -> None:
        answered.wait()
        app.ensure_sync(count_users)()

    with app.app_context():
        app.ensure_sync(count_users)()
        thread = threading.Thread(target=copy_context().run, args=(late,))
        thread.start()
    gc.disable()
    try:
        with warns_unraisably():
            answered.set()
            thread.join()
            del thread
        wait_until(lambda: held.count == 0)
    finally:
        gc.enable()


@contextmanager
def warns_unraisably() -> Iterator[None]:
    """Expect the safety net's warning, which a finaliser gives in any thread."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        yield
    messages = [str(warning.message) for warning in caught]
    assert any("safety net" in message for message in messages), messages


# The collector may end the connection before the session, and then SQLAlchemy says so,
# and psycopg where it is not ended gracefully.
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_context_that_is_never_popped_gives_its_connection_back(
    app: Flask, async_engine: AsyncEngine
) -> None:
    FlaskAsyncScopedSession(async_sessionmaker(async_engine), app)

    def leave() -> None:
        app.app_context().push()
        app.ensure_sync(count_users)()

    with warns_unraisably():
        in_a_thread(leave)
        collect()
    wait_until(lambda: async_engine.pool.status().endswith("out connections: 0"))


def test_a_task_that_outlived_its_view_is_told_to_have_a_context_of_its_own(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession], held: Held
) -> None:
    answered = threading.Event()
    tasks: list[asyncio.Task[int]] = []

    async def late() -> int:
        await asyncio.get_running_loop().run_in_executor(None, answered.wait)
        return await count_users()

    async def view() -> None:
        tasks.append(asyncio.create_task(late()))
        assert await count_users() == 0

    serve(app, view)
    answered.set()

    async def end() -> int:
        return await tasks[0]

    with pytest.raises(RuntimeError, match=r"with app\.app_context"):
        run(end)
    assert held.count == 0


@pytest.mark.parametrize("hook", ["before_request", "url_value_preprocessor"])
def test_a_hook_may_start_a_task_that_the_view_awaits(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession], held: Held, hook: str
) -> None:
    async def load() -> int:
        await asyncio.sleep(0.01)
        return await count_users()

    async def start() -> None:
        g.task = asyncio.create_task(load())

    if hook == "before_request":
        app.before_request(start)
    else:
        app.url_value_preprocessor(lambda *_: app.ensure_sync(start)())

    @app.get("/")
    async def view() -> str:
        return f"{await g.task} {await session.scalar(text('SELECT 1'))}"

    assert app.test_client().get("/").text == "0 1"
    assert held.count == 0


def test_a_task_that_outlived_its_context_is_told_so_at_its_first_use(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession], held: Held
) -> None:
    tasks: list[asyncio.Task[int]] = []
    answered = threading.Event()

    async def late() -> int:
        await asyncio.get_running_loop().run_in_executor(None, answered.wait)
        return await count_users()

    async def view() -> None:
        tasks.append(asyncio.create_task(late()))

    serve(app, view)
    answered.set()

    async def end() -> int:
        return await tasks[0]

    with pytest.raises(RuntimeError, match=r"with app\.app_context"):
        run(end)
    assert held.count == 0


def test_a_task_that_kept_the_session_of_its_view_is_refused_and_holds_nothing(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession], held: Held
) -> None:
    tasks: list[asyncio.Task[object]] = []
    answered = threading.Event()

    async def late(kept: AsyncSession) -> object:
        await asyncio.get_running_loop().run_in_executor(None, answered.wait)
        return await kept.scalar(text("SELECT 1"))

    async def view() -> None:
        assert await count_users() == 0
        tasks.append(asyncio.create_task(late(session())))

    serve(app, view)
    answered.set()

    async def end() -> object:
        return await tasks[0]

    with raises(InvalidRequestError, "[closed-session]"):
        run(end)
    assert held.count == 0


def test_a_session_of_a_tests_own_can_be_used_after_the_requests_that_had_it(
    app: Flask, async_engine: AsyncEngine, held: Held
) -> None:
    own = AsyncSession(async_engine)
    FlaskAsyncScopedSession(lambda: own, app)

    async def count() -> int | None:
        number = await own.scalar(select(func.count()).select_from(User))
        await own.close()
        return number

    for _ in range(2):
        serve(app, count_users)
        assert run(count) == 0
    assert held.count == 0


# Fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_has_a_loop_and_connections_of_its_own(
    postgresql_url: str, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(FORK)
    for driver, maker in (
        ("asyncpg", "async_sessionmaker(engine)"),
        ("psycopg", "async_sessionmaker(sync_session_class=Routing)"),
    ):
        url = make_url(postgresql_url).set(drivername=f"postgresql+{driver}")
        done = subprocess.run(  # noqa: S603  # a program of this test's own
            # Python warns of forks beside threads, such as the loop's.
            [sys.executable, "-W", "ignore::DeprecationWarning", program],
            env={
                **os.environ,
                "DATABASE_URL": url.render_as_string(hide_password=False),
                "MAKER": maker,
            },
            check=False,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert (done.stdout, done.stderr) == ("child: ok\nparent: 0 1\n", "")


FORK = """
import gc, os, sys, warnings
from flask import Flask
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session
from flask_sqlalchemy_session.asyncio import (
    FlaskAsyncScopedSession,
    use_one_event_loop,
)

app = Flask("shop")
use_one_event_loop(app)
engine = create_async_engine(os.environ["DATABASE_URL"])

class Routing(Session):
    def get_bind(self, *_, **__):
        return engine.sync_engine

session = FlaskAsyncScopedSession(eval(os.environ["MAKER"]), app)

async def backend():
    return await session.scalar(text("SELECT pg_backend_pid()"))

async def backend_beside():
    async with engine.connect() as connection:  # leaves one idle in the pool
        return await connection.scalar(text("SELECT pg_backend_pid()"))

with app.app_context():
    before = app.ensure_sync(backend)()
    beside = app.ensure_sync(backend_beside)()
    xid = text("SELECT txid_current()::text")
    async def transaction():
        return await session.scalar(xid)
    begun = app.ensure_sync(transaction)()
    child = os.fork()
    if not child:
        mine = app.ensure_sync(backend)()
        assert mine not in (before, beside), "the parent's connection"
        with app.app_context():
            assert app.ensure_sync(backend)() not in (before, beside)
        gc.collect()
        print("child: ok", flush=True)
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    same = (before, begun) == (
        app.ensure_sync(backend)(), app.ensure_sync(transaction)()
    )
    print("parent:", status, int(same))
"""


# Tasks that begin at once


@pytest.mark.skipif(sys.version_info < (3, 12), reason="no loop begins them at once")
def test_a_loop_that_begins_tasks_at_once_mixes_no_results(
    app: Flask,
    session: FlaskAsyncScopedSession[AsyncSession],
    async_engine: AsyncEngine,
) -> None:
    def select_one(own: Session, number: int) -> object:
        with app.app_context():  # which ends where nothing can be awaited
            session().sync_session.execute(text("SELECT 0"))
        return own.scalar(text(f"SELECT {number}"))

    async def use(number: int) -> object:
        async with AsyncSession(async_engine) as own:
            return await own.run_sync(select_one, number)

    async def use_all() -> list[object]:
        loop = asyncio.get_running_loop()
        before = loop.get_task_factory()
        if sys.version_info >= (3, 12):
            loop.set_task_factory(asyncio.eager_task_factory)
        try:
            one = await use(1)
            return [one, *await asyncio.gather(use(2), use(3))]
        finally:
            loop.set_task_factory(before)

    run(async_engine.dispose)  # for the connections to be made by such tasks
    assert run(use_all) == [1, 2, 3]


# Errors say what to do


def test_an_application_without_the_line_is_told_the_line(
    async_engine: AsyncEngine,
) -> None:
    app = Flask("shop")
    session = FlaskAsyncScopedSession(async_sessionmaker(async_engine), app)

    @app.get("/")
    async def view() -> NoReturn:
        await session.execute(text("SELECT 1"))
        pytest.fail("it was executed")

    app.testing = True
    with pytest.raises(RuntimeError, match=r"'shop'.*'use_one_event_loop\(app\)'"):
        app.test_client().get("/")
    with app.app_context():
        assert not hasattr(current_async_session, "execute")
    use_one_event_loop(app)
    with app.app_context():
        assert hasattr(current_async_session, "execute")


def test_an_application_that_runs_async_views_its_own_way_is_trusted(
    async_engine: AsyncEngine, held: Held
) -> None:
    class Shop(Flask):
        def async_to_sync(
            self, func: Callable[..., Coroutine[object, object, T]]
        ) -> Callable[..., T]:
            async def called() -> T:
                return await func()

            return lambda: run(called)

    app = Shop("shop")
    FlaskAsyncScopedSession(async_sessionmaker(async_engine), app)
    with app.app_context():
        assert app.ensure_sync(count_users)() == 0
        assert held.count == 1
    assert held.count == 0


def test_outside_a_context_there_is_no_session(
    session: FlaskAsyncScopedSession[AsyncSession],
) -> None:
    for use in (session, lambda: current_async_session.info, lambda: session.info):
        with pytest.raises(RuntimeError, match=r"with app\.app_context"):
            use()
    assert not hasattr(session, "info")
    assert not hasattr(session.proxy, "info")


def test_a_copy_of_the_proxy_outside_a_context_says_what_to_do() -> None:
    for function in (copy.copy, copy.deepcopy):
        with pytest.raises(RuntimeError, match=r"with app\.app_context\(\):"):
            function(current_async_session)


def test_an_application_that_was_not_set_up_is_told_how(app: Flask) -> None:
    with (
        app.app_context(),
        pytest.raises(RuntimeError, match=r"'FlaskAsyncScopedSession\(session_f.*app"),
    ):
        current_async_session.add(User())


def test_a_name_in_use_is_an_error_that_changes_nothing(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession]
) -> None:
    before = dict(app.extensions["sqlalchemy_async_session"])
    with pytest.raises(RuntimeError, match=r"FlaskAsyncScopedSession\(.*name="):
        FlaskAsyncScopedSession(session.session_factory, app)
    assert app.extensions["sqlalchemy_async_session"] == before
    session.init_app(app)


def test_a_factory_must_make_async_sessions(app: Flask) -> None:
    with pytest.raises(TypeError, match="async_sessionmaker"):
        FlaskAsyncScopedSession(None, app)  # type: ignore[arg-type]  # the misuse
    assert "sqlalchemy_async_session" not in app.extensions
    sync = FlaskAsyncScopedSession(Session, app)  # type: ignore[type-var]  # the misuse
    with app.app_context(), pytest.raises(TypeError, match="AsyncSession, but"):
        sync()


def test_keyword_arguments_reach_the_factory_once(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession]
) -> None:
    with app.app_context():
        assert session(info={"shop": 1}).info == {"shop": 1}
        with pytest.raises(InvalidRequestError, match="made already"):
            session(info={"shop": 2})
    plain = FlaskAsyncScopedSession(lambda: AsyncSession(), app, name="plain")  # noqa: PLW0108  # it takes no arguments
    with app.app_context(), pytest.raises(TypeError, match="does not take them"):
        plain(info={})


def test_configure_reaches_the_factory(app: Flask) -> None:
    session = FlaskAsyncScopedSession(async_sessionmaker(), app)
    session.configure(info={"shop": 1})
    with app.app_context():
        assert session().info == {"shop": 1}
    plain = FlaskAsyncScopedSession(AsyncSession, app, name="plain")
    with pytest.raises(TypeError, match="async_sessionmaker"):
        plain.configure(info={})


def test_what_is_set_on_the_wrapper_is_refused(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession]
) -> None:
    with app.app_context():
        with pytest.raises(AttributeError, match=r"session\(\)\.shop = "):
            session.shop = 1  # type: ignore[attr-defined]  # the misuse
        session.autoflush = False
        assert not session().autoflush


def test_a_subclasss_methods_are_reached(app: Flask, async_engine: AsyncEngine) -> None:
    class ShopSession(AsyncSession):
        async def count(self) -> int:
            return (await self.scalars(select(func.count(User.id)))).one()

    session = FlaskAsyncScopedSession(
        async_sessionmaker(async_engine, class_=ShopSession), app
    )

    async def view() -> None:
        assert await session().count() == 0
        assert await session.proxy.count() == 0
        await session.rollback()
        async with session.begin():
            session.add(User(name="ann"))
        async with session as entered:
            assert await entered.count() == 1
        assert await session.run_sync(lambda sync: len(sync.new)) == 0

    serve(app, view)


def test_the_other_name_is_the_same_class() -> None:
    assert flask_async_scoped_session is FlaskAsyncScopedSession


# Types at run time


class ShopSession(AsyncSession):
    """A session class of an application's own."""


@pytest.mark.parametrize(
    "factory", [ShopSession, async_sessionmaker(class_=ShopSession)]
)
def test_the_proxy_is_of_the_sessions_class_without_a_context(
    factory: AsyncSessionFactory[ShopSession],
) -> None:
    assert isinstance(factory, AsyncSessionFactory)
    session = FlaskAsyncScopedSession(factory)
    assert isinstance(session.proxy, ShopSession)
    assert isinstance(current_async_session, AsyncSession)
    assert not isinstance(current_async_session, ShopSession)
    assert not inspect.isawaitable(session.proxy)


def test_the_proxy_is_of_the_class_that_a_function_makes(app: Flask) -> None:
    session = FlaskAsyncScopedSession(lambda: ShopSession(), app)  # noqa: PLW0108  # no class
    assert isinstance(session.proxy, AsyncSession)
    with app.app_context():
        assert isinstance(session.proxy, ShopSession)
        assert isinstance(current_async_session, ShopSession)


def test_the_types_of_public_names_can_be_looked_up_at_run_time() -> None:
    for public in (
        AsyncSessionFactory,
        AsyncSessionFactory.__call__,
        FlaskAsyncScopedSession,
        use_one_event_loop,
        *(
            function
            for class_ in FlaskAsyncScopedSession.__mro__
            if class_.__module__.startswith("flask_sqlalchemy_session")
            for member in vars(class_).values()
            if inspect.isfunction(function := getattr(member, "fget", member))
        ),
    ):
        assert get_type_hints(public) or public is AsyncSessionFactory
    hint = get_type_hints(FlaskAsyncScopedSession)["session_factory"]
    assert get_origin(hint) is AsyncSessionFactory
