"""The scope: what one application context holds, and how it is let go.

A context's sessions live in a :class:`Scope` on its ``g``, the place that Flask
gives extensions for what belongs to one context. No table maps contexts to
sessions, so none can outlive its context or be mistaken for another's.
"""

from __future__ import annotations

import gc
import os
import warnings
from functools import wraps
from typing import TYPE_CHECKING, Any, Generic, Protocol
from weakref import WeakSet

from flask.globals import app_ctx
from sqlalchemy.util import ScopedRegistry
from typing_extensions import TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Flask
    from flask.ctx import AppContext
    from sqlalchemy.orm import Session
    from typing_extensions import ParamSpec

    P = ParamSpec("P")

T = TypeVar("T")

# Werkzeug documents this method as the way from a proxy to what it stands for. It is
# the fastest one to the current context; `current_context` has the better error.
get_context: Callable[[], AppContext] = getattr(app_ctx, "_get_current_object")  # noqa: B009  # Flask types the proxy as the context itself, without it


class ScopeError(RuntimeError, AttributeError):  # pyright: ignore[reportUnsafeMultipleInheritance]  # basedpyright's rule; neither has more to initialise than the other
    """There is no session here: no context, or an app that has none set up.

    A :exc:`RuntimeError`, as Flask raises outside a context. An
    :exc:`AttributeError` too, because 1.1 raised that for an app that was not set
    up, and so that :func:`hasattr` answers instead of raising.
    """


class Owner(Protocol):
    """A scoped session object, as the scope sees it."""

    @property
    def name(self) -> str: ...
    def remove(self) -> object: ...


O = TypeVar("O", bound=Owner, default=Owner)  # noqa: E741  # short for the owner, as T is for the type


class Scope:
    """The sessions of one application context.

    Lives as long as the context's ``g``, and is emptied at each teardown. What it
    still holds when it is dropped was missed by every teardown: that is closed
    then, with a :exc:`ResourceWarning`.
    """

    __slots__ = ("__weakref__", "app", "sessions", "torn_down")

    def __init__(self, app: Flask) -> None:
        self.app = app
        # Registries of sessions of any type share a scope.
        self.sessions: dict[ContextRegistry[Any, Any], Any] = {}
        self.torn_down = False
        _live_scopes.add(self)

    def release(self) -> None:
        """Remove every session, whichever of them fails, then raise what failed."""
        self.torn_down = True
        try:
            _release_each(list(self.sessions.items()))
        finally:
            if self.sessions:  # what a `remove` left or made
                self.close()

    def close(self, *, wait: bool = True) -> None:
        """Close what is here without asking the owners' `remove`."""
        try:
            registry, session = self.sessions.popitem()
        except KeyError:
            return
        try:
            registry.close_session(session, wait=wait)
        finally:
            self.close(wait=wait)

    def __del__(self) -> None:
        if not self.sessions:
            return
        names = ", ".join(repr(registry.owner.name) for registry in self.sessions)
        reason = (
            "it was made after the context's teardown, by a thread that inherited "
            "the context or in a context that was pushed again and not popped"
            if self.torn_down
            else "the context was never popped, its 'g' was cleared, or the session "
            "was first used after the teardown, by a thread that inherited the context"
        )
        try:
            warnings.warn(
                f"A session ({names}) of Flask application {self.app.name!r} was "
                f"closed by the safety net, not by a teardown: {reason}. Give work "
                "that outlives a request a context of its own: "
                "'with app.app_context():'.",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
        finally:
            # A finaliser runs at any point of any thread, also of one that holds what
            # another thread needs to go on.
            self.close(wait=False)


def _release_each(sessions: list[tuple[ContextRegistry[Any, Any], Any]]) -> None:
    if sessions:
        registry, session = sessions.pop()
        try:
            registry.release(session)
        finally:
            _release_each(sessions)


_live_scopes: WeakSet[Scope] = WeakSet()


def _disown_inherited_sessions() -> None:
    """Empty every scope in a forked child, and keep what they held from finalisers.

    To close a session that was open before the fork, or to finalise its
    connection, would end the parent's transaction on the socket or file that both
    share.
    """
    inherited: list[object] = [scope.sessions for scope in _live_scopes]
    if not inherited:
        return
    for scope in _live_scopes:
        scope.sessions = {}
    never_finalise(inherited)


def never_finalise(objects: list[object]) -> None:
    """Keep objects, and what they refer to, from every finaliser.

    A cycle that is frozen is never finalised, not even when the process exits.
    """
    objects.append(objects)
    gc.freeze()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_disown_inherited_sessions)


def current_context() -> AppContext:
    """Return the current application context.

    :raises ScopeError: when there is none.
    """
    try:
        return get_context()
    except RuntimeError:
        raise ScopeError(
            "There is no session outside an application context. Requests and CLI "
            "commands have one; elsewhere, open one: 'with app.app_context():'."
        ) from None


def find_context() -> AppContext | None:
    """Return the current application context, if there is one."""
    try:
        return get_context()
    except RuntimeError:
        return None


