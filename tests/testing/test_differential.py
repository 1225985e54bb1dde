"""`isolate`, compared with the real thing on each database and driver.

Each scenario is run twice: for real, on tables that are empty, and inside a block. What
it returns, or the kind of error that it raises, must be the same; or the block refuses
it with an `IsolationError`, where `REFUSED` says so. After the block all is as it was.

With `-v` pytest counts for each driver what was the same and what was refused.
"""

from __future__ import annotations

import gc
import importlib.util
import io
import sqlite3
import sys
import threading
import warnings
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from flask import Flask
from hypothesis import example, given, settings, strategies as st
from sqlalchemy import (
    URL,
    AsyncAdaptedQueuePool,
    Engine,
    String,
    create_engine,
    delete,
    event,
    func,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    sessionmaker,
)
from sqlalchemy.util import await_only, greenlet_spawn

from flask_sqlalchemy_session import FlaskScopedSession
from flask_sqlalchemy_session.testing import IsolationError, isolate
from tests.async_support import run
from tests.support import begin_explicitly, server_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))


DRIVERS = {
    "sqlite": "sqlite3",
    "sqlite-begin": "sqlite3",
    "sqlite-wal": "sqlite3",
    "sqlite-transactions": "sqlite3",
    "sqlite+aiosqlite": "aiosqlite",
    "postgresql+psycopg": "psycopg",
    "postgresql+psycopg2": "psycopg2",
    "postgresql+pg8000": "pg8000",
    "postgresql+asyncpg": "asyncpg",
    "postgresql+psycopg_async": "psycopg",
    "mariadb+pymysql": "pymysql",
    "mariadb+mysqldb": "MySQLdb",
    "mariadb+mysqlconnector": "mysql.connector",
    "mariadb+mariadbconnector": "mariadb",
    "mariadb+asyncmy": "asyncmy",
    "mariadb+aiomysql": "aiomysql",
}


# How a driver's connection is told to make rows, and what makes dictionaries.
ROW_MAKERS = {
    "pysqlite": ("row_factory", "sqlite3", "Row"),
    "psycopg": ("row_factory", "psycopg.rows", "dict_row"),
    "psycopg2": ("cursor_factory", "psycopg2.extras", "RealDictCursor"),
    "pymysql": ("cursorclass", "pymysql.cursors", "DictCursor"),
    "mysqldb": ("cursorclass", "MySQLdb.cursors", "DictCursor"),
}


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


class Shop:
    """An application with two sessions on one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.app = Flask("shop")
        self.session = FlaskScopedSession(sessionmaker(engine), self.app)
        self.other = FlaskScopedSession(sessionmaker(engine), self.app, name="other")

    @property
    def database(self) -> str:
        name = self.engine.dialect.name
        return "mysql" if name in ("mysql", "mariadb") else name

    def add(self, name: str, **values: object) -> None:
        self.session.execute(insert(User).values(name=name, **values))

    def names(self) -> list[str]:
        """Return what another context finds."""
        with self.app.app_context():
            return [*self.session.scalars(select(User.name).order_by(User.name))]

    @property
    def raw(self) -> Any:
        """The session's driver connection."""
        return self.session.connection().connection.driver_connection


@pytest.fixture(scope="module", params=DRIVERS)
def url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> URL:
    database: str = request.param
    if not is_installed(DRIVERS[database]):
        pytest.skip(f"{DRIVERS[database]} is not installed")
    if database == "sqlite-transactions" and sys.version_info < (3, 12):
        pytest.skip("sqlite3 has no attribute for it before Python 3.12")
    if database.startswith("sqlite"):
        name = database.partition("-")[0]
        path = tmp_path_factory.mktemp("db")
        return make_url(f"{name}:///{path}/{database}.sqlite3")
    return server_url(database, request)


def make_engine(url: URL) -> Engine:
    """Make an engine, of which an async one is used as those without `await` are."""
    options = {}
    if "transactions" in str(url.database):
        options["connect_args"] = {"autocommit": False}
    # The module of MariaDB's driver has an escape that Python warns of.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        if url.get_dialect().is_async:
            # The default, for SQLite's files since SQLAlchemy 2.0.38.
            pool = AsyncAdaptedQueuePool
            return create_async_engine(url, poolclass=pool).sync_engine
        return create_engine(url, **options)


def do(engine: Engine, work: Callable[..., T], *arguments: object) -> T:
    """Do what uses an engine, on the event loop if it awaits its driver."""

    async def awaited() -> T:
        return await greenlet_spawn(work, *arguments)

    return run(awaited) if engine.dialect.is_async else work(*arguments)


@pytest.fixture(scope="module")
def engine(url: URL) -> Iterator[Engine]:
    engine = make_engine(url)
    if "begin" in str(url.database):
        begin_explicitly(engine)
    if "wal" in str(url.database):

        @event.listens_for(engine, "connect")
        def _(connection: Any, _: object) -> None:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA foreign_keys = ON")

    do(engine, Base.metadata.drop_all, engine)
    do(engine, Base.metadata.create_all, engine)
    yield engine
    do(engine, Base.metadata.drop_all, engine)
    do(engine, engine.dispose)


@pytest.fixture
def shop(engine: Engine) -> Shop:
    return Shop(engine)


SCENARIOS: dict[str, Callable[[Shop], object]] = {}
REFUSED: dict[str, tuple[str, ...]] = {}


def scenario(
    *, refused: tuple[str, ...] = ()
) -> Callable[[Callable[[Shop], object]], Callable[[Shop], object]]:
    """Add a scenario, and the databases that may refuse it in a block."""

    def add(function: Callable[[Shop], object]) -> Callable[[Shop], object]:
        SCENARIOS[function.__name__] = function
        REFUSED[function.__name__] = refused
        return function

    return add


@scenario()
def commits_and_rollbacks(shop: Shop) -> object:
    with shop.app.app_context():
        shop.add("ann")
        shop.session.commit()
        shop.add("bob")
        shop.session.rollback()
        with shop.session.begin():
            shop.add("cid")
    with shop.app.app_context():
        shop.add("dee")
    return shop.names()


@scenario()
def nested_transactions(shop: Shop) -> object:
    with shop.app.app_context():
        shop.add("ann", id=1)
        with suppress(IntegrityError), shop.session.begin_nested():
            shop.add("bob", id=1)
        with shop.session.begin_nested():
            shop.add("cid", id=2)
        shop.session.commit()
    return shop.names()


@scenario()
def an_error_handler_that_writes(shop: Shop) -> object:
    if shop.database == "sqlite":  # which lets one write at a time
        return None
    with shop.app.app_context():
        shop.add("ann", id=1)
        shop.session.commit()
        with suppress(IntegrityError):
            shop.add("bob", id=1)
        shop.other.execute(insert(User).values(name="error", id=9))
        shop.other.commit()
        shop.session.rollback()
    return shop.names()


@scenario()
def a_statement_after_one_that_failed(shop: Shop) -> object:
    with shop.app.app_context():
        shop.add("ann", id=1)
        with suppress(IntegrityError):
            shop.add("bob", id=1)
        try:
            shop.add("cid", id=2)
        finally:
            shop.session.rollback()
    return shop.names()


@scenario()
def a_cursor_after_a_statement_that_failed(shop: Shop) -> object:
    if shop.engine.dialect.is_async or shop.database == "postgresql":
        return None
    insertion = "INSERT INTO users (id, name) VALUES (1, 'ann')"
    with shop.app.app_context():
        cursor = shop.raw.cursor()
        cursor.execute(insertion)
        with suppress(shop.engine.dialect.loaded_dbapi.IntegrityError):
            cursor.execute(insertion)
        seen = []
        for _ in range(2):
            cursor.execute("SELECT id, name FROM users")
            seen += [cursor.fetchmany(1), cursor.fetchall()]
            cursor.execute("SELECT id, name FROM users")
            seen += [cursor.fetchall()]
    return seen


