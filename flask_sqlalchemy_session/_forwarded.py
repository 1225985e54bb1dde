"""What `scoped_session` leaves out of the session that it stands for."""

from __future__ import annotations

from types import TracebackType
from typing import Generic

from sqlalchemy import Connection, Engine, TableClause
from sqlalchemy.orm import (
    Mapper,
    SessionTransaction,
    scoped_session,
    scoping,
    sessionmaker,
)
from sqlalchemy.orm.session import JoinTransactionMode
from typing_extensions import TypeVar

from ._factory import S

O = TypeVar("O")  # noqa: E741  # as SQLAlchemy names the type of an entity

# SQLAlchemy imports it for type checkers only, and annotates `scoped_session` with it.
# Without it `typing.get_type_hints` would fail for every subclass.
setattr(scoping, "sessionmaker", sessionmaker)  # noqa: B010  # it has none, for type checkers


class ForwardingScopedSession(scoped_session[S], Generic[S]):
    """A `scoped_session` with every public attribute of a session."""

    def __enter__(self) -> S:
        """Enter the session's own context manager.

        :return: the current context's session.
        """
        return self.registry().__enter__()

    def __exit__(
        self,
        type_: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the session. It can be used again, as after `Session.close`."""
        self.registry().__exit__(type_, value, traceback)

    def in_transaction(self) -> bool:
        """Tell whether a transaction has begun. See `Session.in_transaction`."""
        return self.registry().in_transaction()

    def in_nested_transaction(self) -> bool:
        """Tell whether a savepoint is set. See `Session.in_nested_transaction`."""
        return self.registry().in_nested_transaction()

    def get_transaction(self) -> SessionTransaction | None:
        """Return the root transaction. See `Session.get_transaction`."""
        return self.registry().get_transaction()

    def get_nested_transaction(self) -> SessionTransaction | None:
        """Return the innermost savepoint. See `Session.get_nested_transaction`."""
        return self.registry().get_nested_transaction()

    def prepare(self) -> None:
        """Prepare the two-phase transaction. See `Session.prepare`."""
        self.registry().prepare()

    def invalidate(self) -> None:
        """Close the session and its connections. See `Session.invalidate`."""
        self.registry().invalidate()

    def bind_mapper(
        self, mapper: type[O] | Mapper[O], bind: Engine | Connection
    ) -> None:
        """Bind a mapped class. See `Session.bind_mapper`."""
        self.registry().bind_mapper(mapper, bind)

    def bind_table(self, table: TableClause, bind: Engine | Connection) -> None:
        """Bind a table. See `Session.bind_table`."""
        self.registry().bind_table(table, bind)

    def enable_relationship_loading(self, obj: object) -> None:
        """Let an object load. See `Session.enable_relationship_loading`."""
        self.registry().enable_relationship_loading(obj)

    @property
    def hash_key(self) -> int:
        """The number that SQLAlchemy gave the session."""
        return self.registry().hash_key

    @property
    def autobegin(self) -> bool:
        """Whether the session begins a transaction by itself when it is used."""
        return self.registry().autobegin

    @autobegin.setter
    def autobegin(self, value: bool) -> None:
        self.registry().autobegin = value

    @property
    def enable_baked_queries(self) -> bool:
        """Whether the session lets baked queries be cached."""
        return self.registry().enable_baked_queries

    @enable_baked_queries.setter
    def enable_baked_queries(self, value: bool) -> None:
        self.registry().enable_baked_queries = value

    @property
    def expire_on_commit(self) -> bool:
        """Whether the session expires its objects at each commit."""
        return self.registry().expire_on_commit

    @expire_on_commit.setter
    def expire_on_commit(self, value: bool) -> None:
        self.registry().expire_on_commit = value

    @property
    def join_transaction_mode(self) -> JoinTransactionMode:
        """How the session joins a transaction of a connection it is bound to."""
        return self.registry().join_transaction_mode

    @join_transaction_mode.setter
    def join_transaction_mode(self, value: JoinTransactionMode) -> None:
        self.registry().join_transaction_mode = value

    @property
    def twophase(self) -> bool:
        """Whether the session commits in two phases."""
        return self.registry().twophase

    @twophase.setter
    def twophase(self, value: bool) -> None:
        self.registry().twophase = value
