"""After the commit, and try again, beside the ways that are wrong."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Update,
    create_engine,
    event,
    func,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from flask_sqlalchemy_session import current_session
from flask_sqlalchemy_session.asyncio import current_async_session
from flask_sqlalchemy_session.testing import isolate
from tests.support import Base, Held, User

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType


def rows(engine: Engine) -> int:
    with Session(engine) as session:
        return session.scalars(select(func.count()).select_from(User)).one()


@pytest.fixture
def page(recipe: Callable[[str], ModuleType], engine: Engine) -> ModuleType:
    """The page's program, its sessions on the engine of the test."""
    module = recipe("def after_commit(")
    module.maker.configure(bind=engine)
    return module


# `sqlite3` begins no transaction before a savepoint, so that its release commits.
@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
class TestAfterTheCommit:
    def test_the_obvious_way_sends_for_what_is_never_there(
        self, page: ModuleType, engine: Engine
    ) -> None:
        sent: list[str] = []
        event.listen(page.maker, "after_commit", lambda _: sent.append("mail"))
        with page.app.app_context():
            with current_session.begin_nested():
                current_session.add(User(name="ann"))
            current_session.rollback()
        assert sent == ["mail"]
        assert rows(engine) == 0

    def test_nothing_is_sent_for_a_transaction_that_rolls_back(
        self, page: ModuleType, engine: Engine
    ) -> None:
        sent: list[str] = []
        with page.app.app_context():
            with current_session.begin_nested():
                current_session.add(User(name="ann"))
                page.after_commit(lambda: sent.append("mail"))
            current_session.rollback()
            current_session.add(User(name="bob"))
            current_session.commit()
        assert sent == []
        assert rows(engine) == 1

    def test_it_is_sent_once_at_the_end_of_the_whole_transaction(
        self, page: ModuleType
    ) -> None:
        sent: list[str] = []
        with page.app.app_context(), current_session.begin():
            page.after_commit(lambda: sent.append("first"))
            with current_session.begin_nested(), current_session.begin_nested():
                current_session.add(User(name="ann"))
                page.after_commit(lambda: sent.append("second"))
            assert sent == []
        assert sent == ["first", "second"]

    def test_nothing_is_sent_for_a_savepoint_that_rolls_back(
        self, page: ModuleType
    ) -> None:
        sent: list[str] = []
        with page.app.app_context(), current_session.begin():
            page.after_commit(lambda: sent.append("kept"))
            savepoint = current_session.begin_nested()
            page.after_commit(lambda: sent.append("dropped"))
            savepoint.rollback()
        assert sent == ["kept"]

    @pytest.mark.parametrize("end", ["close", "rollback", "remove"])
    def test_a_later_transaction_sends_nothing_of_one_that_was_given_up(
        self, end: str, page: ModuleType
    ) -> None:
        sent: list[str] = []
        with page.app.app_context():
            page.after_commit(lambda: sent.append("mail"))
            getattr(page.session, end)()
            current_session.add(User(name="ann"))
            current_session.commit()
        assert sent == []

    def test_nothing_is_sent_for_a_commit_that_fails(self, page: ModuleType) -> None:
        sent: list[str] = []

        def fail(_: Session) -> None:
            raise LookupError

        event.listen(page.maker, "before_commit", fail)
        with page.app.app_context():
            page.after_commit(lambda: sent.append("mail"))
            with pytest.raises(LookupError):
                current_session.commit()
            current_session.rollback()
            event.remove(page.maker, "before_commit", fail)
            current_session.commit()
        assert sent == []

    def test_inside_isolate_it_is_the_same(
        self, page: ModuleType, engine: Engine
    ) -> None:
        sent: list[str] = []
        with isolate(page.session), page.app.app_context():
            with current_session.begin_nested():
                page.after_commit(lambda: sent.append("dropped"))
            current_session.rollback()
            with current_session.begin():
                current_session.add(User(name="ann"))
                page.after_commit(lambda: sent.append("kept"))
                assert sent == []
            assert sent == ["kept"]
        assert rows(engine) == 0

    def test_a_callback_holds_no_connection_and_sees_the_rows_in_its_own_context(
        self, page: ModuleType, held: Held
    ) -> None:
        names: list[str] = []

        def note() -> None:
            assert held.count == 0
            with page.app.app_context():
                names.extend(current_session.scalars(select(User.name)))

        with page.app.app_context():
            with current_session.begin():
                current_session.add(User(name="ann"))
                page.after_commit(note)
            assert names == ["ann"]

    def test_what_a_callback_raises_undoes_nothing(
        self, page: ModuleType, engine: Engine, held: Held
    ) -> None:
        def fail() -> None:
            raise LookupError

        with page.app.app_context():
            current_session.add(User(name="ann"))
            page.after_commit(fail)
            with pytest.raises(LookupError):
                current_session.commit()
            assert held.count == 0
            current_session.add(User(name="bob"))
            current_session.commit()
        assert rows(engine) == 2