@scenario()
def a_copy_that_fails(shop: Shop) -> object:
    if shop.engine.driver != "psycopg" or shop.engine.dialect.is_async:
        return None
    error = shop.engine.dialect.loaded_dbapi.Error
    with shop.app.app_context():
        try:
            with shop.raw.cursor().copy("COPY users FROM STDIN") as copy:
                copy.write("no number\n")
        except error:
            shop.other.execute(insert(User).values(name="error", id=9))
            shop.other.commit()
        shop.session.rollback()
        with suppress(error):
            [*shop.raw.cursor().stream("SELECT 1 / 0")]
        shop.session.rollback()
    return shop.names()


@scenario()
def what_only_reads_beside_a_commit(shop: Shop) -> object:
    if shop.database == "sqlite" or shop.engine.dialect.is_async:
        return None
    with shop.app.app_context():
        cursor = shop.raw.cursor()
        if shop.engine.driver == "psycopg":
            with cursor.copy("COPY users TO STDOUT") as rows:
                assert not [*rows]
            assert [*shop.raw.cursor().stream("SELECT 1")] == [(1,)]
        if shop.engine.driver == "psycopg2":
            cursor.copy_expert("COPY users TO STDOUT", io.StringIO())
        if shop.database == "postgresql":
            cursor.execute("NOTIFY news")
        else:
            cursor.execute("DO RELEASE_LOCK('news')")
        with shop.app.app_context():
            shop.add("ann")
            shop.session.commit()
    return shop.names()


@scenario()
def autocommit_after_the_level_was_asked_for(shop: Shop) -> object:
    if shop.engine.driver == "pg8000":  # loses the row for real
        return None
    with shop.engine.connect() as connection:
        connection.get_isolation_level()
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(insert(User).values(name="ann"))
    return shop.names()


@scenario()
def autocommit_of_a_session(shop: Shop) -> object:
    with shop.app.app_context():
        shop.session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        shop.add("ann")
        shop.session.rollback()
        shop.add("bob")
        shop.session.rollback()
    return shop.names()


@scenario()
def another_isolation_level(shop: Shop) -> object:
    with shop.app.app_context():
        shop.session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        shop.add("ann")
        shop.session.commit()
    return shop.names()


@scenario()
def an_export_beside_commits(shop: Shop) -> object:
    with shop.app.app_context():
        shop.session.execute(
            insert(User), [{"name": f"u{number:02}"} for number in range(51)]
        )
        shop.session.commit()
    seen = 0
    with shop.app.app_context():
        options = {"yield_per": 7}
        rows = shop.session.scalars(select(User), execution_options=options)
        for seen, _ in enumerate(rows, 1):
            if shop.database != "sqlite" and seen % 10 == 0:
                with shop.app.app_context():
                    shop.add(f"during {seen}")
                    shop.session.commit()
    return seen, len(shop.names())


@scenario()
def rows_on_the_server_that_are_closed_after_a_rollback(shop: Shop) -> object:
    if shop.database != "postgresql":  # PyMySQL's would be read to their end
        return None
    with shop.app.app_context():
        shop.add("ann")
        shop.session.commit()
        options = {"yield_per": 5}
        rows = shop.session.scalars(select(User.id), execution_options=options)
        shop.session.rollback()
        rows.close()
        shop.session.rollback()
        shop.add("bob")
        shop.session.commit()
    return shop.names()


@scenario()
def a_cursor_on_the_server_whose_name_is_used_again(shop: Shop) -> object:
    if shop.engine.driver != "psycopg" or shop.engine.dialect.is_async:
        return None
    with shop.app.app_context():
        for end in (shop.session.commit, shop.session.rollback):
            cursor = shop.raw.cursor(name="numbers")
            cursor.execute("SELECT 1")
            end()
            cursor.close()
        cursor = shop.raw.cursor("numbers", binary=True)
        cursor.itersize = 10
        cursor.execute("SELECT 2")
        seen = cursor.fetchall()
        cursor.close()
    return seen


@scenario()
def reads_of_every_sort_around_a_commit(shop: Shop) -> object:
    if any(kind in str(shop.engine.url) for kind in ("-begin", "-transactions")):
        return None  # a reader keeps all others from writing to it
    statements = {
        "sqlite": ["EXPLAIN SELECT 1", "PRAGMA table_info(users)", "VALUES (1)"],
        "postgresql": [
            "SET search_path = public",
            "EXPLAIN SELECT 1",
            "TABLE users",
            "DECLARE c CURSOR FOR SELECT 1",
            "FETCH 1 FROM c",
            "LISTEN news",
            "LOCK TABLE users IN ACCESS SHARE MODE",
            "SELECT jsonb_build_object('a', upper('b'))",
        ],
        "mysql": [
            "DESCRIBE users",
            "EXPLAIN SELECT 1",
            "SHOW TABLES",
            "SET @a = 1",
            "# a comment\nSELECT 1",
            "/*! SELECT 1 */",
            "SELECT concat('a', char_length('b'))",
        ],
    }[shop.database]
    with shop.app.app_context():
        for statement in statements:
            shop.session.execute(text(statement))
        inspect(shop.session.connection()).has_table("users")
        with shop.app.app_context():
            shop.add("ann")
            shop.session.commit()
        shop.session.rollback()
    return shop.names()


@scenario()
def listeners_of_the_pool(shop: Shop) -> object:
    seen: list[str] = []
    listeners = {
        name: lambda *_, name=name: seen.append(name)
        for name in ("checkout", "checkin", "reset")
    }
    for name, listener in listeners.items():
        event.listen(shop.engine, name, listener)
    with shop.app.app_context():
        shop.add("ann")
        shop.session.commit()
        pool: Any = shop.engine.pool
        counts = pool.size(), pool.checkedout(), pool.status()
    for name, listener in listeners.items():
        event.remove(shop.engine, name, listener)
    return seen, counts, pool.checkedout()


@scenario(refused=("sqlite", "postgresql", "mysql"))
def several_statements_in_one_string(shop: Shop) -> object:
    if shop.engine.dialect.driver in ("mysqlconnector", "mariadbconnector"):
        return None  # one keeps a result unread, the other crashes at the close
    with shop.app.app_context():
        shop.session.connection().exec_driver_sql(
            "BEGIN; INSERT INTO users (name) VALUES ('ann'); COMMIT"
        )
    return shop.names()


@scenario()
def a_script(shop: Shop) -> object:
    if shop.engine.dialect.driver != "pysqlite":
        return None
    with shop.app.app_context():
        shop.raw.executescript(
            "INSERT INTO users (name) VALUES ('a;b'); -- one; two\n"
            "INSERT INTO users (name) VALUES ('c');"
        )
        shop.session.rollback()
    return shop.names()


@scenario()
def a_script_that_is_not_complete(shop: Shop) -> object:
    if shop.engine.dialect.driver != "pysqlite":
        return None
    with shop.app.app_context():
        shop.raw.executescript("INSERT INTO users (name) VALUES ('a")
    return shop.names()


@scenario(refused=("mysql",))
def autocommit_set_to_a_string(shop: Shop) -> object:
    if shop.database != "mysql":
        return None
    with shop.app.app_context():
        shop.session.execute(text("SET autocommit = 'ON'"))
        shop.add("ann")
        shop.session.rollback()
        shop.session.execute(text("SET autocommit = 0"))
        shop.session.execute(text("SET autocommit = DEFAULT"))
        shop.add("bob")
        shop.session.rollback()
        shop.session.execute(text("SET autocommit = 0"))
    return shop.names()


@scenario(refused=("postgresql",))
def an_engine_that_only_reads(shop: Shop) -> object:
    if shop.database != "postgresql":
        return None
    reading = shop.engine.execution_options(postgresql_readonly=True)
    with reading.begin() as connection:
        seen = connection.scalars(select(User.name)).all()
    with suppress(DBAPIError), reading.begin() as connection:
        connection.execute(insert(User).values(name="ann"))
    return [seen, shop.names()]


