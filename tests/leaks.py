"""The check that a test leaves nothing open."""

from __future__ import annotations

import gc
import threading
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session
from sqlalchemy.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.orm import SessionTransaction
    from sqlalchemy.pool import ConnectionPoolEntry


class Open:
    """What is open now, of every pool and every session that there is."""

    def __init__(self) -> None:
        #: Pool entries whose connection is checked out. Entries outlive that.
        self.connections: weakref.WeakSet[ConnectionPoolEntry] = weakref.WeakSet()
        #: The numbers of sessions in a transaction, by SQLAlchemy's own count: a
        #: session that was dropped without being closed stays here.
        self.sessions: set[int] = set()
        event.listen(Pool, "checkout", self._checkout)
        event.listen(Pool, "checkin", self._checkin)
        event.listen(Pool, "detach", self._checkin)
        event.listen(Session, "after_transaction_create", self._begin)
        event.listen(Session, "after_transaction_end", self._end)

    def _checkout(
        self, connection: DBAPIConnection, entry: ConnectionPoolEntry, fairy: object
    ) -> None:
        self.connections.add(entry)

    def _checkin(
        self, connection: DBAPIConnection | None, entry: ConnectionPoolEntry
    ) -> None:
        self.connections.discard(entry)

    def _begin(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            self.sessions.add(session.hash_key)

    def _end(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            self.sessions.discard(session.hash_key)


_open = Open()


def collect() -> None:
    """Collect garbage, an open connection of aiosqlite's perhaps.

    Up to Python 3.11 that would make the main thread a loop, which nobody closes.
    """
    thread = threading.Thread(target=gc.collect)
    thread.start()
    thread.join()


@contextmanager
def nothing_left_open() -> Iterator[None]:
    """Fail where the block ends with a connection or a transaction that it opened.

    What only the collector can end is collected here, so that a `ResourceWarning` of
    its finaliser fails the test that made it and not one that runs later.
    """
    connections, sessions = set(_open.connections), set(_open.sessions)
    yield
    collect()
    assert not set(_open.connections) - connections, "a connection was not given back"
    assert not _open.sessions - sessions, "a session in a transaction was not closed"


@pytest.fixture(scope="module", autouse=True)
def earlier_objects_out_of_the_collector() -> Iterator[None]:
    """Keep what is there before a module's tests from being looked through by each."""
    collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves something open, unless it is marked `leaks`."""
    if request.node.get_closest_marker("leaks"):
        yield
        collect()
    else:
        with nothing_left_open():
            yield