def repeating_operational_errors(work: Callable[[], object], attempts: int) -> None:
    """Try again in the way that is wrong."""
    for attempt in range(attempts):
        try:
            work()
        except OperationalError:  # noqa: PERF203  # what is tested
            if attempt == attempts - 1:
                raise
        else:
            return


SERIALIZABLE = {"isolation_level": "SERIALIZABLE"}


@pytest.fixture
def server(postgresql_url: str) -> Iterator[Engine]:
    engine = create_engine(postgresql_url, **SERIALIZABLE)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([User(id=1, name="ann"), User(id=2, name="bob")])
        session.commit()
    yield engine
    Base.metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture
def mariadb(mariadb_url: str) -> Iterator[Engine]:
    engine = create_engine(mariadb_url)
    # There a string needs a length.
    users = Table(
        "users",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("name", String(40)),
    )
    users.create(engine)
    with engine.begin() as connection:
        connection.execute(users.insert(), [{"id": 1}, {"id": 2}])
    yield engine
    users.drop(engine)
    engine.dispose()


class Race:
    """Changes a row between a transaction's read and its write, the first times."""

    def __init__(self, engine: Engine, times: int) -> None:
        self.engine = engine
        self.left = times
        self.reads = 0
        self.sessions: list[Session] = []

    def interfere(self) -> None:
        self.reads += 1
        if self.left:
            self.left -= 1
            with self.engine.begin() as connection:
                connection.execute(update(User).values(name=f"ann {self.left}"))


def read_and_write(session: Session, race: Race) -> str:
    """Lose a race for a row: the transaction has read it before it was changed."""
    race.sessions.append(session)
    user = session.get_one(User, 1)
    race.interfere()
    user.name = user.name.upper()
    session.flush()
    return user.name