@scenario()
def set_transaction_as_text(shop: Shop) -> object:
    if shop.database == "sqlite":
        return None
    with shop.app.app_context():
        shop.session.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
        shop.add("ann")
        shop.session.commit()
    return shop.names()


@scenario()
def set_transaction_read_only_after_a_read(shop: Shop) -> object:
    if shop.database != "mysql":  # where reading nothing begins no transaction
        return None
    with shop.app.app_context():
        shop.session.execute(text("SELECT 1"))
        shop.session.execute(text("SET TRANSACTION READ ONLY"))
        seen = shop.session.scalars(select(User.name)).all()
        shop.session.commit()
        shop.add("ann")
        shop.session.commit()
    return [seen, shop.names()]


@scenario(refused=("postgresql",))
def a_transaction_of_the_driver(shop: Shop) -> object:
    if shop.engine.dialect.driver != "psycopg" or shop.engine.dialect.is_async:
        return None
    with shop.app.app_context():
        raw = shop.raw
        with raw.transaction():
            raw.execute("INSERT INTO users (name) VALUES ('ann')")
    return shop.names()


@scenario()
def autocommit_switched_on_and_off(shop: Shop) -> object:
    if shop.database == "sqlite" or shop.engine.dialect.is_async:
        return None
    with shop.app.app_context():
        raw = shop.raw
        raw.rollback()
        switch = raw.autocommit if callable(raw.autocommit) else None
        for value in (True, False):
            if switch is None:
                raw.autocommit = value
            else:
                switch(value)
            if value:
                raw.cursor().execute("INSERT INTO users (name) VALUES ('ann')")
        raw.rollback()
    return shop.names()


@scenario(refused=("postgresql", "mysql"))
def a_driver_connection_in_with(shop: Shop) -> object:
    if shop.engine.dialect.driver not in ("pysqlite", "psycopg2"):
        return None
    with shop.app.app_context():
        raw = shop.raw
        with raw:
            raw.cursor().execute("INSERT INTO users (name) VALUES ('ann')")
        shop.session.rollback()
    return shop.names()


@scenario()
def helpers_of_psycopg2(shop: Shop) -> object:
    if shop.engine.dialect.driver != "psycopg2":
        return None
    extras: Any = importlib.import_module("psycopg2.extras")
    sql: Any = importlib.import_module("psycopg2.sql")
    with shop.app.app_context():
        cursor = shop.raw.cursor()
        extras.register_uuid(conn_or_curs=cursor)
        composed = sql.SQL("INSERT INTO {} (name) VALUES ({})").format(
            sql.Identifier("users"), sql.Literal("o'neil")
        )
        seen = composed.as_string(cursor)
        cursor.execute(composed)
        extras.execute_values(
            cursor, "INSERT INTO users (name) VALUES %s", [("a",), ("b",)]
        )
        shop.session.commit()
        shop.add("c")
        shop.session.rollback()
    return seen, shop.names()


@scenario()
def the_connection_of_a_cursor_of_psycopg2(shop: Shop) -> object:
    if shop.engine.dialect.driver != "psycopg2":
        return None
    extensions: Any = importlib.import_module("psycopg2.extensions")
    with shop.app.app_context():
        cursor = shop.raw.cursor()
        cursor.execute("INSERT INTO users (name) VALUES ('ann')")
        cursor.connection.commit()
        cursor.execute("INSERT INTO users (name) VALUES ('bob')")
        cursor.connection.rollback()
        seen = isinstance(cursor.connection, extensions.connection)
        encoding = cursor.connection.encoding
    return seen, encoding, shop.names()


@scenario()
def a_compound_statement(shop: Shop) -> object:
    if shop.database != "mysql" or shop.engine.driver == "mariadbconnector":
        return None  # which crashes after it
    with shop.app.app_context():
        shop.session.connection().exec_driver_sql(
            "BEGIN NOT ATOMIC INSERT INTO users (name) VALUES ('ann'); "
            "INSERT INTO users (name) VALUES ('bob'); END"
        )
        shop.session.rollback()
        shop.session.connection().exec_driver_sql(
            "BEGIN NOT ATOMIC INSERT INTO users (name) VALUES ('cid'); END"
        )
        shop.session.commit()
    return shop.names()


@scenario(refused=("mysql",))
def a_compound_statement_that_commits(shop: Shop) -> object:
    if shop.database != "mysql" or shop.engine.driver == "mariadbconnector":
        return None  # which crashes after it
    with shop.app.app_context():
        shop.session.connection().exec_driver_sql(
            "BEGIN NOT ATOMIC INSERT INTO users (name) VALUES ('ann'); COMMIT; END"
        )
    return shop.names()


@scenario()
def threads_at_once(shop: Shop) -> object:
    if shop.engine.dialect.is_async:
        return None
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                with shop.app.app_context():
                    shop.session.scalars(select(User.name)).all()
                    shop.session.rollback()
                    shop.add(f"{number}-{turn}")
                    shop.session.commit()
        except BaseException as error:  # noqa: BLE001  # for the other thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors, len(shop.names())


@scenario()
def the_engine_first(shop: Shop) -> object:
    with shop.engine.begin() as connection:
        connection.execute(insert(User).values(name="ann"))
    return shop.names()


@scenario(refused=("mysql",))
def a_table_is_made(shop: Shop) -> object:
    with shop.app.app_context():
        shop.session.execute(text("CREATE TABLE extra (id INTEGER)"))
        shop.session.execute(text("INSERT INTO extra VALUES (1)"))
        shop.session.commit()
        seen = shop.session.scalar(text("SELECT count(*) FROM extra"))
        shop.session.rollback()
        shop.session.execute(text("DROP TABLE extra"))
        shop.session.commit()
    return seen


@scenario()
def savepoints_as_text(shop: Shop) -> object:
    with shop.app.app_context():
        shop.add("ann")
        shop.session.execute(text("SAVEPOINT Here"))
        shop.add("bob")
        shop.session.execute(text("ROLLBACK TO SAVEPOINT here"))
        shop.session.execute(text("RELEASE SAVEPOINT HERE"))
        shop.session.commit()
    return shop.names()


@scenario(refused=("mysql",))
def a_cursor_that_scrolls(shop: Shop) -> object:
    if shop.engine.driver not in ("psycopg", "psycopg2", "pymysql", "mysqldb"):
        return None
    if shop.engine.dialect.is_async:
        return None
    with shop.app.app_context():
        shop.session.execute(insert(User), [{"name": f"u{n}"} for n in range(9)])
        cursor = shop.raw.cursor()
        cursor.execute("SELECT name FROM users ORDER BY name")
        seen = [cursor.fetchone()]
        cursor.scroll(2)
        seen.append(cursor.fetchone())
        cursor.scroll(1, mode="absolute")
        seen.append(cursor.fetchone())
        seen.append(cursor.rownumber)
        with pytest.raises((IndexError, DBAPIError)):
            cursor.scroll(20)
    return seen


@scenario(refused=("sqlite",))
def a_backup(shop: Shop) -> object:
    if shop.engine.driver != "pysqlite":
        return None
    with shop.app.app_context():
        shop.add("ann")
        shop.session.commit()
        raw = shop.raw
        raw.rollback()
        with closing(sqlite3.connect(":memory:")) as copy:
            raw.backup(copy)
            return copy.execute("SELECT name FROM users").fetchall()


@scenario()
def a_commit_after_a_statement_that_failed(shop: Shop) -> object:
    with shop.app.app_context():
        shop.add("ann", id=1)
        with suppress(IntegrityError):
            shop.add("bob", id=1)
        raised = outcome(shop.session.commit)
    return raised, shop.names()


@scenario()
def an_engine_with_the_option_of_autocommit(shop: Shop) -> object:
    engine = shop.engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(insert(User).values(name="ann"))
        connection.rollback()
    return shop.names()


