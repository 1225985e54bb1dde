"""What makes async sessions: the type, and the checks on what a user passes."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import TypeVar

AS = TypeVar("AS", bound=AsyncSession, default=AsyncSession)
AS_co = TypeVar("AS_co", bound=AsyncSession, default=AsyncSession, covariant=True)


REMEDY = (
    "Pass 'async_sessionmaker(engine)', an AsyncSession subclass or a function, not a "
    "coroutine function, that returns a new AsyncSession."
)
"""What to do about a factory that makes no async sessions."""


@runtime_checkable
class AsyncSessionFactory(Protocol[AS_co]):
    """Any callable that makes an :class:`~sqlalchemy.ext.asyncio.AsyncSession`.

    An :class:`~sqlalchemy.ext.asyncio.async_sessionmaker`, an ``AsyncSession``
    subclass, a function, a lambda, a bound method and a :func:`functools.partial`
    all fit. It is called, not awaited: to make a session does nothing to the
    database.
    """

    def __call__(self) -> AS_co:
        """Make a session.

        :return: a new session each time. Contexts that are handed the same session
            share its objects and its transaction, and the first that ends closes it.
        """
        ...


def check_session(session: object, factory: object) -> None:
    """Refuse what is no async session.

    :raises TypeError: when a factory made something else.
    """
    if not isinstance(session, AsyncSession):
        raise TypeError(
            "An async session factory must return a "
            f"sqlalchemy.ext.asyncio.AsyncSession, but {factory!r} returned "
            f"{session!r}. {REMEDY} [not-an-async-session]"
        )
