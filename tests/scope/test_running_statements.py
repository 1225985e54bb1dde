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
from sqlalchemy.exc import IllegalStateChangeError, InvalidRequestError
from sqlalchemy.orm import Session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.scope.flask_versions import before_flask_3_2
from tests.support import Held, server_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from flask import Flask
    from flask.ctx import AppContext
    from sqlalchemy import Engine, TextClause

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


sleeping, waken, slept = threading.Event(), threading.Event(), threading.Event()


def add_sleep(connection: Any, _: object) -> None:
    def sleep(seconds: float) -> int:
        slept.clear()
        waken.clear()
        sleeping.set()
        waken.wait(seconds)
        slept.set()
        return 0

    connection.create_function("sleep", 1, sleep)


@pytest.fixture(params=DRIVERS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    engine = make_engine(request.param, request, tmp_path)
    sleeping.clear()
    yield engine
    engine.dispose()


class Worker:
    """A thread that runs what it is given in the context of who gives it."""

    def __init__(self, engine: Engine) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._executes = threading.Event()
        event.listen(engine, "before_cursor_execute", lambda *_: self._executes.set())

    def stop(self) -> None:
        """Return once the thread has ended."""
        self._pool.shutdown()

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
# For tests that waken them.
LONG_SLEEP = text("SELECT sleep(30)")
LONG_ROWS = text("SELECT 1 UNION ALL SELECT sleep(30)")


@on_sqlite
def test_removing_a_session_under_a_statement_is_refused_and_leaves_it(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine
) -> None:
    held, worker = Held(engine), Worker(engine)
    with app.app_context():
        before = session()
        future = worker.start(lambda: session.execute(LONG_SLEEP).scalar_one())
        assert sleeping.wait(30)
        with pytest.raises(IllegalStateChangeError, match="executes a statement"):
            session.remove()
        waken.set()
        future.result(30)
        assert session() is before
        session.execute(text("SELECT 1"))
        assert held.count == 1
    assert held.count == 0


@on_sqlite
def test_what_a_thread_does_after_a_refused_removal_is_stored(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine
) -> None:
    worker, written = Worker(engine), text("SELECT count(*) FROM written")

    def job() -> None:
        session.execute(text("INSERT INTO written VALUES (1)"))
        session.execute(LONG_SLEEP)
        session.commit()

    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE written (number INTEGER)"))
    with app.app_context():
        session()
        future = worker.start(job)
        assert sleeping.wait(30)
        with pytest.raises(IllegalStateChangeError):
            session.remove()
        waken.set()
        future.result(30)
        session.remove()
        assert session.execute(written).scalar_one() == 1


def rollbacks_after_sleep(engine: Engine) -> list[bool]:
    """Note at each rollback whether the statement that sleeps was done."""
    noted: list[bool] = []
    event.listen(engine, "rollback", lambda _: noted.append(slept.is_set()))
    return noted


@pytest.fixture
def stats(app: Flask, tmp_path: Path) -> Iterator[FlaskScopedSession[Session]]:
    """A second scoped session of the application, on a database of its own."""
    engine = create_engine(f"sqlite:///{tmp_path}/stats.sqlite3")
    yield FlaskScopedSession(sessionmaker(engine), app, name="stats")
    engine.dispose()


@on_sqlite
def test_a_thread_whose_statement_uses_another_session_is_waited_for(
    app: Flask,
    session: FlaskScopedSession[Session],
    stats: FlaskScopedSession[Session],
    engine: Engine,
) -> None:
    worker = Worker(engine)
    event.listen(
        engine, "before_cursor_execute", lambda *_: stats.execute(text("SELECT 1"))
    )
    with app.app_context():
        session()
        stats()
        rollbacks = rollbacks_after_sleep(engine)
        future = worker.start(lambda: session.execute(SLEEP).scalar_one())
    assert rollbacks == [True]
    assert future.result(30) == 0


@on_sqlite
def test_a_thread_that_was_given_another_session_is_waited_for_in_the_one_that_it_made(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine
) -> None:
    worker = Worker(engine)
    with app.app_context():
        worker.start(lambda: session.execute(text("SELECT 1")).all()).result(30)
        with app.app_context():
            session()
            worker.start(lambda: session.execute(text("SELECT 1")).all()).result(30)
        rollbacks = rollbacks_after_sleep(engine)
        future = worker.start(lambda: session.execute(SLEEP).scalar_one())
    assert rollbacks == [True]
    assert future.result(30) == 0


@on_sqlite
def test_a_thread_that_reads_rows_is_waited_for(
    app: Flask,
    session: FlaskScopedSession[Session],
    stats: FlaskScopedSession[Session],
    engine: Engine,
) -> None:
    worker = Worker(engine)
    numbers = text("SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT sleep(0.3)")

    def job() -> list[int]:
        found = []
        rows = session.execute(numbers, execution_options={"yield_per": 1})
        for row in rows.scalars():
            if row == 1:
                with app.app_context():  # on to another session, and back
                    stats.execute(text("SELECT 1"))
            found.append(row)
        return found

    with app.app_context():
        session()
        rollbacks = rollbacks_after_sleep(engine)
        future = worker.start(job)
        assert sleeping.wait(30)
    assert rollbacks == [True]
    assert future.result(30) == [1, 2, 0]


def read_rows(session: Session) -> list[int]:
    """Read two rows, the second of which takes its time."""
    rows = text("SELECT 1 UNION ALL SELECT sleep(0.3)")
    found = session.execute(rows, execution_options={"yield_per": 1})
    return list(found.scalars())


@on_sqlite
@pytest.mark.parametrize("reader", [0, 1])
def test_threads_that_are_given_a_session_at_once_are_both_waited_for(
    reader: int,
    app: Flask,
    session: FlaskScopedSession[Session],
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    together = threading.Barrier(2)

    def slow() -> threading.Thread:
        time.sleep(0.05)  # in which the other thread comes as far
        return threading.current_thread()

    def job(number: int) -> list[int]:
        together.wait(30)
        given = session()
        together.wait(30)
        return read_rows(given) if number == reader else []

    with ThreadPoolExecutor(2) as pool:
        with app.app_context():
            session()
            rollbacks = rollbacks_after_sleep(engine)
            monkeypatch.setattr("flask_sqlalchemy_session._holder.this_thread", slow)
            jobs = [
                pool.submit(contextvars.copy_context().run, job, number)
                for number in range(2)
            ]
            assert sleeping.wait(30)
        assert rollbacks == [True]
        assert jobs[reader].result(30) == [1, 0]


@on_sqlite
def test_a_thread_with_the_number_of_the_one_that_made_the_session_is_waited_for(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine
) -> None:
    numbers: list[int] = []
    rows: list[list[int]] = []

    def make() -> None:
        numbers.append(threading.get_ident())
        session()

    def read() -> None:
        numbers.append(threading.get_ident())
        rows.append(read_rows(session()))

    def thread_of(job: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=contextvars.copy_context().run, args=[job])
        thread.start()
        return thread

    with app.app_context():
        rollbacks = rollbacks_after_sleep(engine)
        thread_of(make).join()
        reader = thread_of(read)
        assert sleeping.wait(30)
    reader.join()
    if len(set(numbers)) > 1:
        pytest.skip("the system gave the second thread a number of its own")
    assert rollbacks == [True]
    assert rows == [[1, 0]]


@on_sqlite
def test_a_thread_that_was_too_late_to_make_the_session_is_waited_for(
    app: Flask, engine: Engine
) -> None:
    together, maker = threading.Barrier(2), sessionmaker(engine)

    def make() -> Session:
        together.wait(30)
        made[threading.get_ident()] = maker()
        return made[threading.get_ident()]

    def job() -> list[int]:
        given = session()
        together.wait(30)
        return [] if given is made[threading.get_ident()] else read_rows(given)

    made: dict[int, Session] = {}
    session = FlaskScopedSession(make, app)
    with ThreadPoolExecutor(2) as pool:
        with app.app_context():
            rollbacks = rollbacks_after_sleep(engine)
            jobs = [pool.submit(contextvars.copy_context().run, job) for _ in range(2)]
            assert sleeping.wait(30)
        assert rollbacks == [True]
        assert [each.result(30) for each in jobs].count([1, 0]) == 1


@before_flask_3_2("it refuses to pop a context that is not current")
@on_sqlite
@pytest.mark.parametrize("of", ["a session", "a connection that is waited for"])
def test_the_thread_that_made_a_session_is_not_waited_for_in_work_of_its_own(
    of: str,
    app: Flask,
    session: FlaskScopedSession[Session],
    engine: Engine,
    tmp_path: Path,
) -> None:
    held = Held(engine)
    small = create_engine(
        f"sqlite:///{tmp_path}/small.sqlite3", pool_size=1, max_overflow=0
    )
    enters = threading.Event()

    def job() -> None:
        enters.set()
        if of == "a session":
            with Session(engine) as own:
                own.execute(LONG_SLEEP)
        else:
            small.connect().close()

    def push() -> AppContext:
        context = app.app_context()
        context.push()
        session.execute(text("SELECT 1"))
        return context

    taken = small.connect()
    with ThreadPoolExecutor(1) as pool:
        context = pool.submit(push).result(30)
        future = pool.submit(job)
        assert (sleeping if of == "a session" else enters).wait(30)
        time.sleep(0.05)
        with pytest.raises((AssertionError, LookupError, RuntimeError, ValueError)):
            context.pop()  # Flask's own error, once the context was torn down
        assert not future.done()
        waken.set()
        taken.close()
        future.result(30)
    assert held.count == 0
    small.dispose()


@on_sqlite
def test_a_session_that_a_factory_returns_again_is_used_again(
    app: Flask, engine: Engine
) -> None:
    again = Session(engine)
    shared = FlaskScopedSession(lambda: again, app, name="again")
    worker = Worker(engine)
    for _ in range(2):
        with app.app_context():
            assert shared() is again
            job = worker.start(lambda: shared.scalar(text("SELECT 1")))
            assert job.result(30) == 1
    with app.app_context():
        assert shared.scalar(text("SELECT 2")) == 2


@on_sqlite
def test_a_session_of_ones_own_that_another_thread_was_given_can_be_used_again(
    app: Flask, engine: Engine
) -> None:
    own = Session(engine)
    shared = FlaskScopedSession(lambda: own, app, name="own")
    worker = Worker(engine)
    with app.app_context():
        shared()
        job = worker.start(lambda: shared.scalar(text("SELECT 1")))
        assert job.result(30) == 1
    assert own.scalar(text("SELECT 2")) == 2
    own.close()


@on_sqlite
def test_a_thread_with_the_number_of_one_that_has_ended_is_not_waited_for(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine
) -> None:
    numbers: list[int] = []
    held = Held(engine)

    def use() -> None:
        numbers.append(threading.get_ident())
        session.execute(text("SELECT 1"))

    def read() -> None:
        numbers.append(threading.get_ident())
        if numbers[0] == numbers[-1]:
            with Session(engine) as own:
                list(own.execute(LONG_ROWS, execution_options={"yield_per": 1}))

    with app.app_context():
        helper = threading.Thread(target=contextvars.copy_context().run, args=(use,))
        helper.start()
        helper.join()
        for _ in range(100):
            reader = threading.Thread(target=read)
            reader.start()
            if sleeping.wait(0.05):
                break
            reader.join()
        else:
            pytest.skip("no number was used again")
    assert held.count == 1  # the reader's
    waken.set()
    reader.join()
    assert held.count == 0


@on_sqlite
def test_a_thread_that_comes_too_late_is_told(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine
) -> None:
    held = Held(engine)
    found, ended = threading.Event(), threading.Event()

    def statement() -> TextClause:
        found.set()
        assert ended.wait(30)
        return text("SELECT 1")

    with ThreadPoolExecutor(1) as pool:
        with app.app_context():
            session()
            variables = contextvars.copy_context()
            job = pool.submit(variables.run, lambda: session().execute(statement()))
            assert found.wait(30)
        ended.set()
        with pytest.raises(InvalidRequestError, match="its context has ended"):
            job.result(30)
    assert held.count == 0


@on_sqlite
@pytest.mark.leaks
def test_a_busy_session_is_closed_where_no_more_threads_can_start(
    app: Flask,
    session: FlaskScopedSession[Session],
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held, worker = Held(engine), Worker(engine)

    def refuse(*_: object) -> int:
        message = "can't start new thread"
        raise RuntimeError(message)

    with app.app_context():
        session()
        job = worker.start(
            lambda: session.execute(text("SELECT sleep(1.5)")).scalar_one()
        )
        monkeypatch.setattr("flask_sqlalchemy_session._holder.start_new_thread", refuse)
    assert held.count == 1
    with pytest.warns(ResourceWarning, match="in use by another thread") as told:  # noqa: PT031  # as the thread lets go
        assert job.result(30) == 0
        worker.stop()
    assert len(told) == 1
    assert held.count == 0


@on_sqlite
def test_a_thread_that_has_gone_on_to_another_session_is_not_waited_for(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine
) -> None:
    worker = Worker(engine)

    def job() -> None:
        with app.app_context():
            session.execute(LONG_SLEEP)

    with app.app_context():
        session()
        worker.start(lambda: session.execute(text("SELECT 1")).all()).result(30)
        future = worker.start(job)
        assert sleeping.wait(30)
    assert not future.done()
    waken.set()
    future.result(30)