@scenario()
def many_rows_of_which_one_fails_in_autocommit(shop: Shop) -> object:
    if shop.database == "postgresql":
        return None
    rows = [{"id": number, "name": "ann"} for number in (1, 2, 1)]
    engine = shop.engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, suppress(IntegrityError):
        connection.execute(insert(User), rows)
    return shop.names()


@scenario(refused=("postgresql",))
def a_procedure_that_commits(shop: Shop) -> object:
    if shop.database != "postgresql":
        return None
    engine = shop.engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(
            "CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$ BEGIN "
            "INSERT INTO users (name) VALUES ('ann'); COMMIT; END $$"
        )
        try:
            connection.exec_driver_sql("CALL commits()")
        finally:
            connection.exec_driver_sql("DROP PROCEDURE commits()")
    return shop.names()


@scenario()
def a_temporary_table(shop: Shop) -> object:
    with shop.app.app_context():
        shop.session.execute(text("CREATE TEMPORARY TABLE some (id INTEGER)"))
        shop.session.execute(text("INSERT INTO some VALUES (1)"))
        seen = shop.session.scalar(text("SELECT count(*) FROM some"))
        kind = "TEMPORARY TABLE" if shop.database == "mysql" else "TABLE"
        shop.session.execute(text(f"DROP {kind} some"))
        shop.session.commit()
    return seen


@scenario()
def a_prepared_statement_as_text(shop: Shop) -> object:
    if shop.database != "mysql":
        return None
    with shop.app.app_context():
        shop.add("ann")
        shop.session.execute(text("PREPARE one FROM 'SELECT name FROM users'"))
        seen = shop.session.execute(text("EXECUTE one")).scalar()
        shop.session.execute(text("DROP PREPARE one"))
        shop.session.commit()
    return seen, shop.names()


@scenario()
def what_the_last_statement_did(shop: Shop) -> object:
    if shop.database != "mysql":
        return None
    with shop.app.app_context():
        shop.add("ann")
        shop.session.execute(text("UPDATE users SET name = 'bob'"))
        changed = shop.session.scalar(text("SELECT ROW_COUNT()"))
        shop.add("cid")
        shop.session.execute(text("SELECT SQL_CALC_FOUND_ROWS name FROM users LIMIT 1"))
        return changed, shop.session.scalar(text("SELECT FOUND_ROWS()"))


SELECT_NAMES = "SELECT name FROM users ORDER BY name"
INSERT_ANN = "INSERT INTO users (name) VALUES ('ann')"


@scenario()
def every_way_to_read_a_cursor(shop: Shop) -> object:
    if shop.engine.dialect.is_async:
        return None
    with shop.app.app_context():
        shop.session.execute(insert(User), [{"name": f"u{n}"} for n in range(9)])
        cursor = shop.raw.cursor()
        cursor.execute(SELECT_NAMES)
        seen = [cursor.fetchone(), cursor.fetchmany(2)]
        if shop.engine.driver in ("pysqlite", "psycopg2", "pg8000"):
            cursor.execute(SELECT_NAMES)
            seen.append([next(cursor, None) for _ in range(10)])
        cursor.execute(SELECT_NAMES)
        seen.append([name for (name,) in cursor])
        seen.append(cursor.fetchone())
        cursor.close()
    return [[*row] if isinstance(row, tuple) else row for row in seen]


@scenario()
def a_cursor_in_with(shop: Shop) -> object:
    if shop.engine.driver not in ("psycopg", "psycopg2", "pymysql", "mysqldb"):
        return None
    if shop.engine.dialect.is_async:
        return None
    with shop.app.app_context():
        with shop.raw.cursor() as cursor:
            cursor.execute(INSERT_ANN)
        shop.session.commit()
    return shop.names()


@scenario()
def the_rows_of_a_statement_that_has_none(shop: Shop) -> object:
    if shop.engine.dialect.is_async:
        return None
    with shop.app.app_context():
        cursor = shop.raw.cursor()
        cursor.execute(INSERT_ANN)
        rows = [outcome(fetch) for fetch in (cursor.fetchone, cursor.fetchall)]
        cursor.close()
    return rows


@scenario()
def several_results(shop: Shop) -> object:
    if shop.engine.driver != "psycopg" or shop.engine.dialect.is_async:
        return None
    with shop.app.app_context():
        cursor = shop.raw.cursor()
        cursor.execute("SELECT 1; SELECT 2")
        first = cursor.fetchall()
        return first, cursor.nextset(), cursor.fetchall(), cursor.nextset()


@scenario()
def results_of_psycopg(shop: Shop) -> object:
    if shop.engine.driver != "psycopg" or shop.engine.dialect.is_async:
        return None
    with shop.app.app_context():
        cursor = shop.raw.cursor()
        seen = [*cursor.results()]
        cursor.execute("SELECT 1 UNION SELECT 2; SELECT 3")
        if not hasattr(cursor, "set_result"):  # before 3.3
            return None
        seen += [one.fetchall() for one in cursor.results()]
        seen += [cursor.set_result(number).fetchone() for number in (0, 1)]
        with pytest.raises(IndexError):
            cursor.set_result(2)
        cursor.executemany(
            "INSERT INTO users (name) VALUES (%s) RETURNING name",
            [("a",), ("b",)],
            returning=True,
        )
        seen += [one.fetchall() for one in cursor.results()]
    return seen


@scenario()
def rows_of_pymysql_that_are_not_buffered(shop: Shop) -> object:
    if shop.engine.driver != "pymysql":
        return None
    cursors: Any = importlib.import_module("pymysql.cursors")
    with shop.app.app_context():
        shop.session.execute(insert(User), [{"name": "ann"}, {"name": "bob"}])
        cursor = shop.raw.cursor(cursors.SSCursor)
        cursor.execute(SELECT_NAMES)
        seen = [*cursor.fetchall_unbuffered()]
        cursor.close()
    return seen


@scenario()
def attributes_of_a_driver_connection(shop: Shop) -> object:
    if shop.engine.dialect.is_async:
        return None
    with shop.app.app_context():
        raw = shop.raw
        seen = [getattr(raw, "isolation_level", None)]
        if shop.engine.driver in ("pymysql", "mysqldb"):
            seen.append(raw.get_autocommit())
        if shop.engine.driver in ("pysqlite", "psycopg"):
            kept, raw.row_factory = raw.row_factory, None
            seen.append(raw.row_factory)
            raw.row_factory = kept
        if shop.engine.driver == "psycopg":
            raw.rollback()
            raw.set_read_only(False)
            raw.set_deferrable(None)
        if shop.engine.driver == "psycopg2":
            raw.rollback()
            raw.cursor().connection.autocommit = False
    return seen


@scenario()
def the_rows_of_a_driver_connection_that_makes_others(shop: Shop) -> object:
    if shop.engine.dialect.is_async or shop.engine.driver not in ROW_MAKERS:
        return None
    attribute, module, name = ROW_MAKERS[shop.engine.driver]
    with shop.app.app_context():
        shop.add("ann", id=1)
        shop.session.commit()
        pooled = shop.engine.raw_connection()
        raw: Any = pooled.driver_connection
        before = getattr(raw, attribute)
        setattr(raw, attribute, getattr(importlib.import_module(module), name))
        cursor = raw.cursor()
        cursor.execute("SELECT id, name FROM users")
        seen: list[object] = [[*map(dict, cursor.fetchall())]]
        seen.append([*map(tuple, shop.other.execute(select(User.id, User.name)))])
        cursor.execute("SELECT id, name FROM users")
        seen.append([*map(dict, cursor.fetchall())])
        setattr(raw, attribute, before)
        pooled.close()
    return seen, shop.names()


@scenario()
def strings_that_a_driver_connection_reads_as_bytes(shop: Shop) -> object:
    if shop.engine.driver != "pysqlite":
        return None
    with shop.app.app_context():
        shop.add("ann")
        shop.session.commit()
        pooled = shop.engine.raw_connection()
        raw: Any = pooled.driver_connection
        raw.text_factory = bytes
        seen = [raw.execute("SELECT name FROM users").fetchall()]
        seen.append([*shop.other.scalars(select(User.name))])
        raw.text_factory = str
        pooled.close()
    return seen


