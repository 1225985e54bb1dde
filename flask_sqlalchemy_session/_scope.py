"""The scope: what one application context holds, and how it is let go.

A context's sessions live on its ``g``, the place that Flask gives extensions for what
belongs to one context. No table maps contexts to sessions, so none can outlive its
context or be mistaken for another's.
"""

from __future__ import annotations

import math
import time
import warnings
from _thread import start_new_thread
from collections.abc import Collection
from contextlib import ExitStack, suppress
from threading import Thread, current_thread, get_ident
from typing import Any, Protocol
from weakref import ref

from flask import Flask
from flask.ctx import AppContext
from sqlalchemy.exc import IllegalStateChangeError
from sqlalchemy.orm import Session

from ._context import ScopeError, find_context
from ._fork import forget, in_unprepared_child, live, never_finalise
from ._threads import allow_use, end_use

SECONDS_TO_WAIT = 1.0
"""How long the end of a context waits for threads that are inside its sessions."""

SECONDS_BETWEEN_ATTEMPTS = 0.01

# A listener may use the session again each time that one is closed, and so for ever.
_TURNS = 10

# On `g`, where no name of a session makes a key that begins like these.
_FIRST = "_flask_sqlalchemy_sessions_first"
_OTHERS = "_flask_sqlalchemy_sessions_others"
_RELEASED = "_flask_sqlalchemy_sessions_released"
_SEALED = "_flask_sqlalchemy_sessions_sealed"


class Registry(Protocol):
    """A scoped session object's registry, as the end of a context sees it."""

    key: str
    name: str

    @property
    def serves_a_thread(self) -> bool: ...
    def release(self, session: Any) -> None: ...
    def close_session(self, session: Any, *, seconds: float | None = None) -> None: ...
    def is_open(self, session: Any) -> bool: ...


class Holder:
    """Holds one session for one context, until it is closed.

    A context's `g` has the last one of each registry under the registry's key, and the
    first of all under a key of its own. The first knows the others.
    """

    __slots__ = (
        "__weakref__",
        "app",
        "closer",
        "late",
        "left",
        "others",
        "registry",
        "session",
        "thread",
        "threads",
    )

    registry: Registry | None
    """Whose uses find the session: None once they are to make another one."""

    closer: Registry | None
    """What closes the session: None once it is closed, or another's to close."""

    left: bool
    """Whether it was left to a thread of its own to close the session."""

    threads: list[Thread]
    """Those that were given the session, first the one that made it."""

    def __init__(
        self, registry: Registry, session: Any, app: Flask, late: bool = False
    ) -> None:
        self.session = session
        self.app = app
        self.thread = get_ident()
        self.late = late
        self.left = False
        self.others: Collection[Holder] = ()
        self.threads = [current_thread()]
        live.add(ref(self, forget))
        self.registry = self.closer = registry

    def leave_to_parent(self) -> object:
        self.registry = self.closer = None
        return self.session

    def unclosed(self) -> list[Holder]:
        """Return this holder and the others that it knows, if they are to be closed."""
        if not self.others:
            return [] if self.closer is None or self.left else [self]
        holders = (self, *self.others)
        return [each for each in holders if each.closer is not None and not each.left]

    def end(
        self, deadline: float, *, through_owner: bool, seconds: float | None
    ) -> None:
        """Let the owner remove the session, and close what that has not closed."""
        try:
            if through_owner and self.registry is not None:
                self.registry.release(self.session)
        except IllegalStateChangeError:
            if self.closer is None:
                raise
            # Another thread is inside the session, which is waited for.
        finally:
            if self.closer is not None:
                self.close_when_idle(deadline, seconds=seconds)

    def close_when_idle(self, deadline: float, *, seconds: float | None = None) -> None:
        """Close the session once no other thread is inside it.

        After the deadline it is left to a thread of its own to wait for that.
        """
        self.registry = None
        while self.closer is not None:
            try:
                self.close(seconds=seconds)
            except IllegalStateChangeError:  # noqa: PERF203  # it waits all the same
                if time.monotonic() >= deadline:
                    self.left = True
                    with suppress(RuntimeError):  # no more threads: the safety net's
                        start_new_thread(self.close_at_last, ())
                    return
                time.sleep(SECONDS_BETWEEN_ATTEMPTS)

    def share(self) -> None:
        """Note that a thread is given a session that another made."""
        if current_thread() not in self.threads:
            self.threads.append(current_thread())  # atomic, as others may do the same

    def close(self, *, seconds: float | None = None) -> None:
        """Close the session, if that is still to be done.

        :param seconds: how long to wait for an event loop that closes it.
        :raises IllegalStateChangeError: while another thread is inside the session. It
            stays as it was.
        :raises BaseException: what closing raised. Every connection was given back.
        """
        closer = self.closer
        if closer is None:
            return  # pragma: no cover  # another thread was faster
        session = self.session
        # A listener that uses the session meanwhile is given another one, and so is a
        # thread that is not noted yet.
        registry, self.registry = self.registry, None
        is_shared = (
            (len(self.threads) > 1 or self.thread != get_ident())
            and closer.serves_a_thread
            and isinstance(session, Session)  # and no fake of a test
        )
        try:
            if is_shared:
                end_use(session, self.threads)
            closer.close_session(session, seconds=seconds)
        except IllegalStateChangeError:
            if is_shared:
                allow_use(session)
            self.registry = registry
            raise
        except BaseException:
            # An interrupt may have come before anything was closed.
            if not closer.is_open(session):  # pragma: no branch  # nor traced then
                self.closer = None
            raise
        self.closer = None

    def close_at_last(self) -> None:  # pragma: no cover  # its thread is not traced
        try:
            _warn([self])
        finally:
            self.close_when_idle(math.inf)

    def __del__(self) -> None:
        """Close what every teardown missed, with a :exc:`ResourceWarning`."""
        try:
            holders = self.unclosed()
            if self.left and self.closer is not None:  # and no thread has it
                holders.insert(0, self)
        except AttributeError:  # an interrupt came before
            return
        if not holders:
            return
        if in_unprepared_child():
            never_finalise([holder.session for holder in holders])
            return
        with ExitStack() as stack:
            for holder in reversed(holders):
                stack.callback(holder.close_when_idle, 0, seconds=0)
            _warn(holders)


