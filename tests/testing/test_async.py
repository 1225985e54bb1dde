"""`isolate` for async sessions, on each driver and with the engine's own pool."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from sqlalchemy import func, insert, make_url, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession
from flask_sqlalchemy_session.asyncio import (
    FlaskAsyncScopedSession,
    use_one_event_loop,
)
from flask_sqlalchemy_session.testing import IsolationError, isolate
from tests.async_support import async_url
from tests.support import Base, Held, User

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    from sqlalchemy import Engine

DATABASES: Mapping[str, Mapping[str, Any]] = {
    "asyncpg": {},
    "asyncpg-autocommit": {"isolation_level": "AUTOCOMMIT"},
    "psycopg": {},
    "psycopg-autocommit": {"isolation_level": "AUTOCOMMIT"},
    "aiosqlite": {},
    "aiosqlite-autocommit": {"isolation_level": "AUTOCOMMIT"},
    "aiosqlite-memory": {},
}


@pytest.fixture
def app() -> Flask:
    app = Flask("shop")
    app.testing = True
    use_one_event_loop(app)
    return app


@pytest.fixture(params=DATABASES)
def engine(
    request: pytest.FixtureRequest, tmp_path: Path, app: Flask
) -> Iterator[AsyncEngine]:
    """An engine with an empty table, which every test has to leave empty."""
    database: str = request.param
    driver, _, rest = database.partition("-")
    if rest == "memory":
        url = make_url("sqlite+aiosqlite://")
    else:
        url = async_url(driver, request, tmp_path)
    engine = create_async_engine(url, **DATABASES[database])
    pool, held = engine.pool, Held(engine.sync_engine)

    async def create() -> None:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

    async def drop() -> None:
        async with engine.connect() as connection:
            stored = await connection.scalar(select(func.count()).select_from(User))
            await connection.run_sync(Base.metadata.drop_all)
            await connection.commit()
        await engine.dispose()
        assert stored == 0

    app.ensure_sync(create)()
    yield engine
    assert engine.pool is pool
    assert held.count == 0
    app.ensure_sync(drop)()


one_driver = pytest.mark.parametrize("engine", ["asyncpg"], indirect=True)
each_driver = pytest.mark.parametrize(
    "engine", ["asyncpg", "psycopg", "aiosqlite"], indirect=True
)


@pytest.fixture
def autocommit(engine: AsyncEngine, request: pytest.FixtureRequest) -> bool:
    return "autocommit" in request.node.callspec.params["engine"]


@pytest.fixture
def session(app: Flask, engine: AsyncEngine) -> FlaskAsyncScopedSession[AsyncSession]:
    return FlaskAsyncScopedSession(async_sessionmaker(engine), app)


async def add(session: FlaskAsyncScopedSession[AsyncSession], name: str) -> None:
    """Write a user, without a commit."""
    await session.execute(insert(User).values(name=name))


async def names(session: FlaskAsyncScopedSession[AsyncSession]) -> list[str]:
    return [*await session.scalars(select(User.name).order_by(User.name))]


@pytest.fixture
def requests(app: Flask, session: FlaskAsyncScopedSession[AsyncSession]) -> Requests:
    return Requests(app, session)


class Requests:
    """An application's views, and what a test asks of them."""

    def __init__(
        self, app: Flask, session: FlaskAsyncScopedSession[AsyncSession]
    ) -> None:
        self.client = app.test_client

        @app.put("/<name>")
        async def put(name: str) -> str:
            await add(session, name)
            await session.commit()
            return ""

        @app.post("/<name>")
        async def forget_to_commit(name: str) -> str:
            await add(session, name)
            return ""

        @app.get("/")
        async def get() -> list[str]:
            return await names(session)

    def put(self, name: str) -> None:
        assert self.client().put(f"/{name}").status_code == 200

    def names(self) -> object:
        return self.client().get("/").get_json()


def test_a_commit_is_seen_by_later_requests(
    session: FlaskAsyncScopedSession[AsyncSession], requests: Requests
) -> None:
    with isolate(session):
        requests.put("ann")
        requests.put("bob")
        assert requests.names() == ["ann", "bob"]
    assert requests.names() == []
    with isolate(session):
        requests.put("cid")
        assert requests.names() == ["cid"]


