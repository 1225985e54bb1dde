"""What stands for a driver connection, with a savepoint for a transaction."""

from __future__ import annotations

import re
import sqlite3
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from ._cursor import StandInCursor, watched_class
from ._errors import IsolationError, has_ended
from ._modes import Mode
from ._statements import Statement, parse

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from ._shared import SharedConnection

T = TypeVar("T")

_EXECUTING = ("call", "copy", "execute", "fetch", "mogrify_", "run_async", "stream")
_REFUSED = (
    "blobopen",
    "change_user",
    "cmd_change_user",
    "cmd_query",
    "cmd_reset_connection",
    "pipeline",
    "query",
    "reset",
    "reset_session",
    "set_session",
    "tpc_begin",
    "tpc_commit",
    "tpc_prepare",
    "tpc_rollback",
    "transaction",
    "xa",
)
_READ_ONLY_TRANSACTION = re.compile(r"\bREAD\s+ONLY\b", re.IGNORECASE)
_READ_ONLY = ("read_only", "readonly")
_DML = ("INSERT", "UPDATE", "DELETE", "REPLACE")


class StandIn:
    """Stands for a driver connection of its own.

    Lives from the pool's check-out to its return.
    """

    def __init__(self, shared: SharedConnection, mode: Mode) -> None:
        vars(self).update(
            shared=shared,
            mode=mode,
            savepoint="",
            # Whether it is in a transaction, which a statement has begun.
            begun=False,
            # The savepoint that has begun it, where its release ends it.
            outermost="",
            failed=False,
            read_only=False,
            # How often others have written inside the savepoint, now and when this
            # one set a savepoint of its own inside.
            foreign=0,
            marks={},
        )

    if TYPE_CHECKING:
        shared: SharedConnection
        mode: Mode
        savepoint: str
        begun: bool
        outermost: str
        failed: bool
        read_only: bool
        foreign: int
        marks: dict[str, int]

    def __getattr__(self, name: str) -> Any:  # noqa: C901, PLR0911, PLR0912  # a table
        driver = self.shared.driver
        value = getattr(driver, name)
        match name:
            case "autocommit" if callable(value):
                return self.set_autocommit
            case "autocommit" if self.shared.database != "sqlite":
                return self.mode is Mode.AUTOCOMMIT
            case "get_autocommit":
                return lambda: self.mode is Mode.AUTOCOMMIT
            case "isolation_level" if self.shared.database == "sqlite":
                return None if self.mode is Mode.AUTOCOMMIT else (value or "")
            case "in_transaction":
                return self.begun
            case "readonly":
                return self.read_only
            case "execute" | "executemany":
                return partial(self._execute, name)
            case "executescript":
                return self._executescript
            case "begin" | "start_transaction":
                return partial(self.run, "BEGIN", lambda: None)
            case "set_isolation_level":
                return self._set_isolation_level
            case _:
                pass
        if name in _REFUSED:
            self.refuse_method(name)
        if self.shared.dialect.get_driver_connection(driver) is value:
            return Watched(self, value)
        return self.watch(name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self):
            vars(self)[name] = value
        elif name == "autocommit":
            self.set_autocommit(value)
        elif name == "isolation_level":
            # An open transaction has the level that it has. What counts is that this
            # is how `sqlite3` is put in autocommit.
            if self.shared.database == "sqlite":
                self._set_mode(Mode.AUTOCOMMIT if value is None else Mode.SQLITE)
        elif name in _READ_ONLY:
            self.read_only = bool(value)
        elif name != "deferrable":
            setattr(self.shared.driver, name, value)

    # What setting the attributes does, as methods: psycopg2 and asyncpg have the
    # first alone, async psycopg has the others for the rest.

    def _set_isolation_level(self, level: object) -> None:
        if not hasattr(self.shared.driver, "set_autocommit"):
            self.set_autocommit(level in (0, "autocommit"))

    def set_autocommit(self, value: object) -> None:
        sqlite = self.shared.database == "sqlite"
        if sqlite and value not in (True, False):
            self._set_mode(Mode.SQLITE)
        else:
            self._set_mode(Mode.AUTOCOMMIT if value else Mode.TRANSACTION)

    def set_read_only(self, value: object) -> None:
        self.read_only = bool(value)

    def set_deferrable(self, value: object) -> None:
        pass

    def _set_mode(self, mode: Mode) -> None:
        with self.shared.lock:
            if mode is not self.mode and self.begun:
                match self.shared.database:
                    case "mysql":
                        self.commit()
                    case "postgresql":
                        raise IsolationError(
                            "Autocommit can't be switched on or off in a transaction. "
                            "Commit it or roll it back before."
                        )
                    case _:
                        pass
            self.mode = mode

    def _execute(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.cursor(), name)(*args, **kwargs)

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        shared = self.shared
        is_async = shared.dialect.is_async
        with nullcontext() if is_async else shared.lock:
            if shared.dialect.driver == "psycopg2":
                # Its functions take nothing but a real cursor. A named one would
                # read on the server later; this has its rows when it has executed.
                base = kwargs.get("cursor_factory") or type(shared.driver.cursor())
                real: Any = shared.driver.cursor(cursor_factory=watched_class(base))
                real.stand_in = self
                return real
            cursor = shared.driver.cursor(*args, **kwargs)
        # An async driver's plain cursor has all rows when it has executed, and can be
        # asked for them where nothing can be awaited.
        special = bool(args or kwargs)
        return StandInCursor(
            self,
            cursor,
            nullcontext() if is_async and not special else shared.lock,
            reads_all=special or shared.database in ("mysql", "sqlite"),
        )

    def commit(self) -> None:
        with self.shared.lock:
            if self.shared.ended:
                raise has_ended()
            self.shared.check()
            try:
                if self.failed:
                    self.shared.rollback(self)
                else:
                    self.shared.commit(self)
            finally:
                self._reset()

    def rollback(self) -> None:
        with self.shared.lock:
            if not self.shared.ended and self.shared.broken is None:
                try:
                    self.shared.rollback(self)
                finally:
                    self._reset()

    def close(self) -> None:
        self.rollback()

    def terminate(self) -> None:
        """Roll back soon. The collector calls this, where nothing can be awaited."""
        self.shared.abandoned.append(self)

    def __enter__(self) -> Self:
        if self.shared.dialect.driver not in ("pysqlite", "psycopg2"):
            raise IsolationError(
                f"'with' closes a connection of {self.shared.dialect.driver}, which "
                "others go on with inside isolate(). Call its commit() or rollback()."
            )
        return self

    def __exit__(self, type_: object, *_: object) -> None:
        if type_ is None:
            self.commit()
        else:
            self.rollback()

    def run(
        self, text: object, call: Callable[[], T], *, whole: bool = True
    ) -> T | None:
        """Call what executes a statement, at the right savepoint."""
        shared = self.shared
        with shared.lock:
            if shared.ended:
                raise has_ended()
            shared.check()
            statement = parse(_text_of(text), shared.database)
            if self._control(statement):
                return None
            self._check(statement)
            if self.failed and statement.words[:1] != ["ROLLBACK"]:
                return shared.run_failed(self, call)
            if statement.words[:1] in (["SAVEPOINT"], ["RELEASE"], ["ROLLBACK"]):
                return self._run_mark(statement, call)
            at_once = self._commits_at_once(statement)
            try:
                result = self._run(statement, call, whole=whole)
            except BaseException:
                if at_once:
                    self.rollback()
                elif self.mode is not Mode.AUTOCOMMIT:
                    self.begun = True
                raise
            if at_once:
                self.commit()
            else:
                self.begun = True
            return result

    def _commits_at_once(self, statement: Statement) -> bool:
        if self.begun or self.mode is Mode.TRANSACTION:
            return False
        return self.mode is Mode.AUTOCOMMIT or statement.words[:1] not in (
            [word] for word in _DML
        )

    def _run(self, statement: Statement, call: Callable[[], T], *, whole: bool) -> T:
        words, shared = statement.words, self.shared
        writes = shared.may_write(statement)
        if writes and self.read_only:
            raise IsolationError(
                f"{statement.kind} was tried in a transaction that is read only. "
                "Inside isolate() the database can't be told so, which would refuse it."
            )
        if words[:1] in (["CALL"], ["EXECUTE"], ["BEGIN"], [], ["CALLPROC"]):
            shared.doubtful = statement
        return shared.run(self, call, writes=writes, whole=whole)

    def _control(self, statement: Statement) -> bool:
        """Do what a statement about the transaction asks for.

        :return: whether it is done.
        """
        if len(statement.parts) > 1:  # `sqlite3` takes one, and says so itself
            return False
        match statement.words:
            case ["BEGIN", "NOT", "ATOMIC", *_]:
                return False
            case ["BEGIN", *_] | ["START", "TRANSACTION", *_]:
                if self.begun and self.shared.database == "sqlite":
                    return False  # which raises
                if self.shared.database == "mysql":
                    self.commit()
                self.begun = True
            case (
                ["PREPARE", "TRANSACTION", *_]
                | ["COMMIT" | "ROLLBACK", "PREPARED", *_]
                | ["XA", *_]
            ):
                raise IsolationError(
                    "Inside isolate() no transaction can be prepared for a commit in "
                    "two phases. Leave out 'twophase=True' in tests."
                )
            case ["COMMIT" | "END", *_]:
                self._check_begun("commit")
                self.commit()
            case ["ROLLBACK" | "ABORT", *rest] if "TO" not in rest:
                self._check_begun("rollback")
                self.rollback()
            case _:
                return self._set(statement)
        return True

    def _set(self, statement: Statement) -> bool:
        """Do what a statement about the connection's settings asks for."""
        match statement.words:
            case ["SET", "TRANSACTION", *_] if not self.shared.is_open(self):
                if _READ_ONLY_TRANSACTION.search(statement.bare):
                    raise IsolationError(
                        "SET TRANSACTION READ ONLY can't be done inside isolate(), "
                        "where the sessions of an engine share one transaction."
                    )
                self.begun = True
            case ["SET", "AUTOCOMMIT" | "@@AUTOCOMMIT", value, *_] | [
                "SET",
                "SESSION" | "@@SESSION",
                "AUTOCOMMIT",
                value,
                *_,
            ] if self.shared.database == "mysql":
                self.set_autocommit(value in ("1", "ON", "TRUE"))
            case ["PRAGMA", "FOREIGN_KEYS", value, *_]:
                return self._set_foreign_keys(value)
            case _:
                return False
        return True

    def _check_begun(self, what: str) -> None:
        """Refuse what SQLite refuses, whose real transaction is always open here."""
        always = self.mode is Mode.TRANSACTION
        if self.shared.database == "sqlite" and not always and not self.begun:
            error = self.shared.dialect.loaded_dbapi.OperationalError
            raise error(f"cannot {what} - no transaction is active")

    def _set_foreign_keys(self, value: str) -> bool:
        found = self.shared.execute("PRAGMA foreign_keys")[0][0]
        if bool(found) == (value in ("1", "ON", "TRUE", "YES")) or self.begun:
            return False  # which changes nothing
        if not self.shared.set_pragma("foreign_keys", value):
            raise IsolationError(
                "PRAGMA foreign_keys does nothing in a transaction, and inside "
                "isolate() there always is one. Set it in a listener of 'connect'."
            )
        return True

    def _check(self, statement: Statement) -> None:
        """Refuse what would end the block's transaction, before it does."""
        if statement.is_many:
            part = statement.controlling_part()
            if part is not None:
                raise IsolationError(
                    f"Inside isolate() {part} can't be executed in one string with "
                    "other statements. Execute one after the other."
                )
        if statement.commits():
            raise IsolationError(
                f"{self.shared.dialect.name} commits by itself at {statement.kind}, so "
                "that isolate() could not roll back. Do this before the block, or "
                "leave isolate() out and empty the tables after the test."
            )
        if statement.needs_no_transaction() and self._commits_at_once(statement):
            raise IsolationError(
                f"{self.shared.dialect.name} does {statement.kind} outside of "
                "transactions only, and inside isolate() there always is one. Do this "
                "before the block."
            )

    def _run_mark(self, statement: Statement, call: Callable[[], T]) -> T:
        """Execute a statement about a savepoint of this one's own."""
        verb, name = statement.words[0], statement.bare.split()[-1]
        self._check_mark(verb, name)
        result = self.shared.run(self, call, writes=False, guarded=False)
        if verb == "SAVEPOINT" and not self.begun and self.mode is not Mode.TRANSACTION:
            self.outermost = name
        self.begun = True
        self._mark(verb, name)
        return result

    def _check_mark(self, verb: str, name: str) -> None:
        """Refuse to end a savepoint that others have written in."""
        shared = self.shared
        if (
            verb != "SAVEPOINT"
            and self in shared.writers
            and (
                shared.above(self)
                or (verb == "ROLLBACK" and self.foreign > self.marks.get(name, 0))
            )
        ):
            shared.refuse(
                "A savepoint was released or rolled back to after another session "
                "wrote inside it."
            )

    def _mark(self, verb: str, name: str) -> None:
        """Keep count of others' work inside this one's own savepoints."""
        if verb == "SAVEPOINT":
            self.marks.pop(name, None)
            self.marks[name] = self.foreign
            return
        names = [*self.marks]
        inner = (
            names[names.index(name) + (verb == "ROLLBACK") :] if name in names else []
        )
        for one in inner:
            del self.marks[one]
        if verb == "ROLLBACK":
            self.failed = False
        elif name == self.outermost and self.shared.database == "sqlite":
            self.commit()

    def _executescript(self, script: str) -> Any:
        """Do what `sqlite3` does: commit, and then execute statement by statement."""
        self.commit()
        cursor = self.cursor()
        start = 0
        for end, char in enumerate(script, 1):
            if char == ";" and sqlite3.complete_statement(script[start:end]):
                self._execute_alone(cursor, script[start:end])
                start = end
        self._execute_alone(cursor, script[start:])
        return cursor

    def _execute_alone(self, cursor: Any, statement: str) -> None:
        mode = self.mode
        self.mode = Mode.AUTOCOMMIT
        try:
            if parse(statement, "sqlite").words:
                cursor.execute(statement)
        finally:
            self.mode = mode

    def _reset(self) -> None:
        self.begun = self.failed = False
        self.outermost = ""
        self.foreign = 0
        self.marks = {}

    def watch(self, name: str, value: T) -> T:
        """Let what a driver executes beyond `execute` be a statement that changes."""
        if name.startswith(_EXECUTING) and callable(value):
            watched: Any = value

            def run(*args: Any, **kw: Any) -> Any:
                return self.run(name, partial(watched, *args, **kw), whole=False)

            return cast("T", run)  # the same to its caller
        return value

    def count_as_writer(self) -> bool:
        """Count what is about to be written, where nothing can be executed before.

        :return: whether it can be undone, which takes a savepoint that is there.
        """
        if self.shared.is_open(self):
            self.shared.note_write(self)
        return self.shared.is_open(self)

    def refuse_method(self, name: str) -> NoReturn:
        raise IsolationError(
            f"{name}() of a driver connection would end or nest the transaction that "
            "isolate() keeps open. Use the session's or the engine's begin(), commit() "
            "and rollback() instead."
        )


class Watched:
    """An async driver's own connection, as its users have it."""

    def __init__(self, stand_in: StandIn, connection: Any) -> None:
        self._stand_in = stand_in
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        if name in _REFUSED or (
            name.startswith(_EXECUTING) and not self._stand_in.count_as_writer()
        ):
            self._stand_in.refuse_method(name)
        return getattr(self._connection, name)


def _text_of(statement: object) -> str:
    if isinstance(statement, (bytes, bytearray)):
        return statement.decode(errors="replace")
    as_string = getattr(statement, "as_string", None)  # psycopg's composed ones
    return str(statement if as_string is None else as_string(None))