@scenario()
def a_pragma_of_a_session_that_only_reads(shop: Shop) -> object:
    if shop.database != "sqlite":
        return None
    with shop.app.app_context():
        shop.add("ann")
        shop.other.execute(text("PRAGMA cache_size = 500"))
        shop.other.scalars(select(User)).all()
        shop.other.remove()
        shop.session.rollback()
    return shop.names()


@scenario(refused=("postgresql",))
def autocommit_switched_on_in_a_transaction(shop: Shop) -> object:
    if shop.database == "sqlite" or shop.engine.dialect.is_async:
        return None
    with shop.app.app_context():
        shop.add("ann")
        raw = shop.raw
        for value in (True, False):
            if callable(raw.autocommit):
                raw.autocommit(value)
            else:
                raw.autocommit = value
        shop.session.rollback()
    return shop.names()


@scenario()
def a_transaction_that_the_driver_begins(shop: Shop) -> object:
    if shop.engine.driver not in ("pymysql", "mysqldb"):
        return None
    with shop.app.app_context():
        raw = shop.raw
        raw.rollback()
        raw.begin()
        raw.cursor().execute(INSERT_ANN)
        raw.commit()
    return shop.names()


@scenario(refused=("postgresql",))
def an_error_in_with_of_a_driver_connection(shop: Shop) -> object:
    if shop.engine.driver not in ("pysqlite", "psycopg2", "psycopg"):
        return None
    if shop.engine.dialect.is_async:
        return None
    with shop.app.app_context():
        raw = shop.raw
        with suppress(KeyError), raw:
            raw.cursor().execute(INSERT_ANN)
            raise KeyError
    return shop.names()


@scenario()
def methods_of_sqlite3(shop: Shop) -> object:
    if shop.engine.driver != "pysqlite":
        return None
    with shop.app.app_context():
        raw = shop.raw
        raw.rollback()
        rows = [("ann",), ("bob",)]
        raw.executemany("INSERT INTO users (name) VALUES (?)", rows)
        raw.commit()
        return shop.names()


@scenario()
def sqlite3_is_put_in_autocommit_in_a_transaction(shop: Shop) -> object:
    if shop.engine.driver != "pysqlite":
        return None
    with shop.app.app_context():
        shop.add("ann")
        raw = shop.raw
        kept, raw.isolation_level = raw.isolation_level, None
        shop.add("bob")
        raw.isolation_level = kept
        shop.session.rollback()
        if getattr(raw, "autocommit", True) == -1:  # from Python 3.12 on
            shop.add("cid")
            raw = shop.raw
            raw.autocommit = True
            raw.autocommit = -1
            shop.session.rollback()
    return shop.names()


@scenario()
def a_statement_of_nothing(shop: Shop) -> object:
    if shop.database != "mysql" or shop.engine.driver == "mariadbconnector":
        return None  # which crashes after an error
    with shop.app.app_context():
        connection = shop.session.connection()
        failed = outcome(connection.exec_driver_sql, "/* nothing */")
    return isinstance(failed, type), shop.names()


@scenario(refused=("sqlite",))
def sqlite_is_told_of_foreign_keys(shop: Shop) -> object:
    if shop.engine.driver != "pysqlite":
        return None
    with shop.app.app_context():
        raw = shop.raw
        raw.rollback()
        found = raw.execute("PRAGMA foreign_keys").fetchone()
        raw.execute(f"PRAGMA foreign_keys = {1 - found[0]}")
        return raw.execute("PRAGMA foreign_keys").fetchone()


@scenario()
def control_where_there_is_nothing_to_control(shop: Shop) -> object:
    if shop.engine.dialect.is_async or shop.engine.driver == "mariadbconnector":
        return None  # the last crashes after an error
    if "transactions" in str(shop.engine.url.database):
        return None  # there `sqlite3` misses the transaction at its next rollback
    seen = []
    for statement in ("COMMIT", "ROLLBACK TO SAVEPOINT nowhere", "RELEASE nowhere"):
        with shop.app.app_context():
            raw = shop.raw
            raw.rollback()
            seen.append(outcome(raw.cursor().execute, statement))
    return [each if isinstance(each, type) else None for each in seen]


@scenario()
def begin_in_a_transaction(shop: Shop) -> object:
    if shop.engine.dialect.is_async or shop.engine.driver == "mariadbconnector":
        return None
    with shop.app.app_context():
        shop.add("ann")
        begun = outcome(shop.raw.cursor().execute, "BEGIN")
        shop.session.rollback()
    return isinstance(begun, type), shop.names()


@scenario()
def autocommit_as_text(shop: Shop) -> object:
    if shop.database != "mysql":
        return None
    with shop.app.app_context():
        shop.session.execute(text("SET autocommit = 1"))
        shop.add("ann")
        shop.session.rollback()
        shop.session.execute(text("SET autocommit = 0"))
        shop.add("bob")
        shop.session.rollback()
    return shop.names()


@scenario(refused=("postgresql",))
def a_transaction_that_is_read_only(shop: Shop) -> object:
    if shop.engine.driver != "psycopg" or shop.engine.dialect.is_async:
        return None
    with shop.app.app_context():
        raw = shop.raw
        raw.rollback()
        raw.read_only = True
        try:
            raw.execute(INSERT_ANN)
        finally:
            raw.rollback()
            raw.read_only = None
    return shop.names()


@scenario()
def a_transaction_that_begins_as_read_only(shop: Shop) -> object:
    if shop.database == "sqlite":
        return None
    with shop.app.app_context():
        shop.session.rollback()
        shop.session.execute(text("START TRANSACTION READ ONLY"))
        seen = shop.session.scalar(
            text("SELECT prepared FROM (SELECT 1 AS prepared) s")
        )
        shop.session.rollback()
        shop.add("ann")
        shop.session.commit()
    return seen, shop.names()


@scenario(refused=("postgresql", "mysql"))
def a_write_in_a_transaction_that_begins_as_read_only(shop: Shop) -> object:
    if shop.database == "sqlite":
        return None
    with shop.app.app_context():
        shop.session.rollback()
        shop.session.execute(text("START TRANSACTION READ ONLY"))
        try:
            shop.add("ann")
        finally:
            shop.session.rollback()
    return shop.names()


@scenario()
def several_inserts_in_one_string(shop: Shop) -> object:
    if shop.engine.driver not in ("psycopg", "psycopg2"):
        return None
    if shop.engine.dialect.is_async:
        return None
    with shop.app.app_context():
        shop.session.connection().exec_driver_sql(f"{INSERT_ANN}; {INSERT_ANN}")
        shop.session.commit()
    return shop.names()


@scenario()
def a_compound_statement_of_nothing(shop: Shop) -> object:
    if shop.engine.driver != "pymysql":
        return None
    with shop.app.app_context():
        shop.add("ann")
        shop.session.execute(text("BEGIN NOT ATOMIC END"))
        shop.session.rollback()
    return shop.names()


@scenario()
def a_nested_transaction_that_reads_beside_another_session(shop: Shop) -> object:
    if shop.engine.dialect.is_async:
        return None
    with shop.app.app_context():
        with suppress(KeyError), shop.session.begin_nested():
            shop.session.execute(text("SELECT 1"))
            shop.other.execute(text("SELECT 1"))
            shop.other.rollback()
            raise KeyError
        shop.add("ann")
        shop.session.commit()
    return shop.names()


@scenario(refused=("mysql",))
def statistics_are_collected(shop: Shop) -> object:
    if shop.database != "mysql":
        return None
    with shop.app.app_context():
        shop.session.execute(text("ANALYZE TABLE users")).all()
    return shop.names()


