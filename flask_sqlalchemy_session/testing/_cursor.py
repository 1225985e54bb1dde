"""A driver's cursor that tells the stand-in what it executes."""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from ._errors import IsolationError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from typing_extensions import Self

    from ._stand_in import StandIn


class StandInCursor:
    """Stands for a cursor.

    It reads all rows at once, as another statement of the connection would spoil those
    that are not read yet, or be spoiled by them. PostgreSQL's drivers do so themselves.
    """

    connection: StandIn
    _cursor: Any  # the driver's, if the connection is of use yet
    #: Those that are still to be read, unless the driver's cursor has them.
    _rows: Iterator[Any] | None = None
    _kind: Any = list
    itersize = 100  # of the rows that psycopg would ask the server for at a time

    def __init__(self, connection: StandIn, cursor: object) -> None:
        vars(self).update(connection=connection, _cursor=cursor)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        return self._execute("execute", *args, **kwargs)

    def executemany(self, *args: Any, **kwargs: Any) -> Any:
        return self._execute("executemany", *args, **kwargs)

    def _execute(self, name: str, *args: Any, **kwargs: Any) -> Any:
        read = partial(self._read, name)
        result = self.connection.watch(name, read)(*args, **kwargs)
        return self if result is self._cursor or result is None else result

    def _read(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self._rows, executed = None, False
        reads_itself = self.connection.shared.database == "postgresql"
        try:
            result = getattr(self._cursor, name)(*args, **kwargs)
            executed = True
            if not reads_itself and self._cursor.description is not None:
                rows = self._cursor.fetchall()
                self._rows, self._kind = iter(rows), type(rows)
        except BaseException as error:
            # Rows that are left would keep SQLite from releasing its savepoint.
            if not reads_itself and (executed or not isinstance(error, Exception)):
                self._cursor.close()
            raise
        return result

    def nextset(self) -> Any:
        with self.connection.shared.lock:
            return self._read("nextset")

    def fetchone(self) -> Any:
        return self._cursor.fetchone() if self._rows is None else next(self._rows, None)

    def fetchmany(self, size: int | None = None) -> Any:
        size = self._cursor.arraysize if size is None else size
        if self._rows is None:
            return self._cursor.fetchmany(size)
        return self._kind(islice(self._rows, size))

    def fetchall(self) -> Any:
        if self._rows is None:
            return self._cursor.fetchall()
        return self._kind(self._rows)

    def fetchall_unbuffered(self) -> Iterator[Any]:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor if self._rows is None else self._rows)

    def __next__(self) -> Any:
        return next(self._cursor if self._rows is None else self._rows)

    def close(self) -> None:
        shared = self.connection.shared
        with shared.turn:
            if shared.broken is None:  # or others may use the connection
                self._cursor.close()

    # psycopg's, which execute later than they are called.

    @contextmanager
    def copy(self, *args: Any, **kwargs: Any) -> Generator[Any]:
        copy = self.connection.watch("copy", self._cursor.copy)
        with self.connection.noting_failure(), copy(*args, **kwargs) as copying:
            yield copying

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        stream = self.connection.watch("stream", self._cursor.stream)
        with self.connection.noting_failure():
            yield from stream(*args, **kwargs)

    def executescript(self, script: str) -> Self:
        self.connection.executescript(script)
        return self

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._cursor, name)
        if self._rows is not None and name in ("rownumber", "scroll"):
            raise IsolationError(
                "Inside isolate() the rows of a cursor are read in their order, and "
                "once. Read them all, and look in the list of them. [no-scrolling]"
            )
        if name == "callproc":
            self._rows = None
        return self.connection.watch(name, value)

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(StandInCursor, name):
            object.__setattr__(self, name, value)
        else:
            setattr(self._cursor, name, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@lru_cache
def psycopg2_class(base: Any, connection_class: Any) -> Any:
    """Return a class of psycopg2's cursors, as its functions take nothing else."""

    def watched(name: str) -> Any:
        method = getattr(base, name)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            run = self.stand_in.watch(name, partial(method, self), context=self)
            return run(*args, **kwargs)

        return call

    class Connection(connection_class):  # type: ignore[misc]  # known at run time only
        """The stand-in, of the class that psycopg2's functions ask for."""

        def __new__(cls, cursor: Any) -> Any:
            return connection_class.__new__(cls)

        def __init__(self, cursor: Any) -> None:  # pyright: ignore[reportMissingSuperCall]  # which would connect
            object.__setattr__(self, "stand_in", cursor.stand_in)

        def __getattribute__(self, name: str) -> Any:
            return getattr(object.__getattribute__(self, "stand_in"), name)

        def __setattr__(self, name: str, value: object) -> None:
            setattr(object.__getattribute__(self, "stand_in"), name, value)

    names = [name for name in dir(base) if re.match("execute|call|copy", name)]
    methods = {name: watched(name) for name in names}
    return type(base.__name__, (base,), {"connection": property(Connection), **methods})
