"""What makes sessions: the type, and the checks on what a user passes for it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from sqlalchemy.orm import Session
from typing_extensions import TypeVar

T = TypeVar("T")
S = TypeVar("S", bound=Session, default=Session)
S_co = TypeVar("S_co", bound=Session, default=Session, covariant=True)


REMEDY = (
    "Pass 'sessionmaker(engine)', a Session subclass or a function that returns a new "
    "Session."
)
"""What to do about a factory that makes no sessions."""


@runtime_checkable
class SessionFactory(Protocol[S_co]):
    """Any callable that makes a :class:`~sqlalchemy.orm.Session`.

    A :class:`~sqlalchemy.orm.sessionmaker`, a ``Session`` subclass, a function, a
    lambda, a bound method and a :func:`functools.partial` all fit.
    """

    def __call__(self) -> S_co:
        """Make a session.

        :return: a new session each time. Contexts that are handed the same session
            share its objects and its transaction, and the first that ends closes it.
        """
        ...


def class_made_by(factory: object, base: type[T]) -> type[T] | None:
    """Return the class of what a factory makes, if the factory tells it."""
    class_ = getattr(factory, "class_", factory)
    return class_ if isinstance(class_, type) and issubclass(class_, base) else None


def check_callable(factory: object, remedy: str) -> None:
    """Refuse what can make no session.

    :raises TypeError: when the factory is not callable.
    """
    if not callable(factory):
        raise TypeError(
            f"A session factory is called to make each session, but {factory!r} is "
            f"not callable. {remedy} [not-callable]"
        )


def check_keywords(factory: object, keywords: Mapping[str, object]) -> None:
    """Refuse keyword arguments that a factory does not take.

    :raises TypeError: when it takes fewer.
    """
    assert callable(factory)
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some built-ins tell none
        return
    try:
        signature.bind(**keywords)
    except TypeError as error:
        raise TypeError(
            f"session(**keywords) passes its keyword arguments to the session "
            f"factory, but {factory!r} does not take them: {error}. Use a "
            "sessionmaker, or let the factory accept them. [factory-keywords]"
        ) from None


def check_session(session: object, factory: object) -> None:
    """Refuse what is no session.

    :raises TypeError: when a factory made something else.
    """
    if isinstance(session, Session):
        return
    remedy = REMEDY
    # An AsyncSession. To import its class takes time.
    if hasattr(type(session), "sync_session_class"):
        remedy = (
            "For async sessions there is 'FlaskAsyncScopedSession', with 'from "
            "flask_sqlalchemy_session.asyncio import FlaskAsyncScopedSession'."
        )
    raise TypeError(
        f"A session factory must return a sqlalchemy.orm.Session, but {factory!r} "
        f"returned {session!r}. {remedy} [not-a-session]"
    )
