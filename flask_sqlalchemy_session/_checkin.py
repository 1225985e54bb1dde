"""What keeps a listener of a pool's "checkin" from costing the pool a connection.

A listener that uses the session, each time that one is closed, has to be refused one in
the end. It raises then, and SQLAlchemy does not give the pool back the place that the
connection had there.
"""

from __future__ import annotations

from traceback import walk_stack

from sqlalchemy import Connection, Pool, QueuePool
from sqlalchemy.orm import Session


def leave_pool(_: Session, __: object, connection: Connection) -> None:
    """Take a connection out of its pool, if it has a place there.

    No listener of "checkin" is called then when it is closed.
    """
    if isinstance(connection.engine.pool, QueuePool):
        connection.detach()


def is_in_checkin() -> bool:
    """Tell whether a listener is called by a pool that is given a connection back."""
    return any(
        frame.f_code.co_name == "checkin"
        and frame.f_globals.get("__name__") == Pool.__module__
        for frame, _ in walk_stack(None)
    )
