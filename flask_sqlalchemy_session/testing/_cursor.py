"""A driver's cursor that tells the stand-in what it executes."""

from __future__ import annotations

import re
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from ._stand_in import StandIn


class StandInCursor:
    """Stands for a cursor.

    It reads all rows at once, as another statement of the connection would spoil those
    that are not read yet, or be spoiled by them.
    """

    connection: StandIn
    _cursor: Any  # the driver's, if the connection is of use yet
    _rows: list[Any] | None = None
    rownumber: int | None = None
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
        self._rows = self.rownumber = None
        result = getattr(self._cursor, name)(*args, **kwargs)
        if self._cursor.description is not None:  # or there are no rows
            self._rows, self.rownumber = [*self._cursor.fetchall()], 0
        return result

    def fetchone(self) -> Any:
        if self._rows is None:
            return self._cursor.fetchone()  # which says that there are none
        return next(iter(self._take(1)), None)

    def fetchmany(self, size: int | None = None) -> Any:
        size = self._cursor.arraysize if size is None else size
        return self._cursor.fetchmany(size) if self._rows is None else self._take(size)

    def fetchall(self) -> Any:
        if self._rows is None:
            return self._cursor.fetchall()
        return self._take(len(self._rows))

    def fetchall_unbuffered(self) -> Iterator[Any]:
        return self

    def _take(self, size: int) -> list[Any]:
        start = self.rownumber or 0
        taken = (self._rows or [])[start : start + size]
        self.rownumber = start + len(taken)
        return taken

    def scroll(self, value: int, mode: str = "relative") -> None:
        start = (self.rownumber or 0) if mode == "relative" else 0
        if not 0 <= start + value < len(self._rows or ()):
            raise IndexError("position out of bound")
        self.rownumber = start + value

    def nextset(self) -> Any:
        with self.connection.shared.lock:
            return self._read("nextset")

    def set_result(self, index: int) -> Self:
        with self.connection.shared.lock:
            self._read("set_result", index)
        return self

    def results(self) -> Iterator[Self]:
        more = self._cursor.pgresult is not None  # as psycopg's alone has
        while more:
            yield self
            more = self.nextset()

    def close(self) -> None:
        shared = self.connection.shared
        with shared.turn:
            if shared.broken is None:  # or others may use the connection
                self._cursor.close()

    def executescript(self, script: str) -> Self:
        self.connection.executescript(script)
        return self

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._rows is None or not (rows := self._take(1)):
            raise StopIteration
        return rows[0]

    def __getattr__(self, name: str) -> Any:
        return self.connection.watch(name, getattr(self._cursor, name))

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
