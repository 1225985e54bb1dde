"""One driver connection that stands for a whole database, rolled back at the end.

While an engine is shared, its pool hands out stand-ins for a driver connection. Each
runs its transactions as savepoints of the one connection behind them, so that what
one commits the next sees, and nothing reaches the database for good. Above the
driver nothing differs: SQLAlchemy's connections, options and events are the real ones.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from threading import RLock
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast
from weakref import WeakSet

from sqlalchemy.util import greenlet_spawn

from flask_sqlalchemy_session._fork import never_finalise

from ._errors import IsolationError
from ._locks import TaskLock
from ._pool import SharedPool
from ._savepoints import Savepoints, new_name
from ._stand_in import Mode, StandIn

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sqlalchemy import Engine, PoolProxiedConnection
    from sqlalchemy.engine.interfaces import DBAPIConnection

    from ._statements import Statement

T = TypeVar("T")

_WHERE = {
    "postgresql": "SELECT current_database(), current_user, "
    "current_setting('search_path') AS path, "
    "current_setting('default_transaction_read_only') AS read_only",
    "mysql": "SELECT DATABASE(), CURRENT_USER()",
}
_CANT_ROLL_BACK = 1196  # MySQL's warning of tables without transactions
_UNDO_NOTHING = (
    "SELECT table_name FROM information_schema.tables JOIN information_schema.engines "
    "USING (engine) WHERE table_schema = DATABASE() AND transactions = 'NO'"
)
_WRITING_FUNCTIONS = {
    "postgresql": "SELECT upper(proname) FROM pg_catalog.pg_proc WHERE "
    "provolatile = 'v' AND (proname LIKE 'lo\\_%' OR "
    "pronamespace <> 'pg_catalog'::regnamespace)",
    "mysql": "SELECT upper(routine_name) FROM information_schema.routines "
    "WHERE routine_type = 'FUNCTION'",
}


class SharedConnection:
    """A database's one open transaction, of which all others are savepoints.

    Takes engines over, and gives them back in :meth:`end`. Connects when one of them
    does, on the event loop that it is used on where it is an async one.
    """

    driver: DBAPIConnection
    """The driver's connection, which all stand-ins stand for."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.dialect = engine.dialect
        name = engine.dialect.name
        self.database = "mysql" if name == "mariadb" else name
        #: Held for each statement.
        self.lock = TaskLock() if engine.dialect.is_async else RLock()
        #: The same, for what is called where an async driver can't await.
        self.turn: Any = nullcontext() if engine.dialect.is_async else self.lock
        #: Why nothing can be done on the connection any more.
        self.broken: IsolationError | None = None
        self.savepoints = Savepoints(self.execute)
        #: Whether the driver executes something.
        self.executing = False
        #: Those that were dropped where nothing could be executed.
        self.abandoned: list[StandIn] = []
        self.pools: list[SharedPool] = []
        self._errors: Any = (engine.dialect.loaded_dbapi.Error, OSError)
        self._is_where: list[Any] = []
        self._last = ""
        #: What the driver's connection had for what stand-ins have set on it.
        self.found: dict[str, Any] = {}
        #: Whether something stays on the connection that no rollback takes.
        self._keeps_something = False
        self._functions: set[object] | None = None
        self._given: tuple[SharedPool, PoolProxiedConnection] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._name = new_name()
        _all.add(self)
        self.take_over(engine)

    # The beginning.

    def take_over(self, engine: Engine) -> None:
        """Let an engine of this database connect through this connection."""
        pool = SharedPool(engine, self)
        self.pools.append(pool)
        engine.pool = pool

    def check_use(self) -> None:
        """Raise what keeps an engine from connecting, if anything does."""
        self.check()
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            raise IsolationError(
                f"{self.engine} is used on a second event loop, and its one connection "
                "inside isolate() belongs to the first. Run all that uses it on one, "
                "as 'app.ensure_sync(function)()' does. [second-loop]"
            )

    def connect(self, pool: SharedPool) -> StandIn:
        """Make a stand-in, for the pool of an engine."""
        if self.dialect.is_async:
            self._loop = asyncio.get_running_loop()
        with self.lock:
            mode = pool.mode = pool.mode or self._connect_for_real(pool)
        return StandIn(self, mode)

    def _connect_for_real(self, pool: SharedPool) -> Mode:
        """Find the mode of an engine's connections, the first of which is kept."""
        pooled = pool.connect_for_real()
        driver = cast("DBAPIConnection", pooled.dbapi_connection)
        try:
            mode = self._mode_of(driver)
            where = self._where(driver)
            if self._given is None:
                self.driver = driver
                self._begin(mode)
                self._given = pool, pooled
                self._is_where = where
            elif where != self._is_where:
                raise IsolationError(
                    f"{pool.engine} has the address of {self.engine}, but its "
                    f"'creator' or 'connect_args' lead to {where} instead of "
                    f"{self._is_where}. Give them addresses of their own, or isolate "
                    "one of them. [two-places]"
                )
        finally:
            if self._given != (pool, pooled):
                pool.give_back(pooled)
        return mode

    def _where(self, driver: DBAPIConnection) -> list[Any]:
        """Ask a new connection to what it leads: its database, user and schemas."""
        where: list[Any] = []
        if query := _WHERE.get(self.database):
            where = self._execute(query, driver)[0]
            driver.rollback()  # the transaction that this may have begun
        return [*map(str, where)]

    def _mode_of(self, driver: Any) -> Mode:
        raw: Any = self.dialect.get_driver_connection(driver)
        if self.database == "sqlite":
            # Python 3.12's attribute; the older one counts where it is not set.
            mode = Mode(getattr(raw, "autocommit", Mode.SQLITE.value))
            legacy = mode is Mode.SQLITE and driver.isolation_level is None
            return Mode.AUTOCOMMIT if legacy else mode
        # A method sets it on some drivers for MySQL, and another tells. That of the
        # async ones SQLAlchemy 2.0.22 does not pass on.
        get = getattr(driver, "get_autocommit", getattr(raw, "get_autocommit", None))
        value = getattr(driver, "autocommit", False) if get is None else get()
        return Mode(value == 1)

    def _begin(self, mode: Mode) -> None:
        """Begin a transaction, whatever mode the driver is in."""
        self._mode = mode
        is_sqlite = self.database == "sqlite"
        if is_sqlite and mode is not Mode.TRANSACTION and self._sqlite_in_transaction():
            raise IsolationError(
                f"{self.engine} has a single connection, which was in a transaction "
                "before isolate(). End that before the block. [single-connection]"
            )
        try:
            if mode is Mode.AUTOCOMMIT:
                self._execute("BEGIN")
            # In SQLite this begins it; its driver would at a change.
            self._execute(f"SAVEPOINT {self._name}")
            self._execute(f"SAVEPOINT {self._name}_tried")
            self._execute(f"RELEASE SAVEPOINT {self._name}_tried")
            # Not later, where a statement may be about the one before it.
            self._functions = self._find_functions()
        except self._errors as error:
            self._undo()
            raise IsolationError(
                f"{self.engine} can't be isolated: {self.dialect.name} refuses "
                f"savepoints ({error}). Test with a database that has them, or empty "
                "the tables after each test. [no-savepoints]"
            ) from error

    def _undo(self) -> None:
        """Roll back, which the method of a driver in autocommit does not always do."""
        with suppress(Exception):  # where there is nothing to roll back any more
            if self._mode is Mode.AUTOCOMMIT:
                self._execute("ROLLBACK")
            else:
                self.driver.rollback()

    def _sqlite_in_transaction(self) -> bool:
        """Tell whether a transaction is open, where the driver tells."""
        driver: Any = self.driver
        if not isinstance(driver, StandIn):  # of another block, around this one
            driver = self.dialect.get_driver_connection(driver)
        with suppress(*self._errors):  # of one that is closed
            return bool(getattr(driver, "in_transaction", True))
        return False

    # The end.

    def end(self) -> None:
        """Roll back, and give each engine its pool and the pool its connection back.

        :raises IsolationError: when the transaction was ended by something else, or
            not all could be undone.
        """
        with ExitStack() as stack:
            stack.callback(self._end_connection)
            for pool in self.pools:
                stack.callback(pool.end)

    def _end_connection(self) -> None:
        if self._given is None:
            self._give_back()
        elif self._loop is None:
            self._end()
        elif self._loop.is_running():
            end = greenlet_spawn(self._end)
            asyncio.run_coroutine_threadsafe(end, self._loop).result()
        elif self.dialect.has_terminate:
            self._drop()
        else:  # its driver awaits the close, on any loop
            asyncio.run(greenlet_spawn(self._drop))

    def _drop(self) -> None:
        self._give_back(drop=True)
        raise IsolationError(
            f"The event loop that {self.engine} was used on ended before isolate() "
            "did, and its connection was dropped. Write 'async with isolate(...)' in "
            "what the loop runs. [loop-before-block]"
        )

    def _end(self) -> None:
        with self.lock, ExitStack() as stack:
            stack.callback(self._give_back)
            stack.callback(self._undo)
            # Where something has ended the transaction, this savepoint is gone.
            self.execute(f"ROLLBACK TO SAVEPOINT {self._name}")
            if self.database == "mysql":
                self._check_tables()

    def _check_tables(self) -> None:
        """Miss what MySQL warns at a rollback that it can't roll back.

        It warns of temporary tables too, which no test finds again.
        """
        self.execute("ROLLBACK")
        warned = {row[1] for row in self.execute("SHOW WARNINGS")}
        tables = self.execute(_UNDO_NOTHING) if _CANT_ROLL_BACK in warned else []
        if tables:
            raise IsolationError(
                f"Rows that were written in the block may still be in {self.engine}: "
                "the server could not roll back a table, which is a temporary one or "
                "has an engine without transactions (MyISAM or Aria, say). Of these "
                f"there are: {', '.join(str(row[0]) for row in tables)}. Make them "
                "InnoDB tables, or empty them after each test. [rows-left]"
            )

    def _give_back(self, *, drop: bool = False) -> None:
        if self._given is not None:
            pool, pooled = self._given
            # With SQLite's a database in memory would go.
            if self.database != "sqlite":
                drop = drop or self._keeps_something or self.broken is not None
            pool.give_back(pooled, drop=drop)
            self._given = None
        self.broken = IsolationError(
            "This connection was opened inside an isolate() block that has ended. "
            "Open another. [block-ended]"
        )

    # What breaks it.

    def check(self) -> None:
        """Raise what keeps the connection from being used, if anything does."""
        if self.broken is not None or (
            # There savepoints work outside of a transaction, too.
            self.database == "sqlite"
            and self._given is not None
            and not self._sqlite_in_transaction()
        ):
            self.stop()

    def stop(self) -> NoReturn:
        """Note that nothing can be done on the connection any more, and why."""
        if self.broken is None:
            last = f"The last statement was: {self._last or 'none'}."
            self._undo()
            self.broken = IsolationError(
                f"The connection to {self.engine} was lost inside isolate(), and with "
                "it all that was written in the block. Look for what ended it: a "
                "timeout, a restart, a kill or the last statement (drivers for MySQL "
                f"end it when one is cancelled). {last} [lost]"
            )
            if self._answers():
                self.broken = IsolationError(
                    f"The transaction that isolate() keeps open on {self.engine} was "
                    "ended by something else, and what was committed may still be in "
                    "the database. The cause is a statement that commits by itself, or "
                    f"a use of the driver's connection. {last} [transaction-ended]"
                )
        # A new one each time, for none to keep what it passed through.
        raise IsolationError(*self.broken.args)

    def _answers(self) -> bool:
        """Tell whether the connection answers, and what it is asked now."""
        name = new_name()
        with suppress(Exception):  # of a driver that is out of step, of any class
            return bool(self._execute(f"SELECT '{name}'")[0][0] == name)
        return False

    def leave_to_parent(self) -> None:
        """Use no more, in a forked child, what the parent goes on with."""
        if self._given is None:
            return
        never_finalise([self._given])
        self._given = None
        self.broken = IsolationError(
            "isolate() was begun in the process that this one was forked from, which "
            f"goes on with its connection to {self.engine}. What a test does in "
            "another process can't be isolated: empty the tables after it. [forked]"
        )

    # What is executed.

    def set_attributes(self, attributes: dict[str, Any]) -> None:
        """Let the driver's connection have what was set on one of those it stands for.

        Each has its own way to make rows, say, and so have the block's own statements.
        """
        for name, found in self.found.items():
            setattr(self.driver, name, attributes.get(name, found))

    def execute(self, statement: str) -> list[Any]:
        """Execute a statement of our own, that no event listener sees.

        :raises IsolationError: when the transaction is not there any more.
        """
        self.check()
        try:
            return self._execute(statement)
        except self._errors:
            self.stop()

    def _execute(
        self, statement: str, driver: DBAPIConnection | None = None
    ) -> list[Any]:
        with self._in_driver():
            self.set_attributes({})
            cursor = (self.driver if driver is None else driver).cursor()
            try:
                cursor.execute(statement)
                return [*cursor.fetchall()] if cursor.description else []
            finally:
                cursor.close()

    @contextmanager
    def _in_driver(self) -> Generator[None]:
        """Note that the driver executes something, and so can't begin anything else."""
        before, self.executing = self.executing, True
        try:
            yield
        finally:
            self.executing = before

    def run(
        self, one: StandIn, statement: Statement, call: Callable[[], T], *, whole: bool
    ) -> T:
        """Execute a statement of `one` at its savepoint.

        :param whole: whether it has changed nothing when it fails.
        """
        while self.abandoned:
            with suppress(IsolationError):  # is raised again at the end of the block
                self.abandoned.pop().rollback()
        writes = self.may_write(statement)
        self._last = statement.kind
        self._keeps_something = self._keeps_something or statement.stays
        try:
            self.savepoints.enter(one)
            if self.database == "postgresql":
                self.savepoints.set_for_statement(one)
            with self._in_driver():
                self.set_attributes(one.attributes)
                result = call()
        except BaseException:
            if self.note_failure(one) and writes and not (whole and statement.is_whole):
                self.savepoints.note_write(one)  # a part of it, perhaps
            raise
        if writes:
            self.savepoints.note_write(one)
        return result

    def note_failure(self, one: StandIn) -> bool:
        """Roll back what PostgreSQL takes nothing else after.

        :return: whether nothing had to be rolled back.
        """
        with self.lock, suppress(IsolationError):  # the user sees the driver's error
            self.check()
            # Where the connection was lost, the rollback finds out.
            if self._answers():
                return True
            self.savepoints.fail(one)
            if not self._answers():  # but late, as pg8000 after an interrupt
                self.stop()
        return False

    def run_failed(self, call: Callable[[], T]) -> T:
        """Let a statement of a transaction that failed fail, as PostgreSQL does."""
        name = new_name()
        self.execute(f"SAVEPOINT {name}")
        try:
            with suppress(*self._errors):
                self._execute("SELECT 1/0")
            return call()
        finally:
            self.execute(f"ROLLBACK TO SAVEPOINT {name}")
            self.execute(f"RELEASE SAVEPOINT {name}")

    def may_write(self, statement: Statement) -> bool:
        """Tell whether a statement may change something, with what it calls."""
        if statement.writes:
            if not statement.is_dml and self.database == "postgresql":
                self._functions = None  # it may make some; elsewhere that is refused
            return True
        if statement.calls and self._functions is None:
            self._functions = self._find_functions()
        return not statement.calls.isdisjoint(self._functions or ())

    def _find_functions(self) -> set[object]:
        """Return the names of the functions of the database that may write."""
        query = _WRITING_FUNCTIONS.get(self.database)
        return {row[0] for row in self.execute(query)} if query else set()


_all: WeakSet[SharedConnection] = WeakSet()


def _leave_to_parent() -> None:
    for each in [*_all]:
        each.leave_to_parent()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_leave_to_parent)
