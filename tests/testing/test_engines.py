"""`isolate`: which engines it takes over, and in what state it gives them back."""

from __future__ import annotations

import gc
import os
import signal
import threading
import typing
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import (
    Connection,
    Engine,
    NullPool,
    Pool,
    QueuePool,
    StaticPool,
    create_engine,
    event,
    func,
    insert,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import SingletonThreadPool

from flask_sqlalchemy_session import FlaskScopedSession
from flask_sqlalchemy_session.testing import (
    Isolatable,
    Isolation,
    IsolationError,
    isolate,
)
from tests.support import (
    SET_UP,
    Base,
    Held,
    User,
    many_connections,
    run_script,
    server_url,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flask import Flask

# A process of its own, which may fork. What its child is told is its exit status.
FORKS = (
    SET_UP
    + """
import os
from flask_sqlalchemy_session.testing import IsolationError, isolate


def add(name):
    with app.app_context():
        session.add(User(name=name))
        session.commit()


def is_refused():
    engine.dispose(close=False)  # as SQLAlchemy asks for
    try:
        add("child")
    except IsolationError as error:
        return "[forked]" in str(error)


with isolate(session):
    add("parent")
    child = os.fork()
    if not child:
        sys.exit(0 if is_refused() else 1)  # which ends the block here, too
    assert os.waitpid(child, 0)[1] == 0
    add("parent")
    with app.app_context():
        assert session.scalar(select(func.count(User.id))) == 2
with app.app_context():
    assert session.scalar(select(func.count(User.id))) == 0
"""
)

# It ends after minutes, if nobody cancels it.
FOREVER = """
WITH RECURSIVE numbers(x) AS (
    SELECT 1 WHERE begin() IS NULL UNION ALL SELECT x + 1 FROM numbers WHERE x < 1e9
) SELECT count(*) FROM numbers
"""

DRIVERS = [
    "postgresql+psycopg",
    "postgresql+pg8000",
    "mariadb+pymysql",
    "mariadb+mysqlconnector",
]


def stored(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalars(select(func.count()).select_from(User)).one()


def test_a_listener_of_every_engine_may_set_how_sqlite_writes(
    app: Flask, tmp_path: Path
) -> None:
    def set_pragmas(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA temp_store = MEMORY")

    event.listen(Engine, "connect", set_pragmas)
    try:
        engine = create_engine(f"sqlite:///{tmp_path}/quick.sqlite3")
        Base.metadata.create_all(engine)
        session = FlaskScopedSession(sessionmaker(engine), app)
        with isolate(session), app.app_context():
            session.add(User(name="ann"))
            session.commit()
            assert session.scalar(text("PRAGMA synchronous")) == 1
        assert stored(engine) == 0
        engine.dispose()
    finally:
        event.remove(Engine, "connect", set_pragmas)


def test_an_engine_that_a_sessionmaker_names_is_taken_over_at_the_beginning(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine
) -> None:
    with isolate(session):
        with engine.begin() as connection:
            connection.execute(insert(User).values(name="ann"))
        with app.app_context():
            assert session.scalars(select(User.name)).all() == ["ann"]
    assert stored(engine) == 0


def test_an_engine_can_be_named(app: Flask, engine: Engine) -> None:
    session = FlaskScopedSession(lambda: Session(engine), app)
    with isolate(session, engine), engine.begin() as connection:
        connection.execute(insert(User).values(name="ann"))
    assert stored(engine) == 0


@pytest.mark.parametrize("dispose", [False, True])
def test_an_engine_that_was_used_before_a_session_reached_it_is_refused(
    app: Flask, engine: Engine, dispose: bool
) -> None:
    session = FlaskScopedSession(lambda: Session(engine), app)
    with isolate(session), app.app_context():
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        if dispose:  # which makes another pool
            engine.dispose()
        with pytest.raises(IsolationError, match=r"isolate\(session, engine\)"):
            session.execute(text("SELECT 1"))


def test_a_session_may_be_bound_to_a_connection_of_the_block(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine
) -> None:
    bound = FlaskScopedSession(lambda: Session(opened[-1]), app, name="bound")
    opened: list[Connection] = []
    with isolate(session, bound):
        with engine.connect() as connection, app.app_context():
            opened.append(connection)
            bound.add(User(name="ann"))
            bound.commit()
            connection.commit()
        with app.app_context():
            assert session.scalars(select(User.name)).all() == ["ann"]
    assert stored(engine) == 0


def test_a_database_without_savepoints_is_told_so(app: Flask) -> None:
    pytest.importorskip("duckdb_engine")
    engine = create_engine("duckdb:///:memory:")
    session = FlaskScopedSession(sessionmaker(engine), app)
    with (
        isolate(session),
        app.app_context(),
        pytest.raises(IsolationError, match=r"refuses savepoints \(.*SAVEPOINT"),
    ):
        session.execute(text("SELECT 1"))
    engine.dispose()


@pytest.fixture(params=DRIVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine on a server that no connection is open to yet."""
    drivername: str = request.param
    if drivername.endswith("mysqldb"):
        pytest.importorskip("MySQLdb")
    engine = create_engine(server_url(drivername, request))
    yield engine
    engine.dispose()


def test_a_connection_keeps_the_mode_that_a_listener_gave_it(
    app: Flask, server: Engine
) -> None:
    @event.listens_for(server, "connect")
    def _(connection: Any, _: object) -> None:
        if callable(connection.autocommit):
            connection.autocommit(True)
        else:
            connection.autocommit = True

    session = FlaskScopedSession(sessionmaker(server), app)
    with isolate(session), app.app_context():
        session.execute(text("SELECT 1"))
    with server.connect() as connection:
        driver: Any = connection.connection.driver_connection
        get = getattr(driver, "get_autocommit", lambda: driver.autocommit)
        assert get()


def test_a_connection_keeps_the_isolation_level_that_a_listener_gave_it(
    app: Flask, server: Engine
) -> None:
    @event.listens_for(server, "connect")
    def _(connection: Any, _: object) -> None:
        # Neither is the default of either database.
        if server.dialect.name == "postgresql":
            set_level = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL "
            connection.cursor().execute(f"{set_level} SERIALIZABLE")
        else:
            set_level = "SET SESSION TRANSACTION ISOLATION LEVEL "
            connection.cursor().execute(f"{set_level} READ COMMITTED")
        connection.commit()

    with server.connect() as connection:
        level = connection.get_isolation_level()
    server.dispose()
    session = FlaskScopedSession(sessionmaker(server), app)
    with isolate(session), app.app_context():
        options = {"isolation_level": "REPEATABLE READ"}
        session.connection(execution_options=options)
        session.execute(text("SELECT 1"))
    with server.connect() as connection:
        assert connection.get_isolation_level() == level
    assert level in ("SERIALIZABLE", "READ COMMITTED")


def test_a_connection_that_is_not_reset_has_no_transaction_left(
    app: Flask, postgresql_url: str
) -> None:
    engines = [create_engine(postgresql_url, pool_reset_on_return=None) for _ in "ab"]
    sessions = [
        FlaskScopedSession(sessionmaker(engine), app, name=str(id(engine)))
        for engine in engines
    ]
    with isolate(*sessions), app.app_context():
        for session in sessions:
            session.execute(text("SELECT 1"))
    for engine in engines:
        driver: Any = engine.raw_connection().driver_connection
        assert driver.info.transaction_status == 0  # idle
        engine.dispose()


@pytest.mark.parametrize("pool", [NullPool, StaticPool, SingletonThreadPool])
def test_a_pool_of_another_sort_tells_its_status_as_outside(
    app: Flask, tmp_path: Path, pool: type[Pool]
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/pool.sqlite3", poolclass=pool)
    session = FlaskScopedSession(sessionmaker(engine), app)
    outside = engine.pool.status().partition(" ")[0]
    with isolate(session), app.app_context():
        session.execute(select(1))
        assert engine.pool.status().partition(" ")[0] == outside
    engine.dispose()


class TestAListenerOfThePool:
    def test_finds_what_one_of_new_connections_has_kept(
        self, app: Flask, tmp_path: Path
    ) -> None:
        engine = create_engine(f"sqlite:///{tmp_path}/kept.sqlite3")
        session = FlaskScopedSession(sessionmaker(engine), app)
        found: list[object] = []

        @event.listens_for(engine, "connect")
        def keep(_: object, record: Any) -> None:
            record.info["process"] = 1

        @event.listens_for(engine, "checkout")
        def find(_: object, record: Any, __: object) -> None:
            found.append(record.info["process"])

        with isolate(session), app.app_context():
            session.execute(text("SELECT 1"))
            with engine.connect():
                assert found == [1, 1]
        engine.dispose()

    def test_that_is_removed_in_the_block_is_removed_for_good(
        self, app: Flask, session: FlaskScopedSession[Session], engine: Engine
    ) -> None:
        heard: list[object] = []

        def listen(*arguments: object) -> None:
            heard.append(arguments)

        event.listen(engine, "checkout", listen)
        with isolate(session), app.app_context():
            session.execute(text("SELECT 1"))
            assert len(heard) == 1
            event.remove(engine, "checkout", listen)
            session.rollback()
            session.execute(text("SELECT 1"))
        engine.connect().close()
        assert len(heard) == 1

    def test_that_is_set_in_the_block_stays_until_it_is_removed(
        self, app: Flask, session: FlaskScopedSession[Session], engine: Engine
    ) -> None:
        heard: list[object] = []

        def listen(*arguments: object) -> None:
            heard.append(arguments)

        with isolate(session), app.app_context():
            event.listen(engine, "checkout", listen)
            session.execute(text("SELECT 1"))
            assert len(heard) == 1
        engine.connect().close()
        assert len(heard) == 2
        event.remove(engine, "checkout", listen)
        engine.connect().close()
        assert len(heard) == 2

    def test_of_new_connections_that_is_set_in_the_block_stays_too(
        self, app: Flask, tmp_path: Path
    ) -> None:
        engine = create_engine(f"sqlite:///{tmp_path}/heard.sqlite3")
        session = FlaskScopedSession(sessionmaker(engine), app)
        heard: list[object] = []

        def listen(*arguments: object) -> None:
            heard.append(arguments)

        with isolate(session):
            event.listen(engine, "connect", listen)
        engine.connect().close()
        assert len(heard) == 1
        event.remove(engine, "connect", listen)
        engine.dispose()
        engine.connect().close()
        assert len(heard) == 1
        engine.dispose()


@pytest.mark.parametrize(
    ("url", "other"),
    [
        ("sqlite:///{}/one.sqlite3", "sqlite+pysqlite:///{}/one.sqlite3"),
        ("sqlite:///file:{}/one.sqlite3?mode=rwc&uri=true",) * 2,
        ("sqlite:///file:{}?mode=memory&cache=shared&uri=true",) * 2,
    ],
    ids=["driver", "mode", "memory"],
)
def test_engines_whose_urls_lead_to_one_database_share_a_connection(
    url: str, other: str, app: Flask, tmp_path: Path
) -> None:
    first, second = (
        create_engine(each.format(tmp_path), poolclass=QueuePool)
        for each in (url, other)
    )
    with first.connect():  # a database in memory lasts as long
        Base.metadata.create_all(first)
        session = FlaskScopedSession(sessionmaker(first), app)
        reading = FlaskScopedSession(sessionmaker(second), app, name="reading")
        with isolate(session, reading), app.app_context():
            session.add(User(name="ann"))
            session.commit()
            assert reading.scalars(select(User.name)).all() == ["ann"]
        assert stored(second) == 0
    first.dispose()
    second.dispose()


def test_a_sync_and_an_async_engine_of_one_database_are_refused_at_once(
    app: Flask, tmp_path: Path
) -> None:
    path = f"{tmp_path}/one.sqlite3"
    engine = create_engine(f"sqlite:///{path}")
    awaited = create_async_engine(f"sqlite+aiosqlite:///{path}")
    session = FlaskScopedSession(sessionmaker(engine), app)
    with pytest.raises(IsolationError, match="a sync and an async driver"):
        isolate(session, awaited).__enter__()


def test_engines_of_one_database_with_different_drivers_are_refused_at_once(
    app: Flask, mariadb_url: str
) -> None:
    engines = [
        create_engine(make_url(mariadb_url).set(drivername=f"mariadb+{driver}"))
        for driver in ("pymysql", "mysqlconnector")
    ]
    pools = [engine.pool for engine in engines]
    first, second = (
        FlaskScopedSession(sessionmaker(engine), app, name=engine.driver)
        for engine in engines
    )
    with pytest.raises(IsolationError, match="different drivers"):
        isolate(first, second).__enter__()
    assert [engine.pool for engine in engines] == pools
    with isolate(first), app.app_context():
        first.execute(text("SELECT 1"))


# PyMySQL's file on the socket may still have to write something when it is dropped.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored.*BufferedRWPair:pytest.PytestUnraisableExceptionWarning"
)
def test_a_connection_that_the_server_ended_is_told_so(
    app: Flask, server: Engine
) -> None:
    own, end = "connection_id()", "KILL {}"
    if server.dialect.name == "postgresql":
        own, end = "pg_backend_pid()", "SELECT pg_terminate_backend({})"
    other = create_engine(server.url)
    held, pool = Held(server), server.pool
    session = FlaskScopedSession(sessionmaker(server), app)
    with pytest.raises(IsolationError, match="was lost"), isolate(session):  # noqa: PT012  # the end of the block
        with app.app_context(), other.connect() as ending:
            backend = session.scalar(text(f"SELECT {own}"))
            ending.execute(text(end.format(backend)))
            with suppress(DBAPIError):
                while True:  # it takes a moment
                    session.execute(text("SELECT 1"))
        with app.app_context(), pytest.raises(IsolationError, match="was lost"):
            session.execute(text("SELECT 1"))
    assert held.count == 0
    assert server.pool is pool
    with app.app_context():
        assert session.scalar(text("SELECT 1")) == 1
    other.dispose()


def test_a_statement_is_cancelled_by_another_thread(app: Flask, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/long.sqlite3")
    session = FlaskScopedSession(sessionmaker(engine), app)
    began = threading.Event()
    with isolate(session), app.app_context():
        raw: Any = session.connection().connection.driver_connection
        raw.create_function("begin", 0, began.set)

        def cancel() -> None:
            assert began.wait(30)
            raw.interrupt()

        thread = threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(DBAPIError, match="interrupted"):
            session.execute(text(FOREVER))
        thread.join()
    engine.dispose()


class Interruption(BaseException):
    """What a signal raises, in the middle of a statement."""


@pytest.mark.filterwarnings(
    "ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize(
    "server", ["postgresql+pg8000", "mariadb+pymysql"], indirect=True
)
def test_a_connection_whose_statement_was_interrupted_is_dropped(
    app: Flask, server: Engine
) -> None:
    def interrupt(*_: object) -> None:
        raise Interruption

    session = FlaskScopedSession(sessionmaker(server), app)
    sleep = "pg_sleep" if server.dialect.name == "postgresql" else "sleep"
    main = threading.main_thread().ident
    timer = threading.Timer(0.5, signal.pthread_kill, [main, signal.SIGUSR1])
    before = signal.signal(signal.SIGUSR1, interrupt)
    with pytest.raises(IsolationError, match="was lost"), isolate(session):  # noqa: PT012  # the end of the block
        with app.app_context():
            session.execute(text("SELECT 1"))
            timer.start()
            with pytest.raises(Interruption):
                session.execute(text(f"SELECT {sleep}(3)"))
        with app.app_context(), pytest.raises(IsolationError, match="was lost"):
            session.execute(text("SELECT 1"))
    signal.signal(signal.SIGUSR1, before)
    gc.collect()  # the socket that was dropped, within what is ignored here
    with app.app_context():
        assert session.scalar(text("SELECT 2")) == 2


def test_a_select_that_writes_is_refused_where_it_can_not_be_undone(
    app: Flask, postgresql_url: str
) -> None:
    engine = create_engine(postgresql_url)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE OR REPLACE FUNCTION add_user(name text) RETURNS void "
                "LANGUAGE sql AS $$ INSERT INTO users (name) VALUES (name) $$"
            )
        )
    session = FlaskScopedSession(sessionmaker(engine), app)
    other = FlaskScopedSession(sessionmaker(engine), app, name="other")
    block = isolate(session, other)
    with pytest.raises(IsolationError), block, app.app_context():  # noqa: PT012  # the end
        session.execute(text("SELECT add_user('ann')"))
        other.execute(insert(User).values(name="bob"))
        other.commit()
        with pytest.raises(IsolationError, match="rolled back"):
            session.rollback()
    Base.metadata.drop_all(engine)
    with engine.begin() as connection:
        connection.execute(text("DROP FUNCTION add_user"))
    engine.dispose()


class TestTheEnd:
    def test_refuses_nothing_of_sessions_that_are_open(
        self, app: Flask, session: FlaskScopedSession[Session], engine: Engine
    ) -> None:
        other = FlaskScopedSession(sessionmaker(engine), app, name="other")
        with app.app_context(), isolate(session, other):
            for number, one in enumerate([session, other, session, other]):
                one.execute(insert(User).values(name=f"user {number}"))
        assert stored(engine) == 0

    def test_lets_a_listener_use_the_connection_of_a_session_that_is_open(
        self, app: Flask, session: FlaskScopedSession[Session], engine: Engine
    ) -> None:
        @event.listens_for(engine, "checkin")
        def forget_the_tenant(connection: Any, _: object) -> None:
            connection.cursor().execute("SELECT 1").close()
            heard.append(connection)

        heard: list[object] = []
        with app.app_context(), isolate(session):
            session.execute(text("SELECT 1"))
        assert len(heard) == 1

    @pytest.mark.parametrize("connected", [False, True])
    def test_gives_an_engine_its_pool_back_when_an_outer_block_ends_first(
        self,
        app: Flask,
        session: FlaskScopedSession[Session],
        engine: Engine,
        connected: bool,
    ) -> None:
        other = FlaskScopedSession(sessionmaker(engine), app, name="other")
        third = FlaskScopedSession(sessionmaker(engine), app, name="third")
        pool = engine.pool
        outer, middle, inner = isolate(session), isolate(other), isolate(third)
        outer.__enter__()
        with app.app_context():
            session.execute(insert(User).values(name="ann"))
            session.commit()
        middle.__enter__()
        inner.__enter__()
        with app.app_context():
            if connected:
                other.execute(insert(User).values(name="bob"))
                other.commit()
        inner.__exit__(None, None, None)
        outer.__exit__(None, None, None)
        with (
            pytest.raises(IsolationError, match="has ended")
            if connected
            else nullcontext()
        ):
            middle.__exit__(None, None, None)
        assert engine.pool is pool
        assert stored(engine) == 0

    def test_leaves_a_session_that_another_thread_is_inside_of(
        self, app: Flask, session: FlaskScopedSession[Session], engine: Engine
    ) -> None:
        inside, ended = threading.Event(), threading.Event()
        told: list[str] = []

        def commit() -> None:
            with app.app_context():
                event.listen(session(), "before_commit", wait)
                session.execute(insert(User).values(name="ann"))
                try:
                    session.commit()
                except IsolationError as error:
                    told.append(str(error))

        def wait(_: object) -> None:
            inside.set()
            ended.wait()

        thread = threading.Thread(target=commit)
        pool = engine.pool
        with isolate(session):
            thread.start()
            inside.wait()
        ended.set()
        thread.join()
        assert engine.pool is pool
        assert stored(engine) == 0
        assert "has ended" in told[0]

    @pytest.mark.parametrize("server", ["mariadb+mysqldb"], indirect=True)
    def test_keeps_what_it_left_open_from_the_connection(
        self, app: Flask, server: Engine
    ) -> None:
        session = FlaskScopedSession(sessionmaker(server), app)
        with isolate(session):
            left = server.raw_connection()
            cursor = left.cursor()
            cursor.execute("SELECT 1")
        with server.connect() as connection:
            rows = connection.execution_options(yield_per=1).execute(
                text("SELECT 1 UNION SELECT 2 UNION SELECT 3")
            )
            assert rows.fetchone() is not None
            cursor.close()
            assert len(rows.all()) == 2
        left.close()


def test_the_end_frees_the_object_while_threads_make_sessions(
    app: Flask, tmp_path: Path
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/raced.sqlite3")
    Base.metadata.create_all(engine)
    session = FlaskScopedSession(sessionmaker(engine), app)
    stop = threading.Event()
    pool = engine.pool

    def make() -> None:
        while not stop.is_set():
            with app.app_context():
                session()

    threads = [threading.Thread(target=make) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        with isolate(session), app.app_context():
            session.add(User(name="ann"))
            session.commit()
        assert engine.pool is pool
    stop.set()
    for thread in threads:
        thread.join()
    assert stored(engine) == 0
    engine.dispose()


def test_the_types_can_be_asked_at_run_time(
    session: FlaskScopedSession[Session],
) -> None:
    assert isinstance(session, Isolatable)
    assert not isinstance(session.session_factory, Isolatable)
    assert typing.get_type_hints(isolate)["return"] is Isolation
    for method in (Isolation.__enter__, Isolation.__exit__, Isolation.__call__):
        assert typing.get_type_hints(method)


@many_connections
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_that_is_forked_in_a_block_is_refused_and_spoils_nothing(
    engine: Engine,
) -> None:
    assert not run_script(FORKS, engine)
