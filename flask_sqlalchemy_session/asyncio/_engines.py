"""What every async engine of the process is held to, whoever connects with it.

A connection keeps nothing of the request that opened it, one that was opened before a
fork stays the parent's, and one that belongs to another event loop is not used on this.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from greenlet import getcurrent
from sqlalchemy import Engine, event
from sqlalchemy.engine import AdaptedConnection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import Pool
from sqlalchemy.util import await_only, greenlet_spawn

from flask_sqlalchemy_session._fork import never_finalise

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

_LOOP = "flask_sqlalchemy_session_loop"

# The drivers whose connections work on any loop, one after the other. To replace them
# would cost a connection a request where each has a loop of its own, and aiosqlite one
# that has its database in memory.
_ON_ANY_LOOP = ("aiosqlite", "psycopg")

# What pools have of connections. No event of the engine's tells of one that would not
# cost each statement of every sync engine something, too.
_entries: WeakSet[ConnectionPoolEntry] = WeakSet()
_checked_out: WeakSet[PoolProxiedConnection] = WeakSet()

# Those that executed something. A dialect itself does so with the first connection.
_engines: WeakSet[Engine] = WeakSet()


def leave_connections_to_parent() -> None:
    """Let a forked child make connections of its own, on every async engine."""
    never_finalise([*_checked_out, *(entry.dbapi_connection for entry in _entries)])
    for entry in list(_entries):
        # As SQLAlchemy's documentation has it for forked processes.
        entry.dbapi_connection = None  # type: ignore[misc]  # ty: ignore[missing-slot]  # a property, with an annotation
    for engine in list(_engines):
        # A pool that was waited for belongs to the loop that waited.
        engine.dispose(close=False)


def _note_engine(*told: Any) -> None:
    _engines.add(told[-1].engine)  # the execution's context


@event.listens_for(Pool, "checkout")
def _note(
    connection: DBAPIConnection,
    entry: ConnectionPoolEntry,
    proxied: PoolProxiedConnection,
) -> None:
    """Note a connection, or let one that another loop made be closed there.

    Below an ASGI server the views run on the server's loop, and what it does not call,
    as where the application is set up, on the one of this library.

    :raises DisconnectionError: which makes the pool connect anew.
    """
    if not isinstance(connection, AdaptedConnection):
        return
    _entries.add(entry)
    _checked_out.add(proxied)
    loop: asyncio.AbstractEventLoop | None = entry.info.get(_LOOP)
    if loop is not None and loop is not asyncio.get_running_loop():
        if loop.is_running():
            entry.dbapi_connection = None  # type: ignore[misc]  # ty: ignore[missing-slot]  # as above
            closing = greenlet_spawn(connection.close)
            Context().run(asyncio.run_coroutine_threadsafe, closing, loop)
        raise DisconnectionError


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
    if not event.contains(dialect, "do_execute", _note_engine):
        event.listen(dialect, "do_execute", _note_engine, insert=True)
    if dialect.driver not in _ON_ANY_LOOP:
        entry.info[_LOOP] = asyncio.get_running_loop()
    # The application's own listeners may need the context.
    for listener in dialect.dispatch.do_connect:  # ty: ignore[missing-union-attribute]  # it has every event's name
        if listener is not _connect_apart:
            made: DBAPIConnection | None = listener(dialect, entry, arguments, keywords)
            if made is not None:
                return made
    spawned = greenlet_spawn(partial(dialect.connect, *arguments, **keywords))
    return await_only(Context().run(asyncio.Task, spawned))  # ty: ignore[invalid-explicit-return]  # it does not infer the type
