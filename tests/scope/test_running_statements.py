"""A context that ends while another thread executes a statement, on each driver.

Drivers differ in what a rollback does meanwhile. It waits in those for PostgreSQL and
fails in PyMySQL and mysqlclient, it never returns in mysql-connector-python, and in
mariadb it crashes the interpreter, as the end of a connection does in sqlite3.
"""

from __future__ import annotations

import contextvars
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import NullPool, create_engine, event, text
from sqlalchemy.exc import IllegalStateChangeError

from flask_sqlalchemy_session import current_session
from tests.support import Held, server_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from flask import Flask
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from flask_sqlalchemy_session import FlaskScopedSession

# What takes its time, on each database.
SLOW = {
    "sqlite": text("SELECT sleep(0.2)"),
    "postgresql": text("SELECT 0 FROM pg_sleep(0.2)"),
    "mariadb": text("SELECT SLEEP(0.2)"),
}
DRIVERS = [
    "sqlite",
    "postgresql+psycopg",
    "postgresql+psycopg2",
    "postgresql+pg8000",
    "mariadb+pymysql",
    "mariadb+mysqldb",
    "mariadb+mysqlconnector",
    "mariadb+mariadbconnector",
]
MODULES = {
    "psycopg2": "psycopg2",
    "mysqldb": "MySQLdb",
    "mariadbconnector": "mariadb",
}


def make_engine(
    drivername: str, request: pytest.FixtureRequest, directory: Path
) -> Engine:
    """Make an engine whose pool closes each connection that is given back."""
    database, _, driver = drivername.partition("+")
    if driver in MODULES:
        pytest.importorskip(MODULES[driver])
    if database == "sqlite":
        engine = create_engine(
            f"sqlite:///{directory}/slow.sqlite3",
            poolclass=NullPool,
            connect_args={"check_same_thread": False},
        )
        event.listen(engine, "connect", add_sleep)
        return engine
    return create_engine(server_url(drivername, request), poolclass=NullPool)


def add_sleep(connection: Any, _: object) -> None:
    def sleep(seconds: float) -> int:
        time.sleep(seconds)
        return 0

    connection.create_function("sleep", 1, sleep)


@pytest.fixture(params=DRIVERS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    engine = make_engine(request.param, request, tmp_path)
    yield engine
    engine.dispose()


class Worker:
    """A thread that runs what it is given in the context of who gives it."""

    def __init__(self, engine: Engine) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._executes = threading.Event()
        event.listen(engine, "before_cursor_execute", lambda *_: self._executes.set())

    def start(self, job: Callable[[], Any]) -> Future[Any]:
        """Start a job, and return once it executes a statement."""
        self._executes.clear()
        future = self._pool.submit(contextvars.copy_context().run, job)
        assert self._executes.wait(30)
        time.sleep(0.05)  # until the server has it
        return future


TAKE: dict[str, Callable[[FlaskScopedSession[Session]], Any]] = {
    "the object": lambda session: session,
    "a proxy": lambda session: session.proxy,
    "current_session": lambda _: current_session,
    "a call": lambda session: session(),
}


@pytest.mark.parametrize("way", TAKE)
def test_the_end_waits_for_a_statement_of_another_thread(
    way: str, app: Flask, session: FlaskScopedSession[Session], engine: Engine
) -> None:
    held, worker = Held(engine), Worker(engine)
    jobs: list[Future[Any]] = []

    def job() -> object:
        taken = TAKE[way](session)
        return taken.execute(SLOW[engine.dialect.name]).scalar_one()

    @app.get("/")
    def index() -> str:
        session()
        jobs.append(worker.start(job))
        return "the view's"

    response = app.test_client().get("/")
    assert (response.status_code, response.text) == (200, "the view's")
    assert held.count == 0
    assert jobs[0].result(30) == 0
    for number in range(3):
        with app.app_context():
            query = text(f"SELECT {number}")
            assert session.execute(query).scalar_one() == number
    assert held.count == 0


on_sqlite = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
SLEEP = SLOW["sqlite"]


@on_sqlite
def test_removing_a_session_under_a_statement_is_refused(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine
) -> None:
    held, worker = Held(engine), Worker(engine)
    with app.app_context():
        before = session()
        future = worker.start(lambda: session.execute(SLEEP).scalar_one())
        with pytest.raises(IllegalStateChangeError, match="executes a statement"):
            session.remove()
        future.result(30)
        assert session() is not before
        session.execute(text("SELECT 1"))
        assert held.count == 2
    assert held.count == 0


@on_sqlite
def test_a_thread_that_has_gone_on_to_another_session_is_not_waited_for(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine
) -> None:
    worker = Worker(engine)

    def job() -> None:
        with app.app_context():
            session.execute(SLEEP)

    with app.app_context():
        session()
        worker.start(lambda: session.execute(text("SELECT 1")).all()).result(30)
        future = worker.start(job)
    assert not future.done()
    future.result(30)