@scenario()
def a_statement_that_the_driver_refuses(shop: Shop) -> object:
    if shop.engine.driver != "psycopg" or shop.engine.dialect.is_async:
        return None
    with shop.app.app_context():
        shop.add("ann")
        raw = shop.raw
        failed = outcome(raw.execute, "SELECT %s", ())
        shop.session.commit()
    return failed, shop.names()


@scenario(refused=("postgresql", "sqlite"))
def an_async_drivers_own_connection(shop: Shop) -> object:
    if shop.engine.driver not in ("asyncpg", "aiosqlite"):
        return None
    with shop.app.app_context():
        await_only(shop.raw.execute(INSERT_ANN))
    return shop.names()


@scenario(refused=("postgresql",))
def a_statement_that_an_async_driver_prepares(shop: Shop) -> object:
    if shop.engine.driver != "asyncpg":
        return None
    with shop.app.app_context():
        prepared = await_only(shop.raw.prepare(INSERT_ANN))
        await_only(prepared.fetch())
        shop.session.commit()
    return shop.names()


@scenario()
def a_script_by_a_cursor_of_sqlite3(shop: Shop) -> object:
    if shop.engine.driver != "pysqlite":
        return None
    with shop.app.app_context():
        shop.add("ann")
        shop.raw.cursor().executescript("INSERT INTO users (name) VALUES ('bob');")
        shop.session.rollback()
    return shop.names()


@scenario(refused=("postgresql", "sqlite", "mysql"))
def an_async_drivers_own_commit(shop: Shop) -> object:
    if not shop.engine.dialect.is_async or shop.engine.driver == "asyncpg":
        return None
    with shop.app.app_context():
        shop.add("ann")
        await_only(shop.raw.commit())
    return shop.names()


@scenario(refused=("mysql",))
def autocommit_among_other_settings(shop: Shop) -> object:
    if shop.database != "mysql":
        return None
    seen = []
    for setting in (
        "@@local.autocommit = 1",
        "LOCAL autocommit = 1",
        "sql_mode = '', autocommit = 1",
    ):
        with shop.app.app_context():
            shop.session.execute(text(f"SET {setting}"))
            shop.add("ann")
            shop.session.rollback()
            seen.append(shop.names())
            shop.session.execute(text("SET autocommit = 0"))
    return seen


@scenario()
def a_setting_for_one_statement(shop: Shop) -> object:
    if shop.database != "mysql":
        return None
    with shop.app.app_context():
        shop.add("ann")
        shop.session.commit()
        shop.session.execute(
            text("SET STATEMENT max_statement_time = 5 FOR UPDATE users SET name = 'x'")
        )
        shop.other.scalars(select(User.id)).all()
        shop.other.rollback()
        shop.session.rollback()
    return shop.names()


@scenario()
def a_savepoint_in_autocommit(shop: Shop) -> object:
    if shop.database != "sqlite":
        return None  # others have none there, which the block does not tell
    with shop.engine.connect().execution_options(
        isolation_level="AUTOCOMMIT"
    ) as connection:
        with connection.begin_nested():
            connection.execute(insert(User).values(name="ann"))
        connection.execute(insert(User).values(name="bob"))
        connection.rollback()
    return shop.names()


@scenario()
def what_comes_after_a_savepoint_in_autocommit(shop: Shop) -> object:
    if shop.database != "mysql" or shop.engine.dialect.is_async:
        return None
    with shop.engine.connect().execution_options(
        isolation_level="AUTOCOMMIT"
    ) as connection:
        with suppress(DBAPIError), connection.begin_nested():
            connection.execute(insert(User).values(name="ann"))
        connection.execute(insert(User).values(name="bob"))
        connection.rollback()
        with suppress(DBAPIError, KeyError), connection.begin_nested():
            raise KeyError
        connection.execute(insert(User).values(name="cid"))
        connection.rollback()
    return shop.names()


@scenario()
def rows_that_are_none(shop: Shop) -> object:
    if shop.engine.driver != "pysqlite":
        return None
    with shop.app.app_context():
        raw = shop.raw
        raw.row_factory = lambda _, row: row[0]
        try:
            query = "SELECT 1 UNION ALL SELECT NULL UNION ALL SELECT 3"
            one_by_one = [*raw.cursor().execute(query)]
            return one_by_one, raw.cursor().execute(query).fetchall()
        finally:
            raw.row_factory = None


@scenario()
def a_chain_of_transactions(shop: Shop) -> object:
    if shop.database == "sqlite" or shop.engine.dialect.is_async:
        return None
    with shop.engine.connect().execution_options(
        isolation_level="AUTOCOMMIT"
    ) as connection:
        for statement in ("BEGIN", INSERT_ANN, "COMMIT AND CHAIN", INSERT_ANN):
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql("ROLLBACK")
    return shop.names()


@scenario()
def a_savepoint_with_the_name_of_another(shop: Shop) -> object:
    if shop.engine.dialect.is_async:
        return None
    seen = []
    with shop.app.app_context():
        raw = shop.raw
        raw.rollback()
        for number, statement in enumerate(
            [
                *("SAVEPOINT a", "", "SAVEPOINT a", "", "ROLLBACK TO SAVEPOINT a", ""),
                *("RELEASE SAVEPOINT a", "", "ROLLBACK TO SAVEPOINT a", ""),
            ]
        ):
            insertion = INSERT_ANN.replace("ann", str(number))
            seen.append(outcome(raw.cursor().execute, statement or insertion))
        raw.commit()
    return [each for each in seen if isinstance(each, type)], shop.names()


@scenario()
def a_string_with_a_quote_that_is_escaped(shop: Shop) -> object:
    if shop.database != "mysql":
        return None
    with shop.app.app_context():
        connection = shop.session.connection()
        connection.exec_driver_sql('INSERT INTO users (name) VALUES ("it\\"s; COMMIT")')
        shop.session.commit()
    return shop.names()


@scenario()
def a_cursor_that_was_closed(shop: Shop) -> object:
    if shop.engine.driver != "psycopg2":
        return None
    with shop.app.app_context():
        cursor = shop.raw.cursor()
        cursor.execute("SELECT 1")
        cursor.close()
        failed = outcome(cursor.execute, "SELECT 2")
        shop.add("ann")
        shop.session.commit()
    return failed, shop.names()


@scenario(refused=("mysql",))
def a_read_only_transaction_of_the_driver(shop: Shop) -> object:
    if shop.engine.driver != "mysqlconnector":
        return None
    with shop.app.app_context():
        raw = shop.raw
        raw.rollback()
        raw.start_transaction(readonly=True)
        return shop.session.scalar(text("SELECT 1"))


def outcome(function: Callable[..., object], *arguments: object) -> object:
    """Return what a function returns, or the class of the error that it raises."""
    try:
        return function(*arguments)
    except IsolationError:
        raise
    except DBAPIError as error:
        return type(error.orig)
    except Exception as error:  # noqa: BLE001  # is what the user sees
        return type(error)


