"""The scoped session object: a `scoped_session` whose scope is the Flask context."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, cast

from sqlalchemy.orm import Session
from werkzeug.local import LocalProxy

from ._factory import (
    REMEDY,
    S,
    SessionFactory,
    check_callable,
    check_keywords,
    check_session,
)
from ._forwarded import ForwardingScopedSession
from ._scope import ContextRegistry, get_context, register
from ._scoped import ContextScoped

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Flask
    from sqlalchemy.orm import SessionTransaction, sessionmaker
    from sqlalchemy.util import ScopedRegistry

EXTENSION = "sqlalchemy_session"


class SessionRegistry(ContextRegistry[S, "FlaskScopedSession[S]"]):
    """Makes and closes the sessions of a `FlaskScopedSession`."""

    __slots__ = ()

    def make_session(self, **kw: object) -> S:
        factory = self.owner.session_factory
        if kw:
            check_keywords(factory, kw)
        session = factory(**kw)
        check_session(session, factory)
        if self.prepare is not None:
            self.prepare(session)
        return session

    def sync_session(self, session: S) -> Session:
        return session

    def close_session(self, session: S, *, wait: bool = True) -> None:
        transaction = session.get_transaction()
        try:
            session.close()
        except BaseException:
            # It stopped at the first connection that failed. The others would stay
            # checked out, in a transaction, until they are collected.
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


# What a proxy has itself. It forwards everything else.
OWN_NAMES = frozenset({*dir(LocalProxy), "_registry"})


class SessionProxy(LocalProxy[S]):
    """Stands for the session of the current application context.

    It has every attribute of that session, which ``help(Session)`` describes. Any use
    outside an application context raises a :exc:`RuntimeError`. See
    :data:`flask_sqlalchemy_session.current_session` and
    :attr:`flask_sqlalchemy_session.FlaskScopedSession.proxy`.
    """

    __slots__ = ("_registry",)

    def __init__(self, registry: Callable[[], S]) -> None:
        super().__init__(registry)
        object.__setattr__(self, "_registry", registry)
        # Without the functions that `LocalProxy` has around it.
        object.__setattr__(self, "_get_current_object", registry)

    if not TYPE_CHECKING:
        # `LocalProxy` forwards by a `__getattr__` that takes more than twice as long.
        def __getattribute__(self, name: str) -> object:
            if name in OWN_NAMES:
                return object.__getattribute__(self, name)
            registry = _registry_of(self)
            try:
                # Without the registry's call, which is a quarter of the time.
                scope = get_context().g._flask_sqlalchemy_session
                session = scope.sessions[registry]
            except (RuntimeError, AttributeError, KeyError):
                pass
            else:
                return getattr(session, name)
            return getattr(registry(), name)

        def __dir__(self) -> list[str]:
            # Without a context `LocalProxy` would offer a shell nothing to complete.
            try:
                return dir(self._get_current_object())
            except RuntimeError:
                return dir(Session)


# Reads the slot, past `__getattribute__`.
_registry_of = SessionProxy.__dict__["_registry"].__get__


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

    def __init__(
        self,
        session_factory: SessionFactory[S],
        app: Flask | None = None,
        *,
        name: str = "default",
    ) -> None:
        check_callable(session_factory, REMEDY)
        # SQLAlchemy's annotation is narrower than what its documentation allows:
        # it calls the factory, and only `configure` needs a sessionmaker.
        super().__init__(cast("sessionmaker[S]", session_factory))
        self._registry = SessionRegistry[S](self, EXTENSION)
        self.registry: ScopedRegistry[S] = self._registry
        self._name = name
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
        register(self, app, EXTENSION)
        if self.name == "default":
            # Version 1.1's attribute, which Flask's type does not have.
            setattr(app, "scoped_session", self)  # noqa: B010

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
                "the sessions where that factory makes them."
            )
        super().configure(**kwargs)

    def remove(self) -> None:
        """Close the current context's session now; the next use makes a new one.

        Teardown calls this in each context that used the session, so a subclass can
        extend it. Does nothing where no session was made, or outside a context.

        Whatever closing raises is raised, after every connection of the session was
        given back.
        """
        session = self._registry.pop()
        if session is not None:
            self._registry.close_session(session)


flask_scoped_session = FlaskScopedSession
"""Version 1.1's name of :class:`FlaskScopedSession`."""
