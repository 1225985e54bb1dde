"""One driver connection that stands for a whole engine, and is rolled back at the end.

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
"""

from __future__ import annotations

import asyncio
import re
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from itertools import count
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sqlalchemy import NullPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from sqlalchemy import AdaptedConnection, Engine, Pool, PoolProxiedConnection
    from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
    from typing_extensions import Self

T = TypeVar("T")

_numbers = count(1)

_COMMENT_OR_SPACE = r"(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*"
_WORDS = re.compile(_COMMENT_OR_SPACE + r"(\w+)(?:\s+(\w+))?(?:\s+(\w+))?", re.DOTALL)
_CHANGE = re.compile(r"\b(INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE)


class IsolationError(RuntimeError):
    """Something that can't be done, or undone, inside ``isolate()``."""

    __module__ = "flask_sqlalchemy_session.testing"


class SharedPool(NullPool):
    """Hands out stand-ins, also after `Engine.dispose`."""

    replaced: Pool

    def recreate(self) -> SharedPool:
        return self

    def is_beneath(self, pool: Pool) -> bool:
        """Tell whether a pool is this one, or of a block inside this one's."""
        while pool is not self and isinstance(pool, SharedPool):
            pool = pool.replaced
        return pool is self


class TaskLock:
    """Lets the tasks of an event loop take turns, as an `RLock` does threads."""

    def __init__(self, connection: AdaptedConnection) -> None:
        self._connection = connection
        self._lock = asyncio.Lock()
        self._owner: asyncio.Task[Any] | None = None
        self._depth = 0

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if self._owner is not task:
            # SQLAlchemy's documented way to await something where it calls a driver.
            self._connection.run_async(lambda _: self._lock.acquire())
            self._owner = task
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            self._lock.release()


class SharedConnection:
    """An engine's one open transaction, of which all others are savepoints.

    Takes the engine over when it is made, and gives it back in :meth:`end`. Connects
    when the engine does, on the event loop that it is used on where it is an async one.
    """

    driver: DBAPIConnection
    """The driver's connection, which all stand-ins stand for."""
    lock: AbstractContextManager[object]
    """Held for each statement."""
    autocommit: bool
    """Whether the engine's connections commit each statement."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ended = False
        self.refused: IsolationError | None = None
        # Those that have written, in the order of their savepoints; and above them
        # the one that has only read and has a savepoint, if there is one.
        self.writers: list[StandIn] = []
        self.reader: StandIn | None = None
        # Those that were dropped where nothing could be awaited.
        self.abandoned: list[StandIn] = []
        self._connecting = RLock()
        self._pooled: PoolProxiedConnection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun = False
        self._name = f"isolate_{next(_numbers)}"
        self._on_end = ExitStack()
        self.pool = SharedPool(self._check_out, dialect=engine.dialect)
        self.pool.replaced = engine.pool
        engine.pool = self.pool

    def _check_out(self) -> DBAPIConnection:
        with self._connecting:
            if self._pooled is None:
                self._connect()
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            raise IsolationError(
                f"{self.engine} is used on a second event loop. Inside isolate() it "
                "has one connection, which belongs to the first. Run all that uses it "
                "on one, as 'app.ensure_sync(function)()' does."
            )
        with self.lock:
            if not self._begun:
                self._begin()
        # It has all that the protocol names, most of it by `__getattr__`.
        return cast("DBAPIConnection", StandIn(self))

    def _connect(self) -> None:
        pooled = self.pool.replaced.connect()
        if self._pooled is not None:  # another task was faster
            pooled.close()
            return
        driver = pooled.dbapi_connection
        assert driver is not None  # it was checked out just now
        self.driver = driver
        if isinstance(driver, StandIn):  # of another block, around this one
            self.lock = driver.shared.lock
        elif self.engine.dialect.is_async:
            self.lock = TaskLock(cast("AdaptedConnection", driver))
        else:
            self.lock = RLock()
        if self.engine.dialect.is_async:
            self._loop = asyncio.get_running_loop()
        self._pooled = pooled

    def _begin(self) -> None:
        """Begin a transaction, whatever mode the driver is in."""
        dialect, driver = self.engine.dialect, self.driver
        with ExitStack() as on_error:
            on_error.callback(self._on_end.close)
            if isinstance(driver, StandIn):
                self.autocommit = driver.autocommit
                driver.autocommit = False
            elif dialect.name == "sqlite":
                # Python 3.12's `autocommit`; the older attribute counts without it.
                mode = self._sqlite_autocommit()
                if mode is not False and self._in_transaction():
                    raise IsolationError(
                        f"{self.engine} has a single connection, which was in a "
                        "transaction that began before isolate(), and is rolled back "
                        "now. End the transaction before the block."
                    )
                self.autocommit = mode is True or (
                    mode is not False and driver.isolation_level is None
                )
                self._on_end.callback(self._roll_back_sqlite)
            else:
                # Not every driver tells in this way whether it is in autocommit.
                mode = getattr(driver, "autocommit", None)
                self.autocommit = mode is True
                level = dialect.default_isolation_level
                if mode is not False and level is not None:
                    dialect.set_isolation_level(driver, level)
                    self._on_end.callback(dialect.reset_isolation_level, driver)
                self._on_end.callback(driver.rollback)
            # In SQLite this begins the transaction; its driver would at a change only.
            self.execute(f"SAVEPOINT {self._name}")
            on_error.pop_all()
        self._begun = True

    def end(self) -> None:
        """Roll back, and give the engine back its pool and the pool its connection.

        :raises IsolationError: when the transaction was ended by something else.
        """
        self.engine.pool = self.pool.replaced
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
            if self.engine.dialect.has_terminate:
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
        with self.lock, ExitStack() as stack:
            self.ended = True
            stack.callback(pooled.close)
            stack.callback(self._on_end.close)
            if self._begun:
                try:
                    # Is there only if the transaction is.
                    self.execute(f"ROLLBACK TO SAVEPOINT {self._name}")
                except self.engine.dialect.loaded_dbapi.Error as error:
                    raise self._ended_by_another() from error

    def _sqlite_autocommit(self) -> object:
        raw = self.engine.dialect.get_driver_connection(self.driver)
        return getattr(raw, "autocommit", None)

    def _in_transaction(self) -> bool:
        """Tell whether a transaction is open, where the driver tells."""
        raw = self.engine.dialect.get_driver_connection(self.driver)
        return bool(getattr(raw, "in_transaction", True))

    def _roll_back_sqlite(self) -> None:
        self.driver.rollback()
        # In autocommit the driver's own method does nothing; where a transaction is
        # always open, it begins the next.
        if self._sqlite_autocommit() is not False and self._in_transaction():
            self.execute("ROLLBACK")

    def _ended_by_another(self) -> IsolationError:
        return IsolationError(
            f"The transaction that isolate() keeps open on {self.engine} was ended by "
            "something else, so that what was committed in the block may still be in "
            "the database. The cause is a statement that commits by itself, or a use "
            "of the same driver connection that was open before the block."
        )

    def execute(self, statement: str) -> None:
        """Execute a statement of our own, that no event listener sees."""
        cursor = self.driver.cursor()
        try:
            cursor.execute(statement)
        finally:
            cursor.close()

    def before(self, one: StandIn, writes: bool) -> None:
        """Set the savepoints as they have to be for a statement of `one`."""
        if not self._in_transaction():
            raise self._ended_by_another()  # SQLite's savepoint would not fail
        while self.abandoned:
            with suppress(IsolationError):  # is raised again at the end of the block
                self.abandoned.pop().rollback()
        if self.reader is not one:
            self._forget_reader()
            if one not in self.writers:
                one.savepoint = f"isolate_{next(_numbers)}"
                self.execute(f"SAVEPOINT {one.savepoint}")
                self.reader = one
        if writes and self.reader is one:
            self.reader = None
            self.writers.append(one)
        elif writes:
            for other in self.above(one):
                other.foreign += 1

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

    def refuse(self, what: str) -> None:
        refused = IsolationError(
            f"{what} Inside isolate() the sessions of an engine share one connection, "
            "which can't undo the work of one and keep what came after it from "
            "another. Commit or roll back the first before the other writes."
        )
        self.refused = self.refused or refused
        raise refused

    def above(self, one: StandIn) -> list[StandIn]:
        return self.writers[self.writers.index(one) + 1 :]

    def _forget_reader(self) -> None:
        if self.reader is not None:
            reader, self.reader = self.reader, None
            # After a failure, PostgreSQL takes nothing but a rollback.
            (self._undo if reader.failed else self._release)(reader)

    def _release(self, one: StandIn) -> None:
        self.execute(f"RELEASE SAVEPOINT {one.savepoint}")

    def _undo(self, one: StandIn) -> None:
        self.execute(f"ROLLBACK TO SAVEPOINT {one.savepoint}")
        self._release(one)


class StandIn:
    """Stands for a driver connection of its own, with a savepoint for a transaction.

    Lives from the pool's check-out to its return.
    """

    def __init__(self, shared: SharedConnection) -> None:
        vars(self).update(
            shared=shared,
            savepoint="",
            autocommit=shared.autocommit,
            # Whether the transaction was begun by a statement.
            explicit=False,
            failed=False,
            # How often others have written inside the savepoint, now and when this
            # one set a savepoint of its own inside.
            foreign=0,
            marks={},
        )

    if TYPE_CHECKING:
        shared: SharedConnection
        savepoint: str
        autocommit: bool
        explicit: bool
        failed: bool
        foreign: int
        marks: dict[str, int]

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.shared.driver, name)
        return self.watch(name, value)

    def __setattr__(self, name: str, value: object) -> None:
        if name in vars(self):
            vars(self)[name] = value
        elif name == "isolation_level":
            # An open transaction has the level that it has. What counts is that this
            # is how `sqlite3` is put in autocommit.
            if self.shared.engine.dialect.name == "sqlite":
                self.autocommit = value is None
        elif name not in ("read_only", "readonly", "deferrable"):
            setattr(self.shared.driver, name, value)

    # What setting the attributes does, as methods: psycopg2 and asyncpg have the
    # first alone, async psycopg has the others for the rest.

    def set_isolation_level(self, level: object) -> None:
        if not hasattr(self.shared.driver, "set_autocommit"):
            self.autocommit = level in (0, "autocommit")

    def set_autocommit(self, value: bool) -> None:
        self.autocommit = value

    def set_read_only(self, value: object) -> None:
        pass

    def set_deferrable(self, value: object) -> None:
        pass

    def cursor(self, *args: Any, **kwargs: Any) -> StandInCursor:
        cursor = self.shared.driver.cursor(*args, **kwargs)
        # An async driver's plain cursor has all rows when it has executed, and can be
        # asked for them where nothing can be awaited.
        has_rows = self.shared.engine.dialect.is_async and not (args or kwargs)
        return StandInCursor(
            self, cursor, nullcontext() if has_rows else self.shared.lock
        )

    def commit(self) -> None:
        with self.shared.lock:
            if self.shared.ended:
                raise _ended()
            self.shared.commit(self)
            self._reset()

    def rollback(self) -> None:
        if self.autocommit and not self.explicit:
            self.commit()
            return
        with self.shared.lock:
            if not self.shared.ended:
                try:
                    self.shared.rollback(self)
                finally:
                    self._reset()

    def close(self) -> None:
        if not self.shared.ended:
            self.rollback()

    def terminate(self) -> None:
        """Roll back soon. The collector calls this, where nothing can be awaited."""
        self.shared.abandoned.append(self)

    def run(self, statement: object, call: Callable[[], T]) -> T | None:
        """Call what executes a statement, at the right savepoint."""
        with self.shared.lock:
            if self.shared.ended:
                raise _ended()
            if self.autocommit and not self.explicit:
                self.commit()
            if self._control(str(statement)):
                return None
            self.shared.before(self, _writes(str(statement)))
            try:
                return call()
            except BaseException:
                self.failed = True
                if self.autocommit and not self.explicit:
                    self.shared.rollback(self)
                    self._reset()
                raise

    def _control(self, statement: str) -> bool:
        """Do what a statement about the transaction asks for.

        :return: whether it is done.
        """
        words = _words(statement)
        match words:
            case ["BEGIN", *_] | ["START", "TRANSACTION", *_]:
                self.explicit = True
            case ["COMMIT" | "END", *_]:
                self.commit()
            case ["ROLLBACK" | "ABORT", *rest] if "TO" not in rest:
                self.explicit = True
                self.rollback()
            case ["PREPARE", "TRANSACTION", *_]:
                raise IsolationError(
                    "Inside isolate() no transaction can be prepared for a commit in "
                    "two phases. Leave out 'twophase=True' in tests."
                )
            case ["SAVEPOINT" | "RELEASE" | "ROLLBACK" as verb, *_]:
                self.explicit = True
                self._mark(verb, statement.rsplit(maxsplit=1)[-1])
                return False
            case _:
                return False
        return True

    def _mark(self, verb: str, name: str) -> None:
        """Keep count of others' work inside this one's own savepoints."""
        shared = self.shared
        if verb == "SAVEPOINT":
            self.marks[name] = self.foreign
        elif self in shared.writers and (
            shared.above(self)
            or (verb == "ROLLBACK" and self.foreign > self.marks.get(name, 0))
        ):
            shared.refuse(
                "A savepoint was released or rolled back to after another session "
                "wrote inside it."
            )

    def _reset(self) -> None:
        self.explicit = self.failed = False
        self.foreign = 0
        self.marks = {}

    def watch(self, name: str, value: T) -> T:
        """Count what a driver does beyond `execute` as a change."""
        if name.startswith(("call", "copy", "execute", "run_async", "stream")):
            self.run("", lambda: None)
        return value


class StandInCursor:
    """A driver's cursor that tells the stand-in what it executes."""

    def __init__(
        self,
        connection: StandIn,
        cursor: DBAPICursor,
        fetching: AbstractContextManager[object],
    ) -> None:
        vars(self).update(_connection=connection, _cursor=cursor, _fetching=fetching)

    if TYPE_CHECKING:
        _connection: StandIn
        _cursor: DBAPICursor
        _fetching: AbstractContextManager[object]

    def execute(self, operation: Any, *args: Any, **kwargs: Any) -> StandInCursor:
        self._connection.run(
            operation, partial(self._cursor.execute, operation, *args, **kwargs)
        )
        return self

    def executemany(self, operation: Any, *args: Any, **kwargs: Any) -> StandInCursor:
        self._connection.run(
            operation, partial(self._cursor.executemany, operation, *args, **kwargs)
        )
        return self

    # A driver may step through its result here, and not every one can do that while
    # another thread uses the connection.

    def fetchone(self) -> Any:
        with self._fetching:
            return self._cursor.fetchone()

    def fetchmany(self, *args: Any, **kwargs: Any) -> Any:
        with self._fetching:
            return self._cursor.fetchmany(*args, **kwargs)

    def fetchall(self) -> Any:
        with self._fetching:
            return self._cursor.fetchall()

    def close(self) -> None:
        with self._fetching:
            self._cursor.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetchone, None)

    def __getattr__(self, name: str) -> Any:
        return self._connection.watch(name, getattr(self._cursor, name))

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._cursor, name, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def _run_sync(function: Callable[[], None]) -> None:
    """Call what may use an async driver's connection."""
    from sqlalchemy.ext.asyncio import AsyncSession  # noqa: PLC0415  # needs greenlet, as nothing else here

    await AsyncSession().run_sync(lambda _: function())


def _ended() -> IsolationError:
    return IsolationError(
        "This connection was opened inside an isolate() block that has ended. Open "
        "another."
    )


def _words(statement: str) -> list[str]:
    match = _WORDS.match(statement)
    return [word.upper() for word in match.groups() if word] if match else []


def _writes(statement: str) -> bool:
    """Tell whether a statement may change something. In doubt it does."""
    match _words(statement):
        case ["SELECT" | "SHOW" | "VALUES", *_]:
            return False
        case ["PRAGMA", *_]:
            return "=" in statement
        case ["WITH", *_]:
            return _CHANGE.search(statement) is not None
        case _:
            return True
