"""What every async engine of the process is held to, whoever connects with it.

A connection keeps nothing of the request that opened it, and one that was opened
before a fork stays the parent's.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakSet

from greenlet import getcurrent
from sqlalchemy import Engine, event
from sqlalchemy.util import await_only, greenlet_spawn

from flask_sqlalchemy_session._fork import never_finalise

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
    from sqlalchemy.pool import ConnectionPoolEntry

_engines: WeakSet[Engine] = WeakSet()
# Also what no engine above tells of: `raw_connection()`, or a copy of an engine, with
# options of its own, that is gone.
_entries: WeakSet[ConnectionPoolEntry] = WeakSet()


def leave_connections_to_parent() -> None:
    """Let a forked child make connections of its own, on every async engine."""
    inherited: list[object] = []
    for entry in list(_entries):
        inherited.append(entry.dbapi_connection)
        # As SQLAlchemy's documentation has it for forked processes.
        entry.dbapi_connection = None  # type: ignore[misc]  # ty: ignore[missing-slot]  # a property, with an annotation
    for engine in list(_engines):
        inherited.append(engine.pool)
        engine.dispose(close=False)
    never_finalise(inherited)


@event.listens_for(Engine, "engine_connect")
def _note(connection: Connection) -> None:
    if connection.dialect.is_async:
        _engines.add(connection.engine)


@event.listens_for(Engine, "do_connect", insert=True)
def _connect_apart(
    dialect: Dialect,
    entry: ConnectionPoolEntry,
    arguments: list[object],
    keywords: dict[str, object],
) -> DBAPIConnection | None:
    """Connect in a task that has none of the caller's context variables.

    asyncio keeps those of the task that connects for as long as the connection
    lives: the application context, and all that is on its `g`.
    """
    if not dialect.is_async or getcurrent().parent is None:
        return None
    _entries.add(entry)
    # The application's own listeners may need the context.
    for listener in dialect.dispatch.do_connect:  # ty: ignore[missing-union-attribute]  # it has every event's name
        if listener is not _connect_apart:
            connection: DBAPIConnection | None = listener(
                dialect, entry, arguments, keywords
            )
            if connection is not None:
                return connection

    async def connect() -> DBAPIConnection:
        spawned = greenlet_spawn(partial(dialect.connect, *arguments, **keywords))
        return await Context().run(asyncio.create_task, spawned)  # ty: ignore[invalid-explicit-return]  # it does not infer the task's type

    return await_only(connect())
