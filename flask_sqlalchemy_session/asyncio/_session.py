"""The async scoped session object: an `async_scoped_session` on the Flask context."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, cast

from flask import Flask
from greenlet import getcurrent
from sqlalchemy import event
from sqlalchemy.exc import IllegalStateChangeError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session
from sqlalchemy.util import ScopedRegistry, greenlet_spawn
from werkzeug.local import LocalProxy

from flask_sqlalchemy_session._context import current_context, find_context
from flask_sqlalchemy_session._ending import has_ended
from flask_sqlalchemy_session._factory import check_callable, class_made_by
from flask_sqlalchemy_session._fork import living
from flask_sqlalchemy_session._holder import SECONDS_BETWEEN_ATTEMPTS
from flask_sqlalchemy_session._owner import ContextScoped
from flask_sqlalchemy_session._registry import NONE, ContextRegistry, Keywords, register
from flask_sqlalchemy_session._session import close_transaction
from flask_sqlalchemy_session._threads import InUseError, refuse_use

from ._calls import call, schedule, schedule_on
from ._factory import AS, REMEDY, AsyncSessionFactory, check_session
from ._forwarded import ForwardingAsyncScopedSession
from ._loop import at_end, check_loop, loop_that_runs_here, loop_to_close_on

EXTENSION = "sqlalchemy_async_session"

# Where a sync session keeps the loop that its connections are used on. Code that runs
# on one may only have made the session, and use it on another.
_LOOP = "_flask_sqlalchemy_session_loop"


@event.listens_for(Session, "after_begin")
def _note_loop(session: Session, *_: object) -> None:
    if getcurrent().parent is not None:  # as for any work of an async session
        setattr(session, _LOOP, loop_that_runs_here())


def _loop_of(session: AsyncSession) -> asyncio.AbstractEventLoop | None:
    return getattr(session.sync_session, _LOOP, None)


async def _close(session: AsyncSession) -> None:
    """Close a session and give back every connection, also if closing fails."""
    sync_session = session.sync_session
    # A task that was given it may go on after its view.
    refuse_use(sync_session, lambda: has_ended(find_context()))
    autobegin = sync_session.autobegin
    # A listener of a transaction's end may begin the next one, and so for ever.
    for may_begin in (autobegin, False):  # pragma: no branch  # the second one ends it
        transaction = sync_session.get_transaction()
        sync_session.autobegin = may_begin
        try:
            await _end_transaction(session)
        except BaseException:
            # There is none where an interrupt came before any use.
            if transaction is not None:  # pragma: no branch
                await greenlet_spawn(close_transaction, transaction)
            raise
        finally:
            sync_session.autobegin = autobegin
        if not sync_session.in_transaction():
            return


async def _end_transaction(session: AsyncSession) -> None:
    loop = _loop_of(session)
    if loop and not loop.is_running() and session.in_transaction():
        warnings.warn(
            "The event loop that a session was used on ended before the session was "
            "closed, so that its connections were dropped. Run what uses it with "
            "'app.ensure_sync(function)()', or 'await session.remove()' before the "
            "loop ends. [loop-before-session]",
            ResourceWarning,
            stacklevel=2,
        )
        return await session.invalidate()
    while True:
        try:
            return await session.close()
        except IllegalStateChangeError:  # noqa: PERF203  # nothing is slower than this
            # Another task is about to begin or end the transaction, one that a
            # failed `gather` left behind, say. SQLAlchemy tells nobody when it has.
            await asyncio.sleep(SECONDS_BETWEEN_ATTEMPTS)


class AsyncSessionRegistry(ContextRegistry[AS]):
    """Makes and closes the sessions of a `FlaskAsyncScopedSession`."""

    __slots__ = ()
    serves_a_thread = False

    def make_session(self, keywords: Keywords = NONE) -> AS:
        check_loop(current_context())
        return super().make_session(keywords)

    def accept(self, session: AS) -> None:
        check_session(session, self.owner.session_factory)

    def sync_session(self, session: AS) -> Session:
        return session.sync_session

    def close_session(self, session: AS, *, seconds: float | None = None) -> None:
        loop = loop_to_close_on(_loop_of(session))
        if loop is None:
            return
        if loop is loop_that_runs_here():
            schedule(_close(session))
        elif seconds is None:
            call(loop, lambda: _close(session))
        else:
            schedule_on(loop, _close(session), seconds)

    def extended_remove(self, session: AS) -> Callable[[], object] | None:
        loop = loop_to_close_on(_loop_of(session))
        # On the loop itself nothing can wait for it, and a context that has ended must
        # not keep its session until then.
        if loop is None or loop is loop_that_runs_here():
            return None
        return lambda: call(loop, self.owner.remove)


@at_end.append
def _close_abandoned() -> None:
    for holder in living():
        if isinstance(holder.closer, AsyncSessionRegistry):
            with suppress(InUseError):  # another thread has scheduled it
                holder.close(seconds=0)


class AsyncSessionProxy(LocalProxy[AS]):
    """Stands for the async session of the current application context.

    It has every attribute of that session, which ``help(AsyncSession)`` describes.
    Any use outside an application context raises a :exc:`RuntimeError`. See
    :data:`flask_sqlalchemy_session.asyncio.current_async_session` and
    :attr:`flask_sqlalchemy_session.asyncio.FlaskAsyncScopedSession.proxy`.
    """

    __slots__ = ("_owner",)

    if TYPE_CHECKING:

        def __init__(self, owner: Callable[[], FlaskAsyncScopedSession[AS]]) -> None:
            super().__init__(lambda: owner().registry())

    else:
        __await__ = __aiter__ = __anext__ = None  # which `LocalProxy` has for all

        # Not annotated, as `__class__` is not: see the sync proxy.
        def __init__(self, owner):
            super().__init__(lambda: owner().registry())
            object.__setattr__(self, "_owner", owner)

        def __dir__(self) -> list[str]:
            # Without a context `LocalProxy` would offer a shell nothing to complete.
            return super().__dir__() or dir(AsyncSession)

        @property
        def __class__(self):
            # True to the type without a context, as that of the sync proxy.
            try:
                owner = self._owner()
                made = class_made_by(owner.session_factory, AsyncSession)
                return made or type(owner())
            except Exception:  # noqa: BLE001
                return AsyncSession

        # Asked of an object, not of its class: `LocalProxy` would answer that it has
        # none outside a context.
        def __deepcopy__(self, memo: dict[int, Any]) -> AsyncSession:
            return super().__deepcopy__(memo)


class FlaskAsyncScopedSession(
    ContextScoped[AS], ForwardingAsyncScopedSession[AS], Generic[AS]
):
    """One async session for each application context.

    An :class:`~sqlalchemy.ext.asyncio.async_scoped_session` whose scope is the Flask
    application context: every use within one context reaches the same session,
    which is made on first use and closed when the context ends, on the event loop
    that it was used on.

    Make one for each database, at import time or in the application factory; it
    lives as long as the application, which has to be given a lasting event loop with
    :func:`use_one_event_loop`. It has the methods and attributes of an
    :class:`~sqlalchemy.ext.asyncio.AsyncSession`, and passes each on to the current
    context's session. Call it, or use :attr:`proxy`, for the session as its own type.

    One session serves one task at a time. Give each of several tasks that run at the
    same time a session of its own, and one that outlives the view a context of its
    own: ``with app.app_context():``.

    :param session_factory: makes the sessions: an
        :class:`~sqlalchemy.ext.asyncio.async_sessionmaker`, an ``AsyncSession``
        subclass or any other callable that returns a new session.
    :param app: the application to set up, as by :meth:`init_app`.
    :param name: tells this object from others on the same application.
        :data:`current_async_session` stands for the one named ``"default"``.
    :raises TypeError: when the factory is not callable.
    :raises RuntimeError: when the application has another object of that name.

    Using it raises a :exc:`RuntimeError` outside an application context, and in the
    context of an application that it was not set up for or that
    :func:`use_one_event_loop` was not called for. It raises a :exc:`TypeError` when
    the factory returns something other than an ``AsyncSession``.
    """

    # SQLAlchemy's annotation is narrower than what its documentation allows.
    session_factory: AsyncSessionFactory[AS]  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleVariableOverride]  # ty: ignore[incompatible-attribute-override]

    def __init__(
        self,
        session_factory: AsyncSessionFactory[AS],
        app: Flask | None = None,
        *,
        name: str = "default",
    ) -> None:
        check_callable(session_factory, REMEDY)
        # It is called, and only `configure` needs an async_sessionmaker.
        maker = cast("async_sessionmaker[AS]", session_factory)
        super().__init__(maker, current_context)
        self._registry = AsyncSessionRegistry[AS](self, EXTENSION, name)
        self.registry: ScopedRegistry[AS] = self._registry
        # The proxy stands for the session in every way that its type promises.
        self._proxy = cast("AS", AsyncSessionProxy[AS](lambda: self))
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Set up an application, so that its contexts have this session.

        Several applications can share this object, and one application can have
        several under different names. Each is kept in
        ``app.extensions["sqlalchemy_async_session"]`` by its name. To set up the same
        application again does nothing.

        :param app: the application.
        :raises RuntimeError: when the application has another object of that name;
            it is left as it was.
        """
        register(self, app, EXTENSION)

    def configure(self, **kwargs: object) -> None:
        """Change what the factory gives to the sessions that it makes from now on.

        Meant for where the application is set up, so no context is needed. See
        :meth:`sqlalchemy.ext.asyncio.async_sessionmaker.configure`.

        :param kwargs: arguments of the ``AsyncSession``.
        :raises TypeError: when the factory is no ``async_sessionmaker``.
        """
        if not hasattr(self.session_factory, "configure"):
            raise TypeError(
                "session.configure() needs an async_sessionmaker, but the session "
                f"factory is {self.session_factory!r}. Pass 'async_sessionmaker(...)', "
                "or configure the sessions where that factory makes them. "
                "[no-async-sessionmaker]"
            )
        super().configure(**kwargs)

    async def remove(self) -> None:
        """Close the current context's session now; the next use makes a new one.

        Teardown awaits this in each context that used the session, so a subclass can
        extend it. Where a context ends on the event loop itself (one that a view
        pushes, for example), nothing can wait for it, and the session is closed by a
        task instead: await this at the end of such a context. Does nothing where no
        session was made, or outside a context.

        Whatever closing raises is raised, after every connection of the session was
        given back.
        """
        holder = self._registry.holder()
        if holder is not None:
            holder.registry = None
            try:
                await _close(holder.session)
            finally:
                # An interrupt may have come before anything was closed.
                if not self._registry.is_open(holder.session):  # pragma: no branch
                    holder.closer = None


flask_async_scoped_session = FlaskAsyncScopedSession
"""Another name of :class:`FlaskAsyncScopedSession`, spelt as SQLAlchemy's."""
