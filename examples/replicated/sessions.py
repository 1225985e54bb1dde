"""A session that knows which database to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import SelectBase
from sqlalchemy.orm import Session

if TYPE_CHECKING:
    from sqlalchemy import ClauseElement, Connection, Engine


class ReplicatedSession(Session):
    """Reads from a replica until it has to write, then keeps to the primary.

    A request that has written reads what it wrote, however far the replica lags behind.
    What is no plain read goes to the primary: a flush, a bulk update, a statement in
    text. For a read that must not lag, such as one ``with_for_update()``, call
    :meth:`use_primary` before.

    :param primary: the database that is written to.
    :param replica: a copy of it, for reading.
    """

    def __init__(self, primary: Engine, replica: Engine) -> None:
        super().__init__()
        self.primary = primary
        self.replica = replica
        self.writing = False

    def use_primary(self) -> None:
        """Read from the primary from now on, as after a write."""
        self.writing = True

    def get_bind(
        self,
        mapper: object = None,
        *,
        clause: ClauseElement | None = None,
        bind: Engine | Connection | None = None,
        **options: object,
    ) -> Engine | Connection:
        """Return the engine for a statement. SQLAlchemy calls this for each."""
        if bind is not None:
            return bind
        if not isinstance(clause, SelectBase):
            self.writing = True
        return self.primary if self.writing else self.replica