def test_what_a_view_forgets_to_commit_is_gone(
    session: FlaskAsyncScopedSession[AsyncSession],
    requests: Requests,
    autocommit: bool,
) -> None:
    with isolate(session):
        requests.client().post("/ann")
        assert requests.names() == (["ann"] if autocommit else [])


def test_transactions_and_savepoints_do_what_they_do(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession], autocommit: bool
) -> None:
    async def use() -> None:
        async with session.begin():
            await add(session, "ann")
        with suppress(LookupError):
            async with session.begin():
                await add(session, "bob")
                raise LookupError
        kept = ["ann", "bob"] if autocommit else ["ann"]
        assert await names(session) == kept
        with suppress(LookupError):
            async with session.begin_nested():
                await add(session, "cid")
                raise LookupError
        async with session.begin_nested():
            await add(session, "dee")
        await session.commit()
        await add(session, "eve")
        await session.rollback()
        kept += ["dee", "eve"] if autocommit else ["dee"]
        assert await names(session) == kept

    with isolate(session), app.app_context():
        app.ensure_sync(use)()


def test_an_integrity_error_leaves_what_was_committed(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession], autocommit: bool
) -> None:
    async def use() -> None:
        session.add(User(id=1, name="ann"))
        await session.commit()
        session.add(User(id=2, name="bob"))
        await session.flush()
        with pytest.raises(IntegrityError):
            await session.execute(insert(User).values(id=1, name="cid"))
        await session.rollback()
        assert await names(session) == (["ann", "bob"] if autocommit else ["ann"])

    with isolate(session), app.app_context():
        app.ensure_sync(use)()


def test_a_context_that_only_read_keeps_what_a_nested_one_commits(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession]
) -> None:
    async def nested() -> None:
        with app.app_context():
            await add(session, "ann")
            await session.commit()
            await session.remove()

    async def use() -> None:
        assert await names(session) == []
        await nested()
        assert await names(session) == ["ann"]

    with isolate(session):
        with app.app_context():
            app.ensure_sync(use)()
        with app.app_context():
            assert app.ensure_sync(names)(session) == ["ann"]


@each_driver
def test_what_another_committed_can_not_be_rolled_back(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession]
) -> None:
    async def use() -> None:
        await add(session, "ann")
        with app.app_context():
            await add(session, "bob")
            await session.commit()
            await session.remove()
        with pytest.raises(IsolationError, match="rolled back"):
            await session.rollback()
        assert await names(session) == ["ann", "bob"]

    error = pytest.raises(IsolationError, match="rolled back")
    with error, isolate(session), app.app_context():
        app.ensure_sync(use)()


@each_driver
def test_tasks_take_turns(
    app: Flask,
    session: FlaskAsyncScopedSession[AsyncSession],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def put(number: int) -> None:
        with app.app_context():
            assert await session.scalar(select(func.count(User.id))) is not None
            await add(session, f"{number:02}")
            await session.commit()
            await session.remove()

    async def use() -> list[str]:
        await asyncio.gather(*map(put, range(20)))
        return await names(session)

    async def read() -> None:
        with app.app_context():
            rows = await session.stream_scalars(
                select(User.name), execution_options={"yield_per": 1}
            )
            assert len([name async for name in rows]) == 20
            await session.remove()

    async def read_at_once() -> None:
        await asyncio.gather(*(read() for _ in range(5)))

    with isolate(session), app.app_context():
        assert app.ensure_sync(use)() == [f"{number:02}" for number in range(20)]
        app.ensure_sync(read_at_once)()
    assert not caplog.records  # as of a connection that was lost


@each_driver
def test_requests_can_run_at_the_same_time(
    session: FlaskAsyncScopedSession[AsyncSession], requests: Requests
) -> None:
    expected = [f"{number:02}" for number in range(20)]
    with isolate(session):
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(requests.put, expected))
        assert requests.names() == expected


@each_driver
def test_a_response_can_stream(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession], requests: Requests
) -> None:
    async def use() -> list[str]:
        async def stream() -> AsyncIterator[str]:
            query = select(User.name).order_by(User.name)
            rows = await session.stream_scalars(
                query, execution_options={"yield_per": 2}
            )
            async for name in rows:
                yield name
                with app.app_context():  # another has its turn meanwhile
                    await names(session)
                    await session.remove()

        return [name async for name in stream()]

    with isolate(session):
        for name in "abcde":
            requests.put(name)
        with app.app_context():
            assert app.ensure_sync(use)() == [*"abcde"]


