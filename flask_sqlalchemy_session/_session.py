"""The scoped session object: a `scoped_session` whose scope is the Flask context."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, cast

from flask import Flask
from sqlalchemy.exc import IllegalStateChangeError
from sqlalchemy.orm import Session, SessionTransaction, sessionmaker
from sqlalchemy.util import ScopedRegistry
from werkzeug.local import LocalProxy

from ._factory import (
    REMEDY,
    S,
    SessionFactory,
    check_callable,
    check_session,
    class_made_by,
)
from ._forwarded import ForwardingScopedSession
from ._owner import ContextScoped
from ._registry import ContextRegistry, register

EXTENSION = "sqlalchemy_session"

_ATTEMPTS = 10


class SessionRegistry(ContextRegistry[S]):
    """Makes and closes the sessions of a `FlaskScopedSession`."""

    __slots__ = ()

    def accept(self, session: S) -> None:
        check_session(session, self.owner.session_factory)

    def sync_session(self, session: S) -> Session:
        return session

    def extended_remove(self, session: S) -> Callable[[], object] | None:
        remove: Callable[[], object] = self.owner.remove
        # One that nobody extends does no more than close the session.
        return None if getattr(remove, "__func__", None) is _remove else remove

    def close_session(self, session: S, *, seconds: float | None = None) -> None:
        # A listener of the end of a transaction may begin the next, and so for ever.
        for _ in range(_ATTEMPTS):
            close(session)
            if not self.is_open(session):
                return
        autobegin, session.autobegin = session.autobegin, False
        try:
            close(session)
        finally:
            session.autobegin = autobegin


def close(session: Session) -> None:
    """Close a session and give back every connection, also if closing fails."""
    # A test's fake may have no more than `close`.
    get_transaction = getattr(session, "get_transaction", None)
    transaction = None if get_transaction is None else get_transaction()
    try:
        session.close()
    except IllegalStateChangeError:
        raise  # another thread is about to begin or to end the transaction
    except BaseException:
        # It stopped at the first connection that failed. The others would stay checked
        # out, in a transaction, until they are collected.
        if transaction is not None:
            close_transaction(transaction)
        raise


def close_transaction(transaction: SessionTransaction) -> None:
    """Give back every connection of a transaction that could not be closed whole."""
    # A failed attempt ends one connection's transaction, so that the next gets
    # further. The bound is for a listener that raises for ever. The first attempt
    # also keeps a connection that could not roll back from being used again.
    for attempt in range(100):
        try:
            transaction.close(invalidate=attempt == 0)
        except BaseException:  # noqa: BLE001, S112  # the first failure is the one to tell
            continue
        return


# What 1.1's `current_session` had from the scoped session that it stood for.
SCOPED_NAMES = {"configure", "query_property", "registry", "remove", "session_factory"}

# What a proxy does not forward at once. It is not awaitable, as `LocalProxy` is for
# what it may stand for.
_ASYNC = {"__aenter__", "__aexit__", "__aiter__", "__anext__", "__await__"}
OWN_NAMES = frozenset(
    {*dir(LocalProxy), "_scoped_session", "_registry", *SCOPED_NAMES} - _ASYNC
)


class SessionProxy(LocalProxy[S]):
    """Stands for the session of the current application context.

    It has every attribute of that session, which ``help(Session)`` describes. Any use
    outside an application context raises a :exc:`RuntimeError`. See
    :data:`flask_sqlalchemy_session.current_session` and
    :attr:`flask_sqlalchemy_session.FlaskScopedSession.proxy`.
    """

    __slots__ = ("_registry",)

    if not TYPE_CHECKING:
        __aenter__ = __aexit__ = __aiter__ = __anext__ = __await__ = None

        # What `__class__` goes by is not annotated: typeguard's import hook would ask
        # for `self.__class__` first, in `__class__` too.
        def __init__(self, registry):
            super().__init__(registry)
            object.__setattr__(self, "_registry", registry)
            # Without the functions that `LocalProxy` has around it.
            object.__setattr__(self, "_get_current_object", registry)

        # `LocalProxy` forwards by a `__getattr__` that takes more than twice as long.
        def __getattribute__(self, name):
            if name in OWN_NAMES:
                return object.__getattribute__(self, name)
            registry = _registry_of(self)
            holder = registry.holder()
            session = registry.open() if holder is None else holder.session
            return getattr(session, name)

        def _scoped_session(self):
            return _registry_of(self).owner

        def __dir__(self) -> list[str]:
            # Without a context `LocalProxy` would offer a shell nothing to complete.
            try:
                return dir(self._get_current_object())
            except RuntimeError:
                return dir(Session)

        @property
        def __class__(self):
            # True to the type without a context, and without making a session where
            # the factory tells the class. What a factory raises, the next use tells.
            try:
                owner = self._scoped_session()
                made = class_made_by(owner.session_factory, Session)
                return made or type(owner())
            except Exception:  # noqa: BLE001
                return Session

        def __copy__(self) -> Session:
            return copy.copy(self._get_current_object())

        def __deepcopy__(self, memo: dict[int, Any]) -> Session:
            return copy.deepcopy(self._get_current_object(), memo)


# Reads the slot, past `__getattribute__`.
_registry_of = vars(SessionProxy)["_registry"].__get__


class FlaskScopedSession(ContextScoped[S], ForwardingScopedSession[S], Generic[S]):
    """One session for each application context.

    A :class:`~sqlalchemy.orm.scoped_session` whose scope is the Flask application
    context: every use within one context reaches the same session, which is made
    on first use and closed when the context ends.

    Make one for each database, at import time or in the application factory; it
    lives as long as the application. It has the methods and attributes of a
    :class:`~sqlalchemy.orm.Session`, and passes each on to the current context's
    session. Call it, or use :attr:`proxy`, for the session as its own type.

    :param session_factory: makes the sessions: a
        :class:`~sqlalchemy.orm.sessionmaker`, a ``Session`` subclass or any other
        callable that returns a new session.
    :param app: the application to set up, as by :meth:`init_app`.
    :param name: tells this object from others on the same application.
        :data:`current_session` stands for the one named ``"default"``.
    :raises TypeError: when the factory is not callable.
    :raises RuntimeError: when the application has another object of that name.

    Using it raises a :exc:`RuntimeError` outside an application context, and in the
    context of an application that it was not set up for. It raises a
    :exc:`TypeError` when the factory returns something other than a ``Session``.
    """

    # SQLAlchemy's annotation is narrower than what its documentation allows.
    session_factory: SessionFactory[S]  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleVariableOverride]  # ty: ignore[incompatible-attribute-override]

    def __init__(
        self,
        session_factory: SessionFactory[S],
        app: Flask | None = None,
        *,
        name: str = "default",
    ) -> None:
        check_callable(session_factory, REMEDY)
        # It is called, and only `configure` needs a sessionmaker.
        super().__init__(cast("sessionmaker[S]", session_factory))
        self._registry = SessionRegistry[S](self, EXTENSION, name)
        self.registry: ScopedRegistry[S] = self._registry
        # The proxy stands for the session in every way that its type promises.
        self._proxy = cast("S", SessionProxy(self._registry))
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Set up an application, so that its contexts have this session.

        Several applications can share this object, and one application can have
        several under different names. Each is kept in
        ``app.extensions["sqlalchemy_session"]`` by its name, and the default one is
        also ``app.scoped_session``. To set up the same application again does
        nothing.

        :param app: the application.
        :raises RuntimeError: when the application has another object of that name;
            it is left as it was.
        """
        # Version 1.1's attribute.
        attribute = "scoped_session" if self.name == "default" else None
        register(self, app, EXTENSION, attribute)

    def configure(self, **kwargs: object) -> None:
        """Change what the factory gives to the sessions that it makes from now on.

        Meant for where the application is set up, so no context is needed. See
        :meth:`sqlalchemy.orm.sessionmaker.configure`.

        :param kwargs: arguments of the ``Session``.
        :raises TypeError: when the factory is no ``sessionmaker``.
        """
        if not hasattr(self.session_factory, "configure"):
            raise TypeError(
                f"session.configure() needs a sessionmaker, but the session factory "
                f"is {self.session_factory!r}. Pass 'sessionmaker(...)', or configure "
                "the sessions where that factory makes them. [no-sessionmaker]"
            )
        super().configure(**kwargs)

    def remove(self) -> None:
        """Close the current context's session now; the next use makes a new one.

        Teardown calls this in each context that used the session, so a subclass can
        extend it. Does nothing where no session was made, or outside a context.

        Whatever closing raises is raised, after every connection of the session was
        given back.

        :raises sqlalchemy.exc.IllegalStateChangeError: while another thread is inside
            the session. It is closed when the context ends.
        """
        self._registry.clear()


_remove = FlaskScopedSession.remove

flask_scoped_session = FlaskScopedSession
"""Version 1.1's name of :class:`FlaskScopedSession`."""