def empty(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(delete(User))


def stored(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalars(select(func.count()).select_from(User)).one()


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_block_shows_what_the_database_does(
    name: str, engine: Engine, request: pytest.FixtureRequest
) -> None:
    do(engine, engine.dispose)  # its pool tells what it was used for
    expected = do(engine, outcome, SCENARIOS[name], Shop(engine))
    do(engine, engine.dispose)
    do(engine, empty, engine)
    do(engine, engine.dispose)
    pool, shop = engine.pool, Shop(engine)
    try:
        with isolate(shop.session, shop.other):
            seen = do(engine, outcome, SCENARIOS[name], shop)
    except IsolationError:
        seen = "refused"
    result = "same" if seen == expected else "differing"
    if seen == "refused" and shop.database in REFUSED[name]:
        result = "refused"
    if expected is not None:  # as where a driver has no such thing
        driver = request.node.callspec.params["url"]
        request.node.user_properties.append((driver, result))
    assert result != "differing", (seen, expected)
    assert engine.pool is pool
    assert do(engine, stored, engine) == 0


def test_two_engines_of_one_database_see_each_other(engine: Engine) -> None:
    second = make_engine(engine.url)
    shop = Shop(engine)
    reading = FlaskScopedSession(sessionmaker(second), shop.app, name="reading")

    def use() -> list[object]:
        with shop.app.app_context():
            shop.add("ann")
            shop.session.commit()
            first = reading.scalars(select(User.name)).all()
            reading.execute(text("UPDATE users SET name = 'bob'"))
            reading.commit()
            return [first, shop.session.scalars(select(User.name)).all()]

    with isolate(shop.session, reading):
        assert do(engine, use) == [["ann"], ["bob"]]
    do(engine, second.dispose)
    assert do(engine, stored, engine) == 0


def test_a_session_on_two_engines_of_one_database_is_rolled_back_whole(
    engine: Engine,
) -> None:
    second = make_engine(engine.url)
    shop = Shop(engine)

    def write(name: str, bind: Engine) -> None:
        statement = insert(User).values(name=name)
        shop.session.execute(statement, bind_arguments={"bind": bind})

    def use() -> list[str]:
        with shop.app.app_context():
            shop.add("ann")
            shop.session.commit()
            # SQLAlchemy rolls them back in no order.
            for _ in range(8):
                for name, bind in [("bob", engine), ("cid", second), ("dan", engine)]:
                    write(name, bind)
                shop.session.rollback()
            write("eve", second)
            write("fay", engine)
            shop.session.commit()
        return shop.names()

    with isolate(shop.session):
        assert do(engine, use) == ["ann", "eve", "fay"]
    do(engine, second.dispose)
    assert do(engine, stored, engine) == 0


def test_a_block_inside_another_leaves_nothing_in_it(engine: Engine) -> None:
    outer, inner = Shop(engine), Shop(engine)

    def read() -> list[str]:
        return [*outer.session.scalars(select(User.name))]

    def write() -> None:
        with inner.app.app_context():
            inner.add("ann")
            inner.session.commit()

    with isolate(outer.session), outer.app.app_context():
        assert do(engine, read) == []
        with isolate(inner.session):
            do(engine, write)
            assert do(engine, read) == ["ann"]
        assert do(engine, read) == []
        do(engine, outer.session.remove)
    assert do(engine, stored, engine) == 0


@pytest.mark.parametrize("url", ["postgresql+psycopg"], indirect=True)
def test_two_engines_of_one_address_that_lead_elsewhere_are_refused(
    engine: Engine,
) -> None:
    elsewhere = create_engine(
        engine.url, connect_args={"options": "-csearch_path=elsewhere"}
    )
    shop = Shop(engine)
    stats = FlaskScopedSession(sessionmaker(elsewhere), shop.app, name="stats")
    with isolate(shop.session, stats), shop.app.app_context():
        shop.add("ann")
        with pytest.raises(IsolationError, match=r"elsewhere.* instead of .*public"):
            stats.execute(text("SELECT 1"))
        shop.session.commit()
        assert shop.names() == ["ann"]
    with shop.app.app_context():
        assert stats.scalar(text("SHOW search_path")) == "elsewhere"
    assert stored(engine) == 0
    elsewhere.dispose()


@pytest.mark.timeout(60)
@pytest.mark.leaks
@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("url", ["postgresql+psycopg"], indirect=True)
def test_a_session_that_is_collected_within_a_statement_is_rolled_back_after_it(
    engine: Engine,
) -> None:
    from psycopg.adapt import Dumper  # noqa: PLC0415  # it may not be installed

    class Name:
        """A parameter, whose value the driver asks for while it executes."""

    class NameDumper(Dumper):
        def dump(self, obj: object) -> bytes:
            gc.collect()
            return b"ann"

    def leak() -> None:
        leaked = Session(engine)
        leaked.scalars(select(User.id)).all()
        leaked.info["itself"] = leaked

    shop = Shop(engine)
    with isolate(shop.session):
        with shop.app.app_context():
            leak()
            cursor = shop.raw.cursor()
            cursor.adapters.register_dumper(Name, NameDumper)
            cursor.execute("INSERT INTO users (name) VALUES (%s)", [Name()])
            shop.session.commit()
        assert shop.names() == ["ann"]
    assert stored(engine) == 0


ACTIONS = ["read", "write", "write", "fail", "fail inside", "commit", "roll back"]
Steps = list[tuple[int, str]]


class Sessions:
    """Three sessions that are open at the same time, and what each has committed."""

    def __init__(self, engine: Engine) -> None:
        self.app = Flask("shop")
        self.scoped = [
            FlaskScopedSession(sessionmaker(engine), self.app, name=name)
            for name in "abc"
        ]
        self.committed: set[str] = set()
        self._pending: list[set[str]] = [set(), set(), set()]
        self._writers: list[int] = []
        self._first_write = [0, 0, 0]

    def take(self, steps: Steps) -> set[str]:
        """Take the steps, commit what is open, and return what is found then."""
        with self.app.app_context():
            for number, (which, action) in enumerate(steps):
                self._take(which, action, f"row {number}")
            for which in range(3):
                self._take(which, "commit", "")
            return self.found()

    def _roll_back(self, which: int) -> None:
        try:
            self.scoped[which].rollback()
        except IsolationError:
            # Others have written after what this one would undo.
            assert self._pending[which]
            assert {*self._writers[self._first_write[which] :]} > {which}
            raise
        self._pending[which].clear()

    def _write(self, which: int, name: str) -> None:
        self.scoped[which].execute(insert(User).values(name=name))
        if not self._pending[which]:
            self._first_write[which] = len(self._writers)
        self._pending[which].add(name)
        self._writers.append(which)

    def found(self) -> set[str]:
        return {*self.scoped[0].scalars(select(User.name))}

    def _take(self, which: int, action: str, name: str) -> None:
        one, pending = self.scoped[which], self._pending[which]
        wrong = insert(User).values(name=None)
        match action:
            case "read":
                one.scalars(select(User.name)).all()
            case "write":
                self._write(which, name)
            case "fail":
                with pytest.raises(IntegrityError):
                    one.execute(wrong)
                self._roll_back(which)
            case "fail inside":
                self._write(which, name)
                with pytest.raises(IntegrityError), one.begin_nested():
                    one.execute(wrong)
            case "commit":
                one.commit()
                self.committed |= pending
                pending.clear()
            case _:
                self._roll_back(which)

    def remove(self) -> None:
        for one in self.scoped:
            with suppress(IsolationError):
                one.remove()


@pytest.mark.parametrize(
    "url", ["sqlite", "postgresql+psycopg", "mariadb+pymysql"], indirect=True
)
def test_any_order_of_sessions_stores_what_a_database_would(engine: Engine) -> None:
    taken = finished = 0

    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(ACTIONS)), max_size=9))
    @example([(0, "read"), (1, "write"), (0, "write"), (0, "roll back")])
    @example([(0, "write"), (1, "read"), (0, "write"), (1, "write"), (1, "roll back")])
    def take(steps: Steps) -> None:
        nonlocal taken, finished
        taken += 1
        real = Sessions(engine)
        if engine.dialect.name != "sqlite":  # which lets one write at a time
            assert real.take(steps) == real.committed
            empty(engine)
        sessions = Sessions(engine)
        refused = False
        with suppress(IsolationError), isolate(*sessions.scoped):
            try:
                found = sessions.take(steps)
            except IsolationError:
                refused = True
                with sessions.app.app_context():
                    sessions.remove()
                    found = sessions.found()
            # What was refused is kept beside what was committed.
            assert found >= sessions.committed
            assert refused or found == sessions.committed
        if not refused and real.committed:
            assert sessions.committed == real.committed
        finished += not refused
        assert stored(engine) == 0

    take()
    assert finished > taken / 2


