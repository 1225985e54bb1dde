"""The way from a scoped session object to the current context's session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from flask import Flask
from flask.ctx import AppContext
from sqlalchemy.orm import Session
from sqlalchemy.util import ScopedRegistry

from ._context import (
    ScopeError,
    current_context,
    find_context,
    get_g,
    owner_in,
    unproxied,
)
from ._ending import end_with_contexts, watch
from ._factory import check_keywords
from ._holder import SECONDS_TO_WAIT, Holder
from ._requests import watch_contexts
from ._scope import check_place, held, hold
from ._threads import InUseError, here

if TYPE_CHECKING:
    from ._owner import ContextScoped

T = TypeVar("T")

Keywords: TypeAlias = Mapping[str, object]
NONE: Keywords = {}

_registering = RLock()  # an application may set up another when it is given one


def key_of(extension: str, name: str) -> str:
    """Return the name on `g` of what holds the session of the object with a name."""
    return f"_flask_{extension}_{name}"


class ContextRegistry(ScopedRegistry[T]):
    """Keeps a scoped session object's session on the current context."""

    __slots__ = ("extension", "key", "name", "owner", "prepare")

    serves_a_thread = True
    """Whether a session is one thread's at a time. An async one is a task's."""

    prepare: Callable[[T], None] | None
    """Is given each session before its first use, while tests isolate them."""

    def __init__(self, owner: ContextScoped[T], extension: str, name: str) -> None:
        super().__init__(self.make_session, current_context)
        self.owner = owner
        self.extension = extension
        self.name = name
        self.key = key_of(extension, name)
        self.prepare = None

    def make_session(self, keywords: Keywords = NONE) -> T:
        """Make a session, whatever the context."""
        factory: Callable[..., T] = self.owner.session_factory
        if keywords:
            check_keywords(factory, keywords)
        session = factory(**keywords) if keywords else factory()
        self.accept(session)
        if self.prepare is not None:
            self.prepare(session)
        return session

    def accept(self, session: T) -> None:
        """Take what the factory made, or refuse it.

        :raises TypeError: when it is no session.
        """
        raise NotImplementedError

    def sync_session(self, session: T) -> Session:
        """Return the `Session` that does the work of a session."""
        raise NotImplementedError

    def close_session(self, session: T, *, seconds: float | None = None) -> None:
        """Close a session and give back every connection, also if closing fails.

        :param seconds: how long to wait for what is done in another thread, if not
            for as long as it takes.
        """
        raise NotImplementedError

    def is_open(self, session: T) -> bool:
        """Tell whether a session has a transaction, and so may have connections."""
        # A test's fake may have no answer, or one to all that it is asked.
        return getattr(session, "in_transaction", bool)() is True

    def extended_remove(self, session: T) -> Callable[[], object] | None:
        """Return what lets the owner's `remove` close a session, if that has to be."""
        raise NotImplementedError

    def release(self, holder: Holder, context: AppContext) -> None:
        """Close a session whose context ends."""
        remove = self.extended_remove(holder.session)
        # It acts on the current context, which may be another one.
        if remove is not None and context is find_context():
            remove()
        else:
            holder.close(seconds=SECONDS_TO_WAIT)

    def __call__(self) -> T:
        """Return the current context's session, made if this is its first use."""
        holder = self.holder()
        session: T = self.open() if holder is None else holder.session
        return session

    def holder(self) -> Holder | None:
        """Return what holds the current context's session, if it was made."""
        try:
            holder: Holder | None = get_g().__dict__.get(self.key)
        except (RuntimeError, AttributeError):  # no context, or no room on its `g`
            return None
        # Another thread may have made it, or used a context that shares the `g`.
        if (
            holder is not None
            and holder.registry is self
            and holder.thread is here.thread
        ):
            return holder
        holder = held(current_context(), self)
        if holder is not None:
            holder.share()
            if holder.registry is not self:  # pragma: no cover  # closed meanwhile
                return None
        return holder

    def open(self, keywords: Keywords = NONE) -> T:
        """Make the current context's session.

        :raises ScopeError: when there is no context, its application was not set up, or
            no more sessions can be made there.
        """
        context = current_context()
        self._check_place(context)
        session = self.make_session(keywords)
        watch(context)
        holder = hold(context, self, session)
        if held(context, self) is not holder:  # another thread's, or use's, is kept
            with suppress(InUseError):  # one more thread has found it meanwhile
                holder.close()
            return self()
        context.g.__dict__[self.key] = holder
        return session

    def has(self) -> bool:
        return self.holder() is not None

    def set(self, obj: T) -> None:
        """Give the current context a session. What it had is closed."""
        context = current_context()
        self._check_place(context)
        holder = self.holder()
        if holder is None or holder.session is not obj:
            self.clear()
            watch(context)
            holder = hold(context, self, obj)
            while (kept := held(context, self)) is not holder and kept is not None:
                kept.close()  # what another thread has made meanwhile
            context.g.__dict__[self.key] = holder

    def clear(self) -> None:
        """Close the current context's session. The next use makes a new one."""
        holder = self.holder()
        if holder is not None:
            holder.close()

    def _check_place(self, context: AppContext) -> None:
        owner = self.owner
        if owner_in(context, self.extension, self.name, type(owner)) is not owner:
            raise ScopeError(
                f"Flask application {context.app.name!r} has another session named "
                f"{self.name!r}. Use that one, or give this one a name of its own: "
                f"'{type(owner).__name__}(session_factory, app, name=...)'. "
                "[another-session]"
            )
        check_place(context)


def register(
    owner: ContextScoped[Any], app: Flask, extension: str, attribute: str | None = None
) -> None:
    """Give an application an owner, and let its contexts release their sessions.

    :param attribute: an attribute of the application, to be set to the owner.
    :raises RuntimeError: when the application has another owner of that name.
    """
    app = unproxied(app)
    with _registering:
        owners = app.extensions.get(extension, {})
        if owners.get(owner.name, owner) is not owner:
            raise RuntimeError(
                f"Flask application {app.name!r} already has a session named "
                f"{owner.name!r}. Give this one a name of its own: "
                f"'{type(owner).__name__}(session_factory, app, name=...)'. "
                "[name-in-use]"
            )
        class_, attributes = type(app), dict(vars(app))
        try:
            end_with_contexts(app)
            watch_contexts(app)
            if attribute is not None:
                setattr(app, attribute, owner)
            # Again, as an application may add to them when it is given the attribute.
            owners = app.extensions.get(extension, {})
            app.extensions[extension] = {**owners, owner.name: owner}
        except BaseException:  # an application may refuse any of these
            for name in vars(app).keys() - attributes.keys():
                del vars(app)[name]
            vars(app).update(attributes)
            if type(app) is not class_:
                app.__class__ = class_
            raise
