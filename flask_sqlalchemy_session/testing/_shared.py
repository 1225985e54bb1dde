"""One driver connection that stands for a whole database, rolled back at the end.

While an engine is shared, its pool hands out stand-ins for a driver connection. Each
runs its transactions as savepoints of the one connection behind them, so that what
one commits the next sees, and nothing reaches the database for good. Above the
driver nothing differs: SQLAlchemy's connections, options and events are the real ones.

A savepoint can only be rolled back together with all that came after it, while
transactions of different connections may end in any order. So these hold:

- A transaction that has only read keeps no savepoint below another's work. It gets a
  new one before its next statement.
- What one transaction commits inside the savepoint of another, which has written and
  not ended, can't outlive a rollback of that other one. That rollback is refused.
- A statement that failed leaves the connection fit for the next of another session.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress
from functools import partial
from itertools import count
from threading import RLock
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from ._errors import IsolationError
from ._locks import TaskLock
from ._modes import Mode, find_mode, leave_autocommit, sqlite_autocommit
from ._pool import SharedPool
from ._stand_in import StandIn
from ._statements import MYSQL

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from sqlalchemy import AdaptedConnection, Engine, PoolProxiedConnection
    from sqlalchemy.engine.interfaces import DBAPIConnection

    from ._statements import Statement

T = TypeVar("T")

_numbers = count(1)

_CANT_ROLL_BACK = 1196  # MySQL's warning of tables without transactions


class SharedConnection:
    """A database's one open transaction, of which all others are savepoints.

    Takes engines over, and gives them back in :meth:`end`. Connects when one of them
    does, on the event loop that it is used on where it is an async one.
    """

    driver: DBAPIConnection
    """The driver's connection, which all stand-ins stand for."""
    lock: AbstractContextManager[object]
    """Held for each statement."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.dialect = engine.dialect
        self.database = "mysql" if engine.dialect.name in MYSQL else engine.dialect.name
        self.ended = False
        self.refused: IsolationError | None = None
        #: Why nothing can be done on the connection any more.
        self.broken: IsolationError | None = None
        self._lost = False
        # Those that have written, in the order of their savepoints; and above them
        # the one that has only read and has a savepoint, if there is one.
        self.writers: list[StandIn] = []
        self.reader: StandIn | None = None
        # Those that were dropped where nothing could be awaited.
        self.abandoned: list[StandIn] = []
        #: The last statement that may have committed by itself.
        self.doubtful: Statement | None = None
        self._untouched = True
        self._functions: dict[str, bool] = {}
        self._connecting = RLock()
        self._pooled: PoolProxiedConnection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun = False
        self._name = f"isolate_{next(_numbers)}"
        self._on_end = ExitStack()
        self.pools: list[tuple[Engine, SharedPool]] = []
        self._modes: dict[SharedPool, Mode] = {}
        self.take_over(engine)

    def take_over(self, engine: Engine) -> None:
        """Let an engine of this database connect through this connection."""
        pool = SharedPool(engine, self._check_out)
        self.pools.append((engine, pool))
        engine.pool = pool

    def _check_out(self, pool: SharedPool) -> DBAPIConnection:
        self.check()
        with self._connecting:
            if self._pooled is None:
                self._connect(pool)
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            raise IsolationError(
                f"{self.engine} is used on a second event loop. Inside isolate() it "
                "has one connection, which belongs to the first. Run all that uses it "
                "on one, as 'app.ensure_sync(function)()' does."
            )
        with self.lock:
            if not self._begun:
                self._begin(pool)
            if pool not in self._modes:  # of another engine than the connection
                pooled = pool.connect_for_real()
                try:
                    driver = cast("DBAPIConnection", pooled.dbapi_connection)
                    self._modes[pool] = find_mode(driver, self.dialect)
                finally:
                    pool.give_back(pooled)
        # It has all that the protocol names, most of it by `__getattr__`.
        return cast("DBAPIConnection", StandIn(self, self._modes[pool]))

    def _connect(self, pool: SharedPool) -> None:
        pooled = pool.connect_for_real()
        if self._pooled is not None:  # another task was faster
            pool.give_back(pooled)
            return
        driver = cast("DBAPIConnection", pooled.dbapi_connection)
        self.driver = driver
        if isinstance(driver, StandIn):  # of another block, around this one
            self.lock = driver.shared.lock
        elif self.dialect.is_async:
            self.lock = TaskLock(cast("AdaptedConnection", driver))
        else:
            self.lock = RLock()
        if self.dialect.is_async:
            self._loop = asyncio.get_running_loop()
        self._pool = pool
        self._pooled = pooled

    def _begin(self, pool: SharedPool) -> None:
        """Begin a transaction, whatever mode the driver is in."""
        driver = self.driver
        with ExitStack() as on_error:
            on_error.callback(self._on_end.close)
            if isinstance(driver, StandIn):
                mode = driver.mode
                driver.mode = Mode.TRANSACTION
                self._on_end.callback(setattr, driver, "mode", mode)
                self._on_end.callback(driver.rollback)
            else:
                mode = find_mode(driver, self.dialect)
                self._prepare(driver, mode)
            try:
                # In SQLite this begins the transaction; its driver would at a change.
                self._execute(f"SAVEPOINT {self._name}")
                self._execute(f"SAVEPOINT {self._name}_tried")
                self._execute(f"RELEASE SAVEPOINT {self._name}_tried")
            except self._errors() as error:
                if self.failed_with(error):
                    self.check()
                with suppress(*self._errors()):
                    self._on_end.close()
                raise IsolationError(
                    f"{self.engine} can't be isolated: {self.dialect.name} refuses "
                    f"savepoints ({error}), which isolate() makes of the sessions' "
                    "transactions. Test with a database that has them, or leave "
                    "isolate() out and empty the tables after each test."
                ) from error
            on_error.pop_all()
        self._modes[pool] = mode
        self._begun = True

    def _prepare(self, driver: DBAPIConnection, mode: Mode) -> None:
        """Let a driver begin a transaction, and note what undoes that."""
        if self.database == "sqlite":
            in_use = sqlite_autocommit(driver, self.dialect) is not False
            if in_use and self._sqlite_in_transaction():
                raise IsolationError(
                    f"{self.engine} has a single connection, which was in a "
                    "transaction that began before isolate(), and is rolled back "
                    "now. End the transaction before the block."
                )
            self._on_end.callback(self._roll_back_sqlite)
            return
        if mode is Mode.AUTOCOMMIT:
            self._on_end.callback(leave_autocommit(driver))
        if self.database == "mysql":
            level = self.dialect.get_isolation_level(driver)
            driver.rollback()
            self._on_end.callback(self._restore_level, level)
        self._on_end.callback(driver.rollback)

    def _restore_level(self, level: Any) -> None:
        # What is in the way of a transaction is no part of it in MySQL.
        if self.dialect.get_isolation_level(self.driver) != level:
            self.dialect.set_isolation_level(self.driver, level)

    def end(self) -> None:
        """Roll back, and give each engine its pool and the pool its connection back.

        :raises IsolationError: when the transaction was ended by something else, or
            not all could be undone.
        """
        for engine, pool in self.pools:
            engine.pool = pool.replaced
            pool.hand_over()
        if self._pooled is None:
            self.ended = True
        elif self._loop is None:
            self._end(self._pooled)
        elif self._loop.is_running():
            asyncio.run_coroutine_threadsafe(
                _run_sync(partial(self._end, self._pooled)), self._loop
            ).result()
        else:
            self.ended = True
            if self.dialect.has_terminate:
                self._pooled.invalidate()
            else:  # its driver awaits the close, on any loop
                asyncio.run(_run_sync(self._pooled.invalidate))
            raise IsolationError(
                f"The event loop that {self.engine} was used on ended before "
                "isolate() did, so that its connection was dropped, and the database "
                "left to roll it back. End the block first: write 'async with "
                "isolate(...)' in what the loop runs."
            )

    def _end(self, pooled: PoolProxiedConnection) -> None:
        with self.lock:
            self.ended = True
            kept = False
            try:
                # Is there only if the transaction is.
                if self._begun and self.broken is None:
                    self.execute(f"ROLLBACK TO SAVEPOINT {self._name}")
                    kept = self._keeps_rows()
            finally:
                try:
                    if not self._lost:
                        self._on_end.close()
                except BaseException:
                    self._lost = True
                    raise
                finally:
                    self._pool.give_back(pooled, broken=self._lost)
        self.check()
        if kept:
            raise IsolationError(
                f"Rows that were written in the block are still in {self.engine}: a "
                "table there has an engine without transactions (MyISAM or Aria, say), "
                "which can't roll back. Make it an InnoDB table, or empty it after "
                "each test."
            )

    def _keeps_rows(self) -> bool:
        """Roll all back, and tell whether MySQL warns that it could not."""
        if self.database != "mysql" or isinstance(self.driver, StandIn):
            return False
        self.execute("ROLLBACK")
        return any(row[1] == _CANT_ROLL_BACK for row in self.execute("SHOW WARNINGS"))

    def _sqlite_in_transaction(self) -> bool:
        """Tell whether a transaction is open, where the driver tells."""
        raw = self.dialect.get_driver_connection(self.driver)
        return bool(getattr(raw, "in_transaction", True))

    def _roll_back_sqlite(self) -> None:
        self.driver.rollback()
        # In autocommit the driver's own method does nothing; where a transaction is
        # always open, it begins the next.
        always = sqlite_autocommit(self.driver, self.dialect) is False
        if not always and self._sqlite_in_transaction():
            self._execute("ROLLBACK")

    def check(self) -> None:
        """Raise what keeps the connection from being used, if anything does."""
        if self.broken is not None:
            # A new one each time, for none to keep what it passed through.
            raise IsolationError(*self.broken.args)

    def failed_with(self, error: BaseException) -> bool:
        """Note that the server has ended the connection, if an error means that."""
        if (
            isinstance(error, self._errors())
            and self.broken is None
            and self.dialect.is_disconnect(cast("Any", error), self.driver, None)
        ):
            self.broken = IsolationError(
                f"The connection to {self.engine} was lost inside isolate(), and with "
                "it all that was written and committed in the block: the database has "
                "rolled it back. Every later use of the engine in the block fails. "
                "Look for what ended the connection (a timeout, a restart or a kill)."
            )
            self._lost = True
        return self.broken is not None

    def _errors(self) -> Any:
        return (self.dialect.loaded_dbapi.Error, OSError)

    def execute(self, statement: str) -> list[Any]:
        """Execute a statement of our own, that no event listener sees.

        :raises IsolationError: when the transaction is not there any more.
        """
        self.check()
        self._check_sqlite()
        try:
            return self._execute(statement)
        except self._errors() as error:
            if not self.failed_with(error):
                self._fail()
            raise IsolationError(*cast("IsolationError", self.broken).args) from error

    def _check_sqlite(self) -> None:
        """Miss a transaction that was ended, outside of which savepoints work too."""
        if self.database != "sqlite":
            return
        try:
            if self._sqlite_in_transaction():
                return
        except self._errors() as error:  # it is closed
            if not self.failed_with(error):
                raise
        else:
            self._fail()
        self.check()

    def _fail(self) -> None:
        what = "" if self.doubtful is None else f" The last was: {self.doubtful.kind}."
        self.broken = IsolationError(
            f"The transaction that isolate() keeps open on {self.engine} was ended by "
            "something else, so that what was committed in the block may still be in "
            "the database. The cause is a statement that commits by itself, or a use "
            f"of the same driver connection that was open before the block.{what}"
        )

    def _execute(self, statement: str) -> list[Any]:
        cursor = self.driver.cursor()
        try:
            cursor.execute(statement)
            return [*cursor.fetchall()] if cursor.description else []
        finally:
            cursor.close()

    def may_write(self, statement: Statement) -> bool:
        """Tell whether a statement may change something, with what it calls."""
        if statement.writes():
            if statement.words[:1] not in (["INSERT"], ["UPDATE"], ["DELETE"]):
                self._functions.clear()
            return True
        return any(map(self._function_writes, sorted(statement.calls())))

    def _function_writes(self, name: str) -> bool:
        if name not in self._functions:
            query = {
                "postgresql": "SELECT 1 FROM pg_catalog.pg_proc WHERE proname = '{}' "
                "AND provolatile = 'v' AND (proname LIKE 'lo\\_%' OR "
                "pronamespace <> 'pg_catalog'::regnamespace)",
                "mysql": "SELECT 1 FROM information_schema.routines "
                "WHERE routine_name = '{}' AND routine_type = 'FUNCTION'",
            }.get(self.database)
            self._functions[name] = query is not None and bool(
                self.execute(query.format(name))
            )
        return self._functions[name]

    def set_pragma(self, name: str, value: str) -> bool:
        """Set SQLite's foreign keys, which it does outside of transactions only.

        :return: whether that is done.
        """
        if not self._untouched:
            return False
        self._roll_back_sqlite()
        self._execute(f"PRAGMA {name} = {value}")
        self._execute(f"SAVEPOINT {self._name}")
        return True

    # The savepoints.

    def run(
        self,
        one: StandIn,
        call: Callable[[], T],
        *,
        writes: bool,
        whole: bool = True,
        guarded: bool = True,
    ) -> T:
        """Execute a statement of `one` at its savepoint.

        :param writes: whether the statement may change something.
        :param whole: whether it has changed nothing when it fails.
        :param guarded: whether it can have a savepoint of its own.
        """
        while self.abandoned:
            with suppress(IsolationError):  # is raised again at the end of the block
                self.abandoned.pop().rollback()
        guard = self._set_savepoint(one, guarded=guarded)
        self._untouched = False
        try:
            result = call()
        except BaseException as error:
            if not self.failed_with(error):
                self._recover(one, guard, wrote=writes and not whole)
            raise
        if guard:
            self.execute(f"RELEASE SAVEPOINT {guard}")
        if writes:
            self.note_write(one)
        return result

    def _set_savepoint(self, one: StandIn, *, guarded: bool) -> str:
        """Set what a statement needs.

        :return: the name of a savepoint for this statement alone, where there is one.
        """
        self._check_sqlite()
        if self.reader is not one:
            self._forget_reader()
            if one not in self.writers:
                one.savepoint = f"isolate_{next(_numbers)}"
                self.execute(f"SAVEPOINT {one.savepoint}")
                self.reader = one
                return ""
        # PostgreSQL takes nothing after a failure but a rollback to a savepoint. The
        # one that a transaction has will do, if no other has written since.
        if guarded and self.database == "postgresql" and self._others_since(one):
            guard = f"isolate_{next(_numbers)}"
            self.execute(f"SAVEPOINT {guard}")
            return guard
        return ""

    def _others_since(self, one: StandIn) -> bool:
        mark = [0, *one.marks.values()][-1]
        return bool(self.above(one)) or one.foreign > mark

    def note_write(self, one: StandIn) -> None:
        if self.reader is one:
            self.reader = None
            self.writers.append(one)
        else:
            for other in self.above(one):
                other.foreign += 1

    def _recover(self, one: StandIn, guard: str, *, wrote: bool) -> None:
        """Make the connection fit for the next statement, after one failed."""
        if self.database != "postgresql":
            if wrote:  # a part of it, perhaps
                self.note_write(one)
            return
        one.failed = True
        if guard:
            self.execute(f"ROLLBACK TO SAVEPOINT {guard}")
            self.execute(f"RELEASE SAVEPOINT {guard}")
        elif one.marks:
            self.execute(f"ROLLBACK TO SAVEPOINT {[*one.marks][-1]}")
        else:  # all that can follow is a rollback
            self._undo(one)
            self._forget(one)

    def run_failed(self, one: StandIn, call: Callable[[], T]) -> T:
        """Let a statement of a transaction that failed fail, as PostgreSQL does."""
        guard = f"isolate_{next(_numbers)}"
        self.execute(f"SAVEPOINT {guard}")
        try:
            with suppress(*self._errors()):
                self._execute("SELECT 1/0")
            return call()
        finally:
            self.execute(f"ROLLBACK TO SAVEPOINT {guard}")
            self.execute(f"RELEASE SAVEPOINT {guard}")

    def commit(self, one: StandIn) -> None:
        if one is self.reader:
            self._forget_reader()
        elif one in self.writers:
            # Below another's work the savepoint stays, where it does no harm.
            if not self.above(one):
                self._release(one)
                self.reader = None
            for other in self.writers[: self.writers.index(one)]:
                other.foreign += 1
            self.writers.remove(one)

    def rollback(self, one: StandIn) -> None:
        """Undo what `one` has written.

        :raises IsolationError: when that would undo what others have written. All
            of it is kept then.
        """
        if one is self.reader:
            self._undo(one)
            self.reader = None
        elif one in self.writers:
            above = self.above(one)
            self.writers.remove(one)
            if above or one.foreign:
                self.refuse(
                    "A transaction was rolled back, or its session closed without a "
                    "commit, after it had written and while another session wrote "
                    "too."
                )
            self._undo(one)
            self.reader = None

    def refuse(self, what: str) -> NoReturn:
        refused = IsolationError(
            f"{what} Inside isolate() the sessions of an engine share one connection, "
            "which can't undo the work of one and keep what came after it from "
            "another. Commit or roll back the first before the other writes."
        )
        self.refused = self.refused or refused
        raise refused

    def above(self, one: StandIn) -> list[StandIn]:
        if one not in self.writers:
            return []
        return self.writers[self.writers.index(one) + 1 :]

    def is_open(self, one: StandIn) -> bool:
        return one is self.reader or one in self.writers

    def _forget(self, one: StandIn) -> None:
        if one is self.reader:
            self.reader = None
        else:
            self.writers.remove(one)

    def _forget_reader(self) -> None:
        if self.reader is not None:
            reader, self.reader = self.reader, None
            self._release(reader)

    def _release(self, one: StandIn) -> None:
        self.execute(f"RELEASE SAVEPOINT {one.savepoint}")

    def _undo(self, one: StandIn) -> None:
        self.execute(f"ROLLBACK TO SAVEPOINT {one.savepoint}")
        self._release(one)


async def _run_sync(function: Callable[[], None]) -> None:
    """Call what may use an async driver's connection."""
    from sqlalchemy.ext.asyncio import AsyncSession  # noqa: PLC0415  # needs greenlet, as nothing else here

    await AsyncSession().run_sync(lambda _: function())
