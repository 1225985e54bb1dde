"""What `async_scoped_session` leaves out of the session that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, Generic, ParamSpec, TypeVar

from sqlalchemy.ext.asyncio import AsyncSessionTransaction, async_scoped_session
from sqlalchemy.orm import Session

from ._factory import AS

T = TypeVar("T")
P = ParamSpec("P")


class ForwardingAsyncScopedSession(async_scoped_session[AS], Generic[AS]):
    """An `async_scoped_session` with every public attribute of a session."""

    async def __aenter__(self) -> AS:
        """Enter the session's own context manager.

        :return: the current context's session.
        """
        return await self.registry().__aenter__()

    async def __aexit__(self, type_: object, value: object, traceback: object) -> None:
        """Close the session. It can be used again, as after `AsyncSession.close`."""
        await self.registry().__aexit__(type_, value, traceback)

    @property
    def sync_session(self) -> Session:
        """The session that the async session drives."""
        return self.registry().sync_session

    async def run_sync(
        self, fn: Callable[Concatenate[Session, P], T], *arg: P.args, **kw: P.kwargs
    ) -> T:
        """Call a function with the sync session. See `AsyncSession.run_sync`."""
        return await self.registry().run_sync(fn, *arg, **kw)

    def in_transaction(self) -> bool:
        """Tell whether a transaction has begun. See `AsyncSession.in_transaction`."""
        return self.registry().in_transaction()

    def in_nested_transaction(self) -> bool:
        """Tell whether a savepoint is set. See `AsyncSession.in_nested_transaction`."""
        return self.registry().in_nested_transaction()

    def get_transaction(self) -> AsyncSessionTransaction | None:
        """Return the root transaction. See `AsyncSession.get_transaction`."""
        return self.registry().get_transaction()

    def get_nested_transaction(self) -> AsyncSessionTransaction | None:
        """Return the innermost savepoint. See `AsyncSession.get_nested_transaction`."""
        return self.registry().get_nested_transaction()