@each_driver
def test_a_task_that_is_cancelled_leaves_the_others(
    app: Flask,
    engine: AsyncEngine,
    session: FlaskAsyncScopedSession[AsyncSession],
    requests: Requests,
) -> None:
    slow = "SELECT pg_sleep(30)"
    if "aiosqlite" in str(engine.url):
        slow = (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
            "WHERE i < 2000000) SELECT count(*) FROM n"
        )

    async def never_ends(executing: asyncio.Event) -> None:
        with app.app_context():
            await add(session, "bob")
            executing.set()
            try:
                await session.execute(text(slow))
            finally:
                await session.remove()

    async def use() -> None:
        executing = asyncio.Event()
        task = asyncio.create_task(never_ends(executing))
        await executing.wait()
        await asyncio.sleep(0.05)  # for the statement to be sent
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with isolate(session):
        requests.put("ann")
        with app.app_context():
            app.ensure_sync(use)()
        assert requests.names() == ["ann"]
        requests.put("cid")
        assert requests.names() == ["ann", "cid"]


@pytest.mark.leaks
@pytest.mark.filterwarnings("ignore:The garbage collector")  # SQLAlchemy's own words
@one_driver  # one of those that can end a connection without awaiting that
class TestASessionThatIsDropped:
    def test_leaves_nothing(
        self,
        app: Flask,
        engine: AsyncEngine,
        session: FlaskAsyncScopedSession[AsyncSession],
        requests: Requests,
    ) -> None:
        async def drop() -> None:
            await AsyncSession(engine).execute(insert(User).values(name="bob"))
            gc.collect()

        with isolate(session):
            requests.put("ann")
            app.ensure_sync(drop)()
            assert requests.names() == ["ann"]

    def test_takes_nothing_from_another(
        self,
        app: Flask,
        engine: AsyncEngine,
        session: FlaskAsyncScopedSession[AsyncSession],
        requests: Requests,
    ) -> None:
        async def drop() -> None:
            dropped = AsyncSession(engine)
            await dropped.execute(insert(User).values(name="ann"))
            await add(session, "bob")
            await session.commit()
            del dropped
            gc.collect()

        found: object = None
        with pytest.raises(IsolationError, match="without a commit"), isolate(session):  # noqa: PT012  # the block
            with app.app_context():
                assert app.ensure_sync(names)(session) == []
                app.ensure_sync(drop)()
            found = requests.names()
        assert found == ["ann", "bob"]


@each_driver
def test_rows_can_be_read_where_nothing_is_awaited(
    app: Flask, session: FlaskAsyncScopedSession[AsyncSession]
) -> None:
    async def use() -> list[int]:
        connection = await session.connection()
        rows = await connection.execute(text("SELECT 1 UNION SELECT 2"))
        return [*rows.scalars()]

    with isolate(session), app.app_context():
        assert app.ensure_sync(use)() == [1, 2]


def test_sync_and_async_sessions_are_isolated_together(
    app: Flask,
    session: FlaskAsyncScopedSession[AsyncSession],
    requests: Requests,
    memory: Engine,
) -> None:
    plain = FlaskScopedSession(sessionmaker(memory), app)
    with isolate(session, plain):
        requests.put("ann")
        with app.app_context():
            plain.add(User(name="bob"))
            plain.commit()
        with app.app_context():
            assert plain.scalars(select(User.name)).all() == ["bob"]
        assert requests.names() == ["ann"]
    with app.app_context():
        assert plain.scalars(select(User.name)).all() == []


def test_a_session_class_finds_its_own_engine(app: Flask, engine: AsyncEngine) -> None:
    class Routing(Session):
        def get_bind(self, *args: Any, **kw: Any) -> Engine:
            return engine.sync_engine

    session = FlaskAsyncScopedSession(
        async_sessionmaker(sync_session_class=Routing), app
    )

    async def use() -> None:
        session.add(User(name="ann"))
        await session.commit()

    with isolate(session):
        with app.app_context():
            app.ensure_sync(use)()
        with app.app_context():
            assert app.ensure_sync(names)(session) == ["ann"]