class TestTryAgain:
    @pytest.fixture
    def page(self, recipe: Callable[[str], ModuleType], server: Engine) -> ModuleType:
        module = recipe("def lost_a_race(")
        module.maker.configure(bind=server)
        return module

    @pytest.mark.parametrize("losses", [0, 1, 4])
    def test_a_transaction_that_loses_races_gets_through(
        self, losses: int, page: ModuleType, server: Engine
    ) -> None:
        race = Race(server, losses)

        def work() -> str:
            with current_session.begin():
                return read_and_write(page.session(), race)

        with page.app.app_context():
            assert page.trying_again(work)().startswith("ANN")
        assert race.reads == losses + 1
        assert len(set(race.sessions)) == losses + 1

    def test_one_that_loses_every_race_raises_the_databases_error(
        self, page: ModuleType, server: Engine
    ) -> None:
        race = Race(server, 100)

        def work() -> None:
            with current_session.begin():
                read_and_write(current_session, race)

        with page.app.app_context(), pytest.raises(DBAPIError, match="serialize"):
            page.trying_again(work)()
        assert race.reads == 5

    def test_the_victim_of_a_deadlock_gets_through(
        self, page: ModuleType, server: Engine
    ) -> None:
        """Two transactions lock two rows, each the other's first."""
        page.maker.configure(
            bind=server.execution_options(isolation_level="READ COMMITTED")
        )
        check_a_deadlock(page)

    def test_a_time_out_is_not_repeated_as_the_obvious_way_does(
        self, page: ModuleType
    ) -> None:
        calls: list[str] = []

        def work() -> None:
            calls.append("call")
            with current_session.begin():
                current_session.execute(text("SET LOCAL statement_timeout = 10"))
                current_session.execute(text("SELECT pg_sleep(5)"))

        with page.app.app_context():
            with pytest.raises(OperationalError, match="statement timeout"):
                page.trying_again(work)()
            assert len(calls) == 1
            with pytest.raises(OperationalError):
                repeating_operational_errors(work, attempts=3)
            assert len(calls) == 1 + 3

    def test_a_connection_that_is_lost_is_not_repeated(self, page: ModuleType) -> None:
        calls: list[str] = []

        def work() -> None:
            calls.append("call")
            with current_session.begin():
                current_session.execute(
                    text("SELECT pg_terminate_backend(pg_backend_pid())")
                )

        with page.app.app_context(), pytest.raises(OperationalError):
            page.trying_again(work)()
        assert len(calls) == 1

    @pytest.mark.parametrize("driver", ["pymysql", "mysqlconnector"])
    def test_the_victim_of_a_deadlock_on_mariadb_gets_through(
        self, driver: str, page: ModuleType, mariadb: Engine
    ) -> None:
        engine = create_engine(mariadb.url.set(drivername=f"mysql+{driver}"))
        page.maker.configure(bind=engine)
        check_a_deadlock(page)
        engine.dispose()

    @pytest.mark.parametrize("driver", ["pymysql", "mysqlconnector"])
    def test_a_lock_time_out_on_mariadb_is_repeated(
        self, driver: str, page: ModuleType, mariadb: Engine
    ) -> None:
        engine = create_engine(mariadb.url.set(drivername=f"mysql+{driver}"))
        page.maker.configure(bind=engine)
        calls: list[str] = []

        def work() -> None:
            calls.append("call")
            with current_session.begin():
                current_session.execute(text("SET innodb_lock_wait_timeout = 1"))
                current_session.execute(rename(1))

        with mariadb.connect() as other, page.app.app_context():
            other.execute(rename(1))
            event.listen(
                engine, "rollback", lambda _: other.rollback(), once=True
            )  # the first attempt's end
            page.trying_again(work)()
        assert len(calls) == 2
        engine.dispose()

    @pytest.mark.parametrize("driver", ["pymysql", "mysqlconnector"])
    @pytest.mark.parametrize("code", [1213, 1205])
    def test_the_number_is_enough_where_a_driver_has_no_sqlstate(
        self, code: int, driver: str, page: ModuleType, mariadb: Engine
    ) -> None:
        engine = create_engine(mariadb.url.set(drivername=f"mysql+{driver}"))
        page.maker.configure(bind=engine)
        calls: list[str] = []

        def work() -> None:
            calls.append("call")
            if len(calls) == 1:
                with current_session.begin():
                    current_session.execute(
                        text(f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {code}")
                    )

        with page.app.app_context():
            page.trying_again(work)()
        assert len(calls) == 2
        engine.dispose()

    @pytest.mark.parametrize("driver", ["asyncmy", "aiomysql"])
    def test_async_sessions_on_mariadb_get_through_too(
        self, driver: str, page: ModuleType, mariadb: Engine
    ) -> None:
        pytest.importorskip(driver)
        engine = create_async_engine(mariadb.url.set(drivername=f"mysql+{driver}"))
        page.async_session.configure(bind=engine)
        calls: list[str] = []

        async def work() -> None:
            calls.append("call")
            async with current_async_session.begin():
                await current_async_session.execute(
                    text("SET innodb_lock_wait_timeout = 1")
                )
                if len(calls) == 2:
                    other.rollback()
                await current_async_session.execute(rename(1))

        with mariadb.connect() as other, page.app.app_context():
            other.execute(rename(1))
            page.app.ensure_sync(page.trying_async_again(work))()
        assert len(calls) == 2
        page.app.ensure_sync(engine.dispose)()

    @pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
    def test_async_sessions_get_through_too(
        self, driver: str, page: ModuleType, server: Engine
    ) -> None:
        race = Race(server, 2)
        caught: list[type[BaseException]] = []
        engine = create_async_engine(
            server.url.set(drivername=f"postgresql+{driver}"), **SERIALIZABLE
        )
        page.async_session.configure(bind=engine)

        async def work() -> str:
            async with current_async_session.begin():
                try:
                    return await current_async_session.run_sync(read_and_write, race)
                except DBAPIError as error:
                    caught.append(type(error))
                    raise

        with page.app.app_context():
            name = page.app.ensure_sync(page.trying_async_again(work))()
            assert name.startswith("ANN")
        page.app.ensure_sync(engine.dispose)()
        assert race.reads == 3
        assert len(set(race.sessions)) == 3
        # What the obvious way catches, on one of the two.
        assert issubclass(caught[0], OperationalError) is (driver == "psycopg")


def check_a_deadlock(page: ModuleType) -> None:
    both_have_one = threading.Barrier(2, timeout=10)
    attempts: list[int] = []
    errors: list[BaseException] = []

    def lock(first: int, second: int) -> None:
        meets = True

        def work() -> None:
            nonlocal meets
            attempts.append(first)
            with current_session.begin():
                current_session.execute(rename(first))
                if meets:
                    meets = False
                    both_have_one.wait()
                current_session.execute(rename(second))

        try:
            with page.app.app_context():
                page.trying_again(work)()
        except BaseException as error:  # noqa: BLE001  # for the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=lock, args=order) for order in [(1, 2), (2, 1)]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(attempts) == 3


def rename(user_id: int) -> Update:
    return update(User).where(User.id == user_id).values(name="cleo")