def _warn(holders: list[Holder]) -> None:
    names = ", ".join(repr(each.closer.name) for each in holders if each.closer)
    if holders[0].left:
        fact = (
            f"was in use by another thread {SECONDS_TO_WAIT:g} s after its context had "
            "ended, and is closed when that thread lets go of it"
        )
    elif holders[0].late:
        fact = (
            "was closed by the safety net, not by a teardown: it was made after the "
            "context's teardown, by a thread that inherited the context or in a "
            "context that was pushed again and not popped"
        )
    else:
        fact = (
            "was closed by the safety net, not by a teardown: the context was never "
            "popped, its 'g' was cleared, or the session was first used after the "
            "teardown, by a thread that inherited the context"
        )
    warnings.warn(
        f"A session ({names}) of Flask application {holders[0].app.name!r} {fact}. "
        "Give work that outlives a request a context of its own: 'with "
        "app.app_context():'. [late-session]",
        ResourceWarning,
        stacklevel=3,
        source=holders[0],
    )


def hold(registry: Registry, session: Any, app: Flask, scope: dict[str, Any]) -> Holder:
    """Let a context hold a session, which no use of it finds yet."""
    allow_use(session)  # a factory may return one that was closed, again
    holder = Holder(registry, session, app, _RELEASED in scope)
    first: Holder = scope.setdefault(_FIRST, holder)
    if first is not holder:
        # Each step is atomic, as threads that share the context may do the same.
        first.others = others = scope.setdefault(_OTHERS, [])
        others.append(holder)
        for each in [each for each in others if each.closer is None]:
            with suppress(ValueError):
                others.remove(each)
    return holder


def scope_of(context: AppContext) -> dict[str, Any]:
    """Return where a context's holders are, among what else is on its `g`.

    :raises ScopeError: when no more sessions can be made there.
    """
    try:
        scope = context.g.__dict__
    except AttributeError:
        raise ScopeError(
            f"The sessions of a context live on its 'g', but {type(context.g)!r}, the "
            f"'app_ctx_globals_class' of Flask application {context.app.name!r}, "
            "has no room for them. Take away its '__slots__', or give it a "
            "'__dict__' slot. [g-slots]"
        ) from None
    if _SEALED in scope:
        raise ScopeError(
            f"A context of Flask application {context.app.name!r} ends, and each time "
            "its session was closed it was used again: by a listener of that event, "
            "most likely. Let the listener use the connection that it is called with. "
            "[used-while-closed]"
        )
    return scope


def release(context: AppContext) -> None:
    """Close every session of a context, whichever fails, and raise what failed first.

    It waits one time for all that other threads are inside of.
    """
    scope: dict[str, Any] = getattr(context.g, "__dict__", {})
    first: Holder | None = scope.get(_FIRST)
    if first is None:
        return
    # What the owners' `remove` acts on is the current one.
    through_owners = context is find_context()
    # A finaliser may end another one, at any point of any thread, also of one that
    # holds what others need to go on.
    seconds = None if through_owners else SECONDS_TO_WAIT
    deadline = time.monotonic() + SECONDS_TO_WAIT
    errors: list[BaseException] = []
    turn = 0
    while turn <= _TURNS and (holders := first.unclosed()):
        if turn == _TURNS:
            scope[_SEALED] = True
        for holder in holders:
            try:
                holder.end(
                    deadline,
                    through_owner=through_owners and not turn,
                    seconds=seconds,
                )
            except BaseException as error:  # noqa: BLE001, PERF203  # the others' turn comes first
                errors.append(error)
        turn += 1
    scope[_RELEASED] = True
    if turn > _TURNS:
        del scope[_SEALED]
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # no cycle with its traceback