class TestTheBlock:
    @each_driver
    def test_can_be_in_a_coroutine(
        self, app: Flask, session: FlaskAsyncScopedSession[AsyncSession]
    ) -> None:
        async def use() -> None:
            async with isolate(session):
                await add(session, "ann")
                await session.commit()
                assert await names(session) == ["ann"]
            assert await names(session) == []

        with app.app_context():
            app.ensure_sync(use)()

    @each_driver
    def test_can_be_on_a_loop_of_its_own(self, app: Flask, engine: AsyncEngine) -> None:
        async def use() -> None:
            unconnected = create_async_engine(engine.url)
            session = FlaskAsyncScopedSession(async_sessionmaker(unconnected), app)
            async with isolate(session):
                with app.app_context():
                    await add(session, "ann")
                    await session.commit()
                    assert await names(session) == ["ann"]
                    await session.remove()
            await unconnected.dispose()

        asyncio.run(use())

    @one_driver
    def test_is_not_entered_where_it_could_not_end(
        self, app: Flask, session: FlaskAsyncScopedSession[AsyncSession]
    ) -> None:
        async def use() -> None:
            with pytest.raises(RuntimeError, match="Write 'async with isolate"):
                isolate(session).__enter__()

        app.ensure_sync(use)()
        with isolate(session):
            pass

    @one_driver
    def test_leaves_a_session_that_is_open_there(
        self, app: Flask, session: FlaskAsyncScopedSession[AsyncSession]
    ) -> None:
        async def use() -> None:
            await names(session)
            with pytest.raises(RuntimeError, match="'default' is open"):
                await isolate(session).__aenter__()
            await session.remove()
            async with isolate(session):
                await names(session)

        with app.app_context():
            app.ensure_sync(use)()

    @each_driver
    def test_ends_a_session_that_it_left_open(
        self, app: Flask, session: FlaskAsyncScopedSession[AsyncSession]
    ) -> None:
        with app.app_context():
            with isolate(session):
                app.ensure_sync(add)(session, "ann")
                left = session()
            assert session() is not left
            assert app.ensure_sync(names)(session) == []

    @each_driver
    def test_ends_a_session_that_is_open_in_another_context(
        self, app: Flask, session: FlaskAsyncScopedSession[AsyncSession]
    ) -> None:
        async def use() -> AsyncSession:
            await add(session, "ann")
            return session()

        elsewhere = app.app_context()
        variables = copy_context()
        with isolate(session):
            variables.run(elsewhere.push)
            left = variables.run(app.ensure_sync(use))
            assert left.in_transaction()
        assert not left.in_transaction()
        assert variables.run(app.ensure_sync(names), session) == []
        variables.run(elsewhere.pop)

    @one_driver
    def test_does_not_connect_before_a_session_does(
        self,
        app: Flask,
        engine: AsyncEngine,
        session: FlaskAsyncScopedSession[AsyncSession],
    ) -> None:
        held = Held(engine.sync_engine)
        with isolate(session), app.app_context():
            assert session.get_bind() is engine.sync_engine
            assert held.count == 0
            app.ensure_sync(names)(session)
            assert held.count == 1

    @each_driver
    def test_isolates_the_engine_itself_once_it_is_reached(
        self,
        app: Flask,
        engine: AsyncEngine,
        session: FlaskAsyncScopedSession[AsyncSession],
        requests: Requests,
    ) -> None:
        async def put() -> None:
            async with engine.begin() as connection:
                await connection.execute(insert(User).values(name="bob"))
            await engine.dispose()

        with isolate(session):
            requests.put("ann")
            app.ensure_sync(put)()
            assert requests.names() == ["ann", "bob"]

    @each_driver
    def test_of_one_object_contains_that_of_another(
        self, app: Flask, session: FlaskAsyncScopedSession[AsyncSession]
    ) -> None:
        maker = session.session_factory
        other = FlaskAsyncScopedSession(maker, app, name="other")

        async def put(session: FlaskAsyncScopedSession[AsyncSession]) -> list[str]:
            with app.app_context():
                await add(session, session.name)
                await session.commit()
                found = await names(session)
                await session.remove()
            return found

        with isolate(session):
            assert app.ensure_sync(put)(session) == ["default"]
            with isolate(other):
                assert app.ensure_sync(put)(other) == ["default", "other"]
            with app.app_context():
                assert app.ensure_sync(names)(session) == ["default"]

    @each_driver
    def test_lets_an_option_reach_the_driver(
        self, app: Flask, session: FlaskAsyncScopedSession[AsyncSession]
    ) -> None:
        async def use() -> None:
            await session.connection(
                execution_options={"isolation_level": "AUTOCOMMIT"}
            )
            await add(session, "ann")
            await session.rollback()
            await session.connection(
                execution_options={"isolation_level": "SERIALIZABLE"}
            )
            await add(session, "bob")
            await session.rollback()
            assert await names(session) == ["ann"]

        with isolate(session), app.app_context():
            app.ensure_sync(use)()

    @one_driver
    def test_counts_what_the_driver_is_asked_directly(
        self, app: Flask, session: FlaskAsyncScopedSession[AsyncSession]
    ) -> None:
        async def use() -> None:
            connection = await session.connection()
            raw = (await connection.get_raw_connection()).dbapi_connection
            assert raw is not None

            def insert(session: Session) -> None:
                raw.run_async(
                    lambda driver: driver.execute("INSERT INTO users VALUES (1, 'a')")
                )

            await session.run_sync(insert)
            await session.rollback()
            assert await names(session) == []

        with isolate(session), app.app_context():
            app.ensure_sync(use)()

    @one_driver
    def test_has_one_connection_when_tasks_begin_together(
        self, app: Flask, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        unconnected = create_async_engine(engine.url)
        session = FlaskAsyncScopedSession(async_sessionmaker(unconnected), app)

        async def use() -> None:
            async with isolate(session):
                backends = await asyncio.gather(*(read() for _ in range(5)))
                assert len({*backends}) == 1
            await unconnected.dispose()

        async def read() -> object:
            with app.app_context():
                backend = await session.scalar(select(func.pg_backend_pid()))
                await session.remove()
            return backend

        app.ensure_sync(use)()
        assert not caplog.records  # as of a connection that was lost


class TestRefused:
    @one_driver
    def test_a_second_loop(
        self,
        engine: AsyncEngine,
        session: FlaskAsyncScopedSession[AsyncSession],
        requests: Requests,
    ) -> None:
        async def use() -> None:
            with pytest.raises(IsolationError, match=r"second event loop.*ensure_sync"):
                await engine.connect()

        with isolate(session):
            requests.put("ann")
            asyncio.run(use())
            assert requests.names() == ["ann"]

    @pytest.mark.leaks
    @pytest.mark.filterwarnings("ignore:.*unclosed")  # what the loop left
    @each_driver
    def test_the_end_of_the_loop_before_that_of_the_block(
        self, app: Flask, engine: AsyncEngine
    ) -> None:
        unconnected = create_async_engine(engine.url)
        session = FlaskAsyncScopedSession(async_sessionmaker(unconnected), app)

        async def use() -> None:
            with app.app_context():
                await add(session, "ann")
                await session.commit()
                await session.remove()

        with (
            pytest.raises(IsolationError, match="async with isolate"),
            isolate(session),
        ):
            asyncio.run(use())

    @one_driver
    def test_a_session_bound_to_a_connection_from_outside(
        self, app: Flask, engine: AsyncEngine
    ) -> None:
        async def use() -> None:
            async with engine.connect() as connection:
                session = FlaskAsyncScopedSession(async_sessionmaker(connection), app)
                async with isolate(session):
                    with pytest.raises(IsolationError, match="Bind the session"):
                        await names(session)
                    await session.remove()

        with app.app_context():
            app.ensure_sync(use)()

    @one_driver
    def test_a_session_that_its_factory_has_used(
        self, app: Flask, engine: AsyncEngine
    ) -> None:
        def factory() -> AsyncSession:
            session = AsyncSession(engine)
            session.sync_session.begin()
            return session

        session = FlaskAsyncScopedSession(factory, app)
        error = pytest.raises(IsolationError, match="Begin it where")
        with isolate(session), app.app_context(), error:
            session()


def test_importing_the_module_leaves_the_async_one_alone() -> None:
    program = (
        "import sys; import flask_sqlalchemy_session.testing;"
        "sys.exit('flask_sqlalchemy_session.asyncio' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)  # noqa: S603  # our own program