@pytest.mark.parametrize("url", ["mariadb+pymysql"], indirect=True)
class TestMariaDB:
    @pytest.mark.parametrize(
        ("statement", "kind"),
        [
            ("CREATE TABLE extra (id INTEGER)", "CREATE TABLE"),
            ("TRUNCATE TABLE users", "TRUNCATE TABLE"),
            ("LOCK TABLES users WRITE", "LOCK TABLES"),
            ("SET DEFAULT ROLE NONE", "SET DEFAULT"),
            ("BEGIN NOT ATOMIC COMMIT; END", "BEGIN NOT ATOMIC"),
            ("CREATE TEMPORARY SEQUENCE numbers", "CREATE TEMPORARY"),
            ("/* now */ ALTER TABLE users ADD COLUMN age INTEGER", "ALTER TABLE"),
        ],
    )
    def test_refuses_what_commits_by_itself(
        self, engine: Engine, statement: str, kind: str
    ) -> None:
        shop = Shop(engine)
        with isolate(shop.session):
            with shop.app.app_context():
                shop.add("ann")
                with pytest.raises(IsolationError, match=kind):
                    shop.session.execute(text(statement))
                shop.session.commit()
            assert shop.names() == ["ann"]
        assert stored(engine) == 0

    def test_names_a_procedure_that_committed(self, engine: Engine) -> None:
        with engine.begin() as connection:
            connection.execute(text("DROP PROCEDURE IF EXISTS commits"))
            connection.execute(text("CREATE PROCEDURE commits() BEGIN COMMIT; END"))
        shop = Shop(engine)
        block = isolate(shop.session)
        raised = pytest.raises(IsolationError, match="CALL")
        with raised, block, shop.app.app_context():
            shop.session.execute(text("CALL commits()"))
            with pytest.raises(IsolationError, match="CALL"):
                shop.session.commit()

    def test_undoes_what_a_procedure_has_done_before_it_failed(
        self, engine: Engine
    ) -> None:
        with engine.begin() as connection:
            connection.execute(text("DROP PROCEDURE IF EXISTS fails"))
            connection.execute(
                text(
                    "CREATE PROCEDURE fails() BEGIN "
                    "INSERT INTO users (name) VALUES ('half'); "
                    "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no'; END"
                )
            )
        shop = Shop(engine)
        with isolate(shop.session, shop.other):
            with shop.app.app_context():
                with pytest.raises(DBAPIError):
                    shop.session.execute(text("CALL fails()"))
                shop.other.execute(text("SELECT 1"))
                shop.session.rollback()
            assert shop.names() == []

    def test_reads_the_rows_of_a_procedure_after_those_of_a_query(
        self, engine: Engine
    ) -> None:
        with engine.begin() as connection:
            connection.execute(text("DROP PROCEDURE IF EXISTS seven"))
            connection.execute(text("CREATE PROCEDURE seven() SELECT 7"))
        shop = Shop(engine)
        with isolate(shop.session), shop.app.app_context():
            cursor = shop.raw.cursor()
            cursor.execute("SELECT 5")
            assert [*cursor.fetchall()] == [(5,)]
            cursor.callproc("seven")
            assert [*cursor.fetchall()] == [(7,)]

    def test_reads_the_rows_of_a_procedure_in_parts(self, engine: Engine) -> None:
        with engine.begin() as connection:
            connection.execute(text("DROP PROCEDURE IF EXISTS three_rows"))
            connection.execute(
                text(
                    "CREATE PROCEDURE three_rows() "
                    "SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3"
                )
            )
        shop = Shop(engine)
        with isolate(shop.session), shop.app.app_context():
            cursor = shop.raw.cursor()
            cursor.callproc("three_rows")
            assert [*cursor.fetchmany(1)] == [(1,)]
            assert cursor.fetchone() == (2,)
            assert [*cursor.fetchall()] == [(3,)]

    def test_tells_of_tables_without_transactions(self, engine: Engine) -> None:
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE IF EXISTS old"))
            connection.execute(text("CREATE TABLE old (id INTEGER) ENGINE = MyISAM"))
        shop = Shop(engine)
        raised = pytest.raises(IsolationError, match="MyISAM")
        with raised, isolate(shop.session), shop.app.app_context():
            shop.session.execute(text("INSERT INTO old VALUES (1)"))
            shop.session.commit()
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE old"))

    @pytest.mark.parametrize(
        "statement",
        [
            "SET SESSION TRANSACTION READ ONLY",
            "SET foreign_key_checks = 0",
            "SET @mine = 1",
            "USE information_schema",
            "CREATE TEMPORARY TABLE users (id INTEGER)",
            "SET sql_safe_updates = 1",
            "SELECT GET_LOCK('mine', 0)",
        ],
    )
    def test_leaves_no_setting_on_the_connection(
        self, engine: Engine, statement: str
    ) -> None:
        shop = Shop(engine)
        settings_of = text(
            "SELECT @@tx_read_only, @@foreign_key_checks, @@sql_safe_updates, @mine, "
            "DATABASE()"
        )
        lock = text("SELECT GET_LOCK('mine', 5), RELEASE_LOCK('mine')")
        columns = text("SHOW COLUMNS FROM users LIKE 'name'")
        engine.dispose()  # for the pool to have but one
        with engine.connect() as connection:
            before = connection.execute(settings_of).one()
        with isolate(shop.session), shop.app.app_context():
            shop.session.execute(text(statement))
            shop.session.commit()
        with engine.connect() as connection, engine.connect() as another:
            assert connection.execute(settings_of).one() == before
            assert connection.execute(columns).one()
            assert another.execute(lock).one() == (1, 1)

    def test_keeps_the_connection_whose_isolation_level_a_session_set(
        self, engine: Engine
    ) -> None:
        shop = Shop(engine)
        options = {"isolation_level": "SERIALIZABLE"}
        own = text("SELECT CONNECTION_ID()")
        engine.dispose()  # for the pool to have but one
        with engine.connect() as connection:
            before = connection.scalar(own)
        with isolate(shop.session), shop.app.app_context():
            shop.session.connection(execution_options=options)
            shop.add("ann")
            shop.session.commit()
        with engine.connect() as connection:
            assert connection.scalar(own) == before


@pytest.mark.parametrize("url", ["postgresql+psycopg"], indirect=True)
@pytest.mark.parametrize("name", ["pg_advisory_lock", "pg_try_advisory_lock_shared"])
def test_a_lock_of_a_session_ends_with_the_block(engine: Engine, name: str) -> None:
    shop = Shop(engine)
    with isolate(shop.session), shop.app.app_context():
        shop.session.execute(text(f"SELECT {name}(7)"))
        shop.session.commit()
    with engine.connect() as first, engine.connect() as second:
        for connection in (first, second):
            connection.execute(text("SET LOCAL lock_timeout = '5s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(7)"))
            connection.rollback()


@pytest.mark.parametrize("url", ["postgresql+psycopg"], indirect=True)
def test_a_statement_that_was_prepared_is_gone_after_the_block(engine: Engine) -> None:
    shop = Shop(engine)
    engine.dispose()  # for the pool to have but one
    for _ in range(2):
        with isolate(shop.session), shop.app.app_context():
            shop.session.execute(text("PREPARE one AS SELECT 1"))
            shop.session.commit()
            assert shop.session.scalar(text("EXECUTE one")) == 1
    with engine.connect() as connection:
        kept = text("SELECT count(*) FROM pg_prepared_statements WHERE from_sql")
        assert connection.scalar(kept) == 0


@pytest.mark.parametrize(
    "url",
    ["postgresql+psycopg", "postgresql+psycopg_async", "postgresql+pg8000"],
    indirect=True,
)
def test_a_statement_that_leaves_the_connection_unusable_is_named(
    engine: Engine,
) -> None:
    shop, pool = Shop(engine), engine.pool

    def copy() -> None:
        with shop.app.app_context():
            shop.add("ann")
            shop.session.execute(text("COPY (SELECT 1) TO STDOUT"))

    with pytest.raises(IsolationError, match="COPY SELECT"), isolate(shop.session):
        do(engine, outcome, copy)
    assert engine.pool is pool
    assert do(engine, stored, engine) == 0