def owner_in(context: AppContext, extension: str, name: str, class_: str) -> object:
    """Return what a context's application has under a name.

    :raises ScopeError: when it has nothing under that name.
    """
    app = context.app
    try:
        return app.extensions[extension][name]
    except KeyError:
        keyword = "" if name == "default" else f", name={name!r}"
        raise ScopeError(
            f"Flask application {app.name!r} has no session named {name!r}. Set one up "
            f"with '{class_}(session_factory, app{keyword})', or with "
            "'session.init_app(app)' in an application factory."
        ) from None


def _find_scope() -> Scope | None:
    """Return the current context's scope, if there are both."""
    try:
        g = get_context().g
    except RuntimeError:
        return None
    # An application may have a class of its own for `g`, without Flask's methods.
    return vars(g).get("_flask_sqlalchemy_session")


class ContextRegistry(ScopedRegistry[T], Generic[T, O]):
    """Keeps a scoped session object's session in the scope of the current context."""

    __slots__ = ("extension", "owner", "prepare")

    prepare: Callable[[T], None] | None
    """Is given each session before its first use, while tests isolate them."""

    def __init__(self, owner: O, extension: str) -> None:
        super().__init__(self.make_session, current_context)
        self.owner = owner
        self.extension = extension
        self.prepare = None

    def make_session(self, **kw: object) -> T:
        """Make a session, whatever the context."""
        raise NotImplementedError

    def sync_session(self, session: T) -> Session:
        """Return the `Session` that does the work of a session."""
        raise NotImplementedError

    def close_session(self, session: T, *, wait: bool = True) -> None:
        """Close a session and give back every connection, also if closing fails.

        What has to be done in another thread is waited for, unless told not to.
        """
        raise NotImplementedError

    def release(self, session: T) -> None:
        """Let the owner remove the current context's session, at a teardown."""
        self.owner.remove()

    def __call__(self) -> T:
        try:
            session: T = get_context().g._flask_sqlalchemy_session.sessions[self]
        except (RuntimeError, AttributeError, KeyError):
            pass
        else:
            return session
        return self.open()

    def open(self, **kw: object) -> T:
        """Make the current context's session.

        :raises ScopeError: when there is no context, or its application was not
            set up.
        """
        sessions = self._open_scope().sessions
        session = self.make_session(**kw)
        # Atomic: of two threads that share the context, one keeps its session.
        kept: T = sessions.setdefault(self, session)
        if kept is not session:
            self.close_session(session)
        return kept

    def has(self) -> bool:
        scope = _find_scope()
        return scope is not None and self in scope.sessions

    def set(self, obj: T) -> None:
        self._open_scope().sessions[self] = obj

    def clear(self) -> None:
        self.pop()

    def pop(self) -> T | None:
        """Take the session out of the current context, if there is one."""
        scope = _find_scope()
        return None if scope is None else scope.sessions.pop(self, None)

    def _open_scope(self) -> Scope:
        context = current_context()
        class_ = type(self.owner).__name__
        owner = owner_in(context, self.extension, self.owner.name, class_)
        if owner is not self.owner:
            raise ScopeError(
                f"Flask application {context.app.name!r} has another session named "
                f"{self.owner.name!r}. Use that one, or set this one up under a name "
                f"of its own: '{class_}(session_factory, app, name=...)'."
            )
        scope: Scope = vars(context.g).setdefault(
            "_flask_sqlalchemy_session", Scope(context.app)
        )
        return scope


def register(owner: Owner, app: Flask, extension: str) -> None:
    """Give an application an owner, and let its teardown release the sessions.

    :raises RuntimeError: when the application has another owner of that name.
    """
    app = unproxied(app)
    owners: dict[str, Owner] = app.extensions.get(extension, {})
    if owners.get(owner.name, owner) is not owner:
        raise RuntimeError(
            f"Flask application {app.name!r} already has a session named "
            f"{owner.name!r}. Give this one a name of its own: "
            f"'{type(owner).__name__}(session_factory, app, name=...)'."
        )
    if extension not in app.extensions:
        app.extensions[extension] = owners
        # A teardown hook would not do: hooks run last registered first, those of
        # the application's that run later could use a session again, and before
        # Flask 3.2 one that raises keeps the rest from running.
        app.do_teardown_appcontext = _releasing(  # type: ignore[method-assign]
            app, app.do_teardown_appcontext
        )
    owners[owner.name] = owner


def unproxied(app: Flask) -> Flask:
    """Return the application itself, also where `current_app` is passed for it."""
    current: Callable[[], Flask] | None = getattr(app, "_get_current_object", None)
    return app if current is None else current()


def _releasing(app: Flask, teardown: Callable[P, None]) -> Callable[P, None]:
    """Wrap an application's `do_teardown_appcontext` to release the scope after it."""

    @wraps(teardown)
    def do_teardown_appcontext(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            teardown(*args, **kwargs)
        finally:
            scope = _find_scope()
            # Another application's context is on top when contexts are popped in
            # the wrong order.
            if scope is not None and scope.app is app:
                scope.release()

    return do_teardown_appcontext
