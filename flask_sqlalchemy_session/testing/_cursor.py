"""A driver's cursor that tells the stand-in what it executes."""

from __future__ import annotations

from collections import deque
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from sqlalchemy.engine.interfaces import DBAPICursor
    from typing_extensions import Self

    from ._stand_in import StandIn


class StandInCursor:
    """Stands for a cursor.

    Where another statement of the connection would spoil the rows that are not read
    yet, or be spoiled by them, all are read at once.
    """

    def __init__(
        self,
        connection: StandIn,
        cursor: DBAPICursor,
        turn: AbstractContextManager[object],
        *,
        reads_all: bool,
    ) -> None:
        vars(self).update(
            connection=connection,
            _cursor=cursor,
            _turn=turn,
            _reads_all=reads_all,
            _rows=None,
        )

    if TYPE_CHECKING:
        connection: StandIn
        _cursor: DBAPICursor
        _turn: AbstractContextManager[object]
        _reads_all: bool
        _rows: deque[Any] | None

    def execute(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        call = partial(self._cursor.execute, operation, *args, **kwargs)
        return self._result(self.connection.run(operation, partial(self._read, call)))

    def executemany(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        call = partial(self._cursor.executemany, operation, *args, **kwargs)
        return self._result(
            self.connection.run(operation, partial(self._read, call), whole=False)
        )

    def _read(self, call: Any) -> Any:
        vars(self)["_rows"] = None
        result = call()
        cursor: Any = self._cursor  # whose description is None where there are no rows
        if self._reads_all and cursor.description is not None:
            # One by one: asyncpg's server-side cursor fetches all only after the first,
            # up to SQLAlchemy 2.0.22.
            vars(self)["_rows"] = deque(iter(self._cursor.fetchone, None))
        return result

    def _result(self, result: object) -> object:
        return self if result is self._cursor or result is None else result

    def fetchone(self) -> Any:
        if self._rows is not None:
            return self._rows.popleft() if self._rows else None
        with self._turn:
            return self._cursor.fetchone()

    def fetchmany(self, size: int | None = None) -> Any:
        if self._rows is not None:
            size = self._cursor.arraysize if size is None else size
            return [self._rows.popleft() for _ in range(min(size, len(self._rows)))]
        with self._turn:
            return self._cursor.fetchmany(*() if size is None else (size,))

    def fetchall(self) -> Any:
        if self._rows is not None:
            return [self._rows.popleft() for _ in range(len(self._rows))]
        with self._turn:
            return self._cursor.fetchall()

    def nextset(self) -> Any:
        with self._turn:
            return self._read(self._cursor.nextset)

    def close(self) -> None:
        with self._turn:
            self._cursor.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetchone, None)

    def __next__(self) -> Any:
        row = self.fetchone()
        if row is None:
            raise StopIteration
        return row

    def __getattr__(self, name: str) -> Any:
        return self.connection.watch(name, getattr(self._cursor, name))

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._cursor, name, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@lru_cache
def watched_class(base: Any) -> Any:
    """Return a class of psycopg2's cursors that tells the stand-in what it executes."""

    def watched(name: str) -> Any:
        method = getattr(base, name)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            text: Any = args[0] if name == "execute" and args else name
            if hasattr(text, "as_string"):
                text = text.as_string(self)
            executing = partial(method, self, *args, **kwargs)
            return self.stand_in.run(text, executing, whole=name == "execute")

        return call

    names = (
        "execute",
        "executemany",
        "callproc",
        "copy_expert",
        "copy_from",
        "copy_to",
    )
    return type(base.__name__, (base,), {name: watched(name) for name in names})
