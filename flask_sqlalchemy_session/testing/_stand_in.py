"""What stands for a driver connection, with a savepoint for a transaction."""

from __future__ import annotations

import re
import sqlite3
from contextlib import contextmanager, suppress
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ._cursor import StandInCursor, psycopg2_class
from ._errors import IsolationError
from ._statements import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from typing_extensions import Self

    from ._shared import SharedConnection
    from ._statements import Statement

T = TypeVar("T")

_EXECUTING = re.compile("call|copy|execute|fetch|mogrify_|run_async|stream")
_REFUSED = re.compile(
    r"(backup|begin|blobopen|change_user|close|cmd_(change_user|query|reset_connection)|"
    r"commit|cursor|notifies|pipeline|prepare|query|reset(_session)?|rollback|"
    r"set_autocommit|set_session|start_transaction|terminate|"
    r"tpc_(begin|commit|prepare|rollback)|transaction|xa)\Z"
)
"""What a connection is not asked for, unless the stand-in has it itself."""
_NEEDS_NO_TRANSACTION = re.compile(
    r"\b(?:inside|within) (?:a )?transaction\b|invalid transaction termination"
)
_AUTOCOMMIT = re.compile(r"(?<!GLOBAL\.)(?<!GLOBAL )\bAUTOCOMMIT ?:?= ?([^\s,;]+)")
_KEPT = {"binary", "cursor_factory", "row_factory"}
"""What a cursor of PostgreSQL's is asked for, beyond how it reads."""
_TAKES_TEXT = ("copy", "copy_expert", "execute", "executemany", "stream")
_ON = ("1", "ON", "TRUE", "YES")
_OFF = ("0", "OFF", "FALSE", "NO")


def refuse_to_prepare() -> NoReturn:
    raise IsolationError(
        "Inside isolate() no transaction can be prepared for a commit in two phases. "
        "Leave out 'twophase=True' in tests. [two-phase]"
    )


class Mode(Enum):
    """When a statement outside of `BEGIN` and `COMMIT` is committed."""

    # The values are those of Python 3.12's `sqlite3.Connection.autocommit`, of which
    # other drivers know the first two.
    TRANSACTION = False
    """When the driver is told to commit."""
    AUTOCOMMIT = True
    """At once."""
    SQLITE = -1
    """At once, but for those that change rows. `sqlite3` does so by default."""


class StandIn:
    """Stands for a driver connection of its own.

    Lives as long as that would in the engine's pool. It has a driver's attributes and
    methods whatever the driver; which it lacks, the real connection has.
    """

    shared: SharedConnection
    mode: Mode
    savepoints: list[tuple[str, str]]
    """Its own name of each, and that in the database.

    The first is the whole transaction, and has a name if a savepoint has begun it.
    """
    attributes: dict[str, Any]
    """What its users have set on it, such as how it makes rows."""
    begun = False
    """Whether it is in a transaction, which a statement has begun."""
    failed = False
    """Whether PostgreSQL would refuse all but a rollback."""
    session: int | None = None
    """The number of the session that has begun the transaction, if one has."""
    begun_read_only = False
    read_only = False
    deferrable: object = None

    def __init__(self, shared: SharedConnection, mode: Mode) -> None:
        vars(self).update(shared=shared, mode=mode, savepoints=[], attributes={})

    def __getattr__(self, name: str) -> Any:
        # Without its turn, as what cancels a statement is called while that runs.
        driver, found = self.shared.driver, self.shared.found
        if name in found:
            value = self.attributes.get(name, found[name])
        else:
            value = getattr(driver, name)
        if name == "autocommit":
            # Some drivers for MySQL have a method that sets it.
            mode = value if self._is_sqlite else self.mode.value
            return self.set_autocommit if callable(value) else mode
        if name == "isolation_level" and self._is_sqlite:
            return None if self.mode is Mode.AUTOCOMMIT else (value or "")
        if _REFUSED.match(name):
            self.refuse(f"{name}()")
        if self.shared.dialect.get_driver_connection(driver) is value:
            return AsyncDriverConnection(self, value)
        if name == "info" and hasattr(value, "transaction_status"):
            return Info(self, value)
        return self.watch(name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        name = "read_only" if name == "readonly" else name
        if name in ("autocommit", "isolation_level"):
            getattr(self, f"set_{name}")(value)
        elif name in vars(self) or hasattr(StandIn, name):
            object.__setattr__(self, name, value)
        else:
            with self.shared.turn:
                found = getattr(self.shared.driver, name, None)
                setattr(self.shared.driver, name, value)
                self.shared.found.setdefault(name, found)
                self.attributes[name] = value

    def watch(self, name: str, value: Any, context: object = None) -> Any:
        """Let what a driver executes be a statement, of whose text it may be the name.

        :param context: what psycopg's composed statements need for their text.
        """
        if not _EXECUTING.match(name) or not callable(value):
            return value

        def run(*args: Any, **kw: Any) -> Any:
            has_text = args and name in _TAKES_TEXT
            text = _text_of(args[0], context) if has_text else name
            return self.run(text, partial(value, *args, **kw), whole=name == "execute")

        return run

    def refuse(self, what: str) -> NoReturn:
        raise IsolationError(
            f"{what} of a driver connection would end, nest or keep what isolate() "
            "needs. Use the session's or the engine's methods. [driver-transaction]"
        )

    def get_autocommit(self) -> bool:
        return self.mode is Mode.AUTOCOMMIT

    def set_autocommit(self, value: object) -> None:
        mode = Mode(value)
        with self.shared.lock:
            if self.begun and (mode is not self.mode or self._is_sqlite):
                if self.shared.database == "postgresql":
                    raise IsolationError(
                        "Autocommit can't be switched on or off in a transaction. "
                        "Commit it or roll it back before. [autocommit]"
                    )
                # The others go on in their transaction.
                if mode is Mode.AUTOCOMMIT:  # pragma: no branch
                    self.commit()
            self.mode = mode

    def set_isolation_level(self, level: object) -> None:
        """Take from the level what it says of autocommit, in drivers where it does.

        An open transaction has the level that it has.
        """
        driver: Any = self.shared.driver
        if self._is_sqlite:
            if level is None:
                self.commit()
            if getattr(driver, "autocommit", -1) == -1:  # or the newer attribute counts
                self.set_autocommit(Mode.AUTOCOMMIT if level is None else Mode.SQLITE)
        elif self.shared.dialect.driver in ("psycopg2", "asyncpg"):
            self.rollback()  # as they do
            self.set_autocommit(level in (0, "autocommit"))

    def set_read_only(self, value: bool) -> None:
        self.read_only = value

    def set_deferrable(self, value: object) -> None:
        pass

    @property
    def _is_sqlite(self) -> bool:
        return self.shared.database == "sqlite"

    # The transaction.

    @property
    def in_transaction(self) -> bool:
        # The driver of SQLite that is told to commit is always in one.
        return self.begun or (self._is_sqlite and self.mode is Mode.TRANSACTION)

    def begin(self, *_: object) -> None:
        self.run("BEGIN", lambda: None)

    def commit(self) -> None:
        with self.shared.lock:
            self.shared.check()
            failed = self.failed
            self._end(commits=not failed)
            if failed and self.shared.dialect.driver == "pg8000":  # which looks for it
                error = self.shared.dialect.loaded_dbapi.InterfaceError
                raise error("in failed transaction block")

    def rollback(self) -> None:
        with self.shared.lock:
            if self.shared.executing:  # by this thread: the collector comes in between
                self.shared.abandoned.append(self)
            elif self.shared.broken is None:
                self._end(commits=False)

    def _end(self, *, commits: bool) -> None:
        self.begun = self.failed = self.begun_read_only = False
        if commits:
            self.shared.savepoints.release(self, 0)
        else:
            self.shared.savepoints.rollback(self)
        self.session = None

    close = rollback

    def terminate(self) -> None:
        """Roll back soon. The collector calls this, where nothing can be awaited."""
        self.shared.abandoned.append(self)

    def __enter__(self) -> Self:
        # That of others closes the connection.
        if self.shared.dialect.driver not in ("pysqlite", "psycopg2"):
            self.refuse("'with'")
        return self

    def __exit__(self, type_: object, *_: object) -> None:
        if type_ is None:
            self.commit()
        else:
            self.rollback()

    # What is executed.

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        driver: Any = self.shared.driver
        if self.shared.database == "postgresql":
            # With a name it would read on the server, and later. This has its rows once
            # it has executed.
            args, kwargs = (), {name: kwargs[name] for name in _KEPT & kwargs.keys()}
        with self.shared.turn:
            if self.shared.broken is not None:  # as its use tells
                return StandInCursor(self, None)
            self.shared.set_attributes(self.attributes)
            # That of another block, around this one, makes those that its users have.
            if self.shared.dialect.driver == "psycopg2" and not isinstance(
                driver, StandIn
            ):
                base: Any = kwargs.get("cursor_factory") or driver.cursor().__class__
                real = driver.cursor(
                    cursor_factory=psycopg2_class(base, driver.__class__)
                )
                real.stand_in = self
                return real
            return StandInCursor(self, driver.cursor(*args, **kwargs))

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        return self.cursor().execute(*args, **kwargs)

    def executemany(self, *args: Any, **kwargs: Any) -> Any:
        return self.cursor().executemany(*args, **kwargs)

    def executescript(self, script: str) -> Any:
        """Do what `sqlite3` does: commit, and then execute statement by statement.

        Where it is told to commit, it waits for that.
        """
        cursor, mode, statement = self.cursor(), self.mode, ""
        if mode is not Mode.TRANSACTION:
            self.commit()
            self.mode = Mode.AUTOCOMMIT
        try:
            for part in f"{script}\n".split(";"):
                statement += f"{part};"
                if sqlite3.complete_statement(statement):
                    cursor.execute(statement)
                    statement = ""
            if statement.strip(" \n;"):  # it is not complete, as SQLite tells
                cursor.execute(statement)
        finally:
            self.mode = mode
        return cursor

    def run(self, text: str, call: Callable[[], T], *, whole: bool = True) -> T | None:
        """Call what executes a statement, at the right savepoint."""
        shared = self.shared
        with shared.lock:
            shared.check()
            statement = parse(text, shared.database)
            if self._control(statement):
                return None
            self._check(statement)
            if self.failed:
                return shared.run_failed(call)
            at_once = not self.begun and (
                self.mode is Mode.AUTOCOMMIT
                or (self.mode is Mode.SQLITE and not statement.is_dml)
            )
            self.begun = True
            try:
                result = shared.run(self, statement, call, whole=whole)
            except BaseException as error:
                if at_once:
                    with suppress(Exception):  # what is kept was done before it failed
                        self._end(commits=not self.failed)
                if at_once and _NEEDS_NO_TRANSACTION.search(str(error)):
                    raise IsolationError(
                        f"{shared.dialect.name} does {statement.kind} outside of "
                        "transactions only. Do this before the block. [outside-only]"
                    ) from error
                raise
            if at_once:
                self._end(commits=True)
            return result

    @contextmanager
    def noting_failure(self) -> Generator[None]:
        try:
            yield
        except BaseException:
            self.shared.note_failure(self)
            raise

    def _control(self, statement: Statement) -> bool:  # noqa: C901, PLR0911, PLR0912  # a table
        """Do what a statement about the transaction or its settings asks for.

        :return: whether it is done.
        """
        database = self.shared.database
        if len(statement.parts) > 1:  # `sqlite3` takes one, and says so itself
            return False
        match statement.words:
            case ["BEGIN", "NOT", "ATOMIC", *_]:
                return False
            case ["BEGIN", *_] | ["START", "TRANSACTION", *_]:
                if self.in_transaction and database == "sqlite":
                    return False  # which raises
                if database == "mysql":
                    self.commit()
                self.begun = True
                self.begun_read_only = "READ ONLY" in statement.text
            case (
                ["PREPARE", "TRANSACTION", *_]
                | ["COMMIT" | "ROLLBACK", "PREPARED", *_]
                | ["XA", *_]
            ):
                refuse_to_prepare()
            case ["COMMIT" | "END" | "ROLLBACK" | "ABORT" as verb, *rest] if (
                "TO" not in rest
            ):
                # The real transaction, which would tell SQLite, is always open here.
                if self._is_sqlite and not self.in_transaction:
                    error = self.shared.dialect.loaded_dbapi.OperationalError
                    raise error(f"cannot {verb.lower()} - no transaction is active")
                if verb in ("COMMIT", "END"):
                    self.commit()
                else:
                    self.rollback()
                self.begun = "CHAIN" in rest and "NO" not in rest
            case ["PRAGMA", "FOREIGN_KEYS", value, *_] if not self.in_transaction:
                found = self.shared.execute("PRAGMA foreign_keys")[0][0]
                if bool(found) != (value in _ON):
                    raise IsolationError(
                        "PRAGMA foreign_keys does nothing in a transaction, as inside "
                        "isolate(). Set it in a listener of 'connect'. [foreign-keys]"
                    )
            case ["SET", "SESSION", "TRANSACTION", "ISOLATION", *_]:
                pass  # an open transaction has the level that it has
            case ["PRAGMA", "SYNCHRONOUS" | "TEMP_STORE", _, *_]:
                pass  # refused in a transaction; no row depends on it
            case ["SAVEPOINT" | "RELEASE" | "ROLLBACK", *_]:
                return self._control_savepoint(statement)
            # In MySQL it is for the next transaction, which the block has none of.
            case ["SET", "TRANSACTION", *_] if (
                database == "mysql" or not self.savepoints
            ):
                self.begun = True
                self.begun_read_only = "READ ONLY" in statement.text
            case ["SET", "SESSION", "CHARACTERISTICS", *_] if found := re.search(
                r"\bREAD (ONLY|WRITE)\b", statement.text
            ):
                self.read_only = found[1] == "ONLY"
                return False
            case ["SET", *_] if database == "mysql" and (
                found := _AUTOCOMMIT.search(statement.text)
            ):
                if "," in statement.text or found[1] not in _ON + _OFF:
                    raise IsolationError(
                        "Inside isolate() autocommit can't be set in one statement "
                        "with something else, nor to what only the server knows. Set "
                        "it alone, and to 0 or 1. [set-autocommit]"
                    )
                self.set_autocommit(found[1] in _ON)
            case _:
                return False
        return True

    def _control_savepoint(self, statement: Statement) -> bool:
        savepoints, verb = self.shared.savepoints, statement.words[0]
        name = statement.parts[0].split()[-1].lower()
        numbers = [
            number for number, (own, _) in enumerate(self.savepoints) if own == name
        ]
        if (verb != "SAVEPOINT" and not numbers) or (
            verb != "ROLLBACK" and self.failed
        ):
            return False  # and the database says what is wrong
        if verb == "SAVEPOINT":
            if self.shared.database == "mysql":  # the new one takes the old one's place
                for number in numbers:
                    self.savepoints[number] = ("", self.savepoints[number][1])
            # Outside of a transaction it begins one in SQLite, and here in autocommit.
            if self.begun or self.mode is Mode.TRANSACTION:
                savepoints.enter(self)
            savepoints.set(self, name)
        elif verb == "RELEASE":
            savepoints.release(self, numbers[-1])
        else:
            savepoints.rollback_to(self, numbers[-1])
            self.failed = False
            if not numbers[-1] and not self._is_sqlite:  # which keeps the transaction
                savepoints.release(self, 0)
        self.begun = bool(self.savepoints)
        return True

    def _check(self, statement: Statement) -> None:
        """Refuse what would end the block's transaction, before it does."""
        if statement.controls is not None:
            raise IsolationError(
                f"Inside isolate() {statement.controls} can't be executed in one "
                "string with other statements. Execute it alone. [one-string]"
            )
        if statement.commits:
            raise IsolationError(
                f"{self.shared.dialect.name} commits by itself at {statement.kind}. Do "
                "this before the block, or empty the tables after the test instead. "
                "[implicit-commit]"
            )
        read_only = self.read_only or self.begun_read_only
        if read_only and self.shared.may_write(statement):
            raise IsolationError(
                f"{statement.kind} was tried in a transaction that is read only. "
                "Leave that out in tests, or the write. [read-only]"
            )


class Info:
    """What psycopg tells of a connection, with the transaction that this one is in."""

    def __init__(self, stand_in: StandIn, info: Any) -> None:
        self._stand_in, self._info = stand_in, info

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._info, name)
        if name != "transaction_status":
            return value
        status: Any = value.__class__
        if self._stand_in.failed:
            return status.INERROR
        return status.INTRANS if self._stand_in.begun else status.IDLE


class AsyncDriverConnection:
    """An async driver's own connection, as its users have it."""

    def __init__(self, stand_in: StandIn, connection: Any) -> None:
        self._stand_in = stand_in
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        if _EXECUTING.match(name) or _REFUSED.match(name):
            self._stand_in.refuse(f"{name}()")
        return getattr(self._connection, name)


def _text_of(statement: object, context: object) -> str:
    if isinstance(statement, (bytes, bytearray)):
        return statement.decode(errors="replace")
    as_string = getattr(statement, "as_string", None)
    return str(statement if as_string is None else as_string(context))
