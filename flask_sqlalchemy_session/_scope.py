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
from contextlib import ExitStack
from typing import Any, Protocol
from weakref import ref

from flask import Flask
from flask.ctx import AppContext
from sqlalchemy.exc import IllegalStateChangeError

from ._context import ScopeError
from ._fork import in_unprepared_child, live, never_finalise

SECONDS_TO_WAIT = 1.0
"""How long the end of a context waits for threads that are inside its sessions."""

SECONDS_BETWEEN_ATTEMPTS = 0.01

# A listener may use the session again each time that one is closed, and so for ever.
_TURNS = 10
_LAST_TURN = "_flask_sqlalchemy_session_last_turn"

LAST = "_flask_sqlalchemy_session_last"
"""Where a context has the holder that was made last, on its `g`."""


class Registry(Protocol):
    """A scoped session object's registry, as the end of a context sees it."""

    key: str
    closing: str

    @property
    def name(self) -> str: ...
    def release(self, session: Any) -> None: ...
    def close_session(self, session: Any, *, wait: bool = True) -> None: ...
    def is_open(self, session: Any) -> bool: ...


class Holder:
    """Holds one session for one context, on the context's ``g``, until it is closed.

    A holder that is dropped before that was missed by every teardown. It closes its
    session then, with a :exc:`ResourceWarning`.
    """

    __slots__ = ("__weakref__", "app", "before", "late", "registry", "session")

    before: Holder | None
    """The context's one before this, for one warning to name them all."""

    registry: Registry | None
    """None once the session is closed, or another's to close."""

    def __init__(
        self,
        registry: Registry,
        session: Any,
        app: Flask,
        late: bool = False,
        before: Holder | None = None,
    ) -> None:
        self.session = session
        self.app = app
        self.late = late
        while before is not None and before.registry is None:
            before = before.before
        self.before = before
        live[id(self)] = ref(self)
        self.registry = registry

    def let_go(self) -> None:
        self.registry = None
        live.pop(id(self), None)

    def leave_to_parent(self) -> object:
        self.registry = None
        return self.session

    def set_aside(self, scope: dict[str, Any]) -> None:
        """Make room for the next session, while the context still holds this one."""
        registry = self.registry
        if registry is not None:
            scope[registry.closing] = self
            if scope.get(registry.key) is self:
                del scope[registry.key]

    def end(self, scope: dict[str, Any], *, through_owner: bool) -> None:
        """Let the owner remove the session, and close what that has not closed."""
        try:
            if through_owner and self.registry is not None:
                self.registry.release(self.session)
        except IllegalStateChangeError:
            pass  # another thread is inside the session, which is waited for
        finally:
            if self.registry is not None:
                # A listener that uses the session meanwhile is given another one.
                self.set_aside(scope)
                self.close_when_idle(SECONDS_TO_WAIT)

    def close_when_idle(self, seconds: float, *, wait: bool = True) -> None:
        """Close the session once no other thread is inside it.

        After that time it is left to a thread of its own to wait for that.
        """
        deadline = time.monotonic() + seconds
        while self.registry is not None:
            try:
                self.close(wait=wait)
            except IllegalStateChangeError:  # noqa: PERF203  # it waits all the same
                if time.monotonic() >= deadline:
                    holder = Holder(self.registry, self.session, self.app)
                    start_new_thread(holder.close_at_last, ())
                    self.let_go()
                else:
                    time.sleep(SECONDS_BETWEEN_ATTEMPTS)

    def close(self, *, wait: bool = True) -> None:
        """Close the session, if that is still to be done.

        :raises IllegalStateChangeError: while another thread is inside the session. It
            stays held.
        :raises BaseException: what closing raised. Every connection was given back.
        """
        registry = self.registry
        if registry is None:
            return
        try:
            registry.close_session(self.session, wait=wait)
        except BaseException:
            # An interrupt may have come before anything was closed.
            if not registry.is_open(self.session):
                self.let_go()
            raise
        self.let_go()

    def close_at_last(self) -> None:
        try:
            _warn(
                [self],
                f"was in use by another thread {SECONDS_TO_WAIT:g} s after its context "
                "had ended, and is closed when that thread lets go of it",
            )
        finally:
            self.close_when_idle(math.inf)

    def __del__(self) -> None:
        if getattr(self, "registry", None) is None:  # an interrupt may have come first
            return
        # The last goes first, as it refers to the others.
        holders: list[Holder] = []
        holder: Holder | None = self
        while holder is not None:
            if holder.registry is not None:
                holders.insert(0, holder)
            holder = holder.before
        if in_unprepared_child():
            never_finalise([holder.session for holder in holders])
            return
        with ExitStack() as stack:
            for holder in holders:
                # A finaliser runs at any point of any thread, also of one that holds
                # what another thread needs to go on.
                stack.callback(holder.close_when_idle, 0, wait=False)
            _warn(
                holders,
                "was closed by the safety net, not by a teardown: it was made after "
                "the context's teardown, by a thread that inherited the context or in "
                "a context that was pushed again and not popped"
                if self.late
                else "was closed by the safety net, not by a teardown: the context "
                "was never popped, its 'g' was cleared, or the session was first used "
                "after the teardown, by a thread that inherited the context",
            )


def _warn(holders: list[Holder], fact: str) -> None:
    names = ", ".join(repr(each.registry.name) for each in holders if each.registry)
    warnings.warn(
        f"A session ({names}) of Flask application {holders[0].app.name!r} {fact}. "
        "Give work that outlives a request a context of its own: 'with "
        "app.app_context():'.",
        ResourceWarning,
        stacklevel=3,
        source=holders[0],
    )


def scope_of(context: AppContext) -> dict[str, Any]:
    """Return where a context's holders are, among what else is on its `g`.

    :raises ScopeError: when no more sessions can be made there.
    """
    try:
        scope = vars(context.g)
    except TypeError:
        raise ScopeError(
            f"The sessions of a context live on its 'g', but {type(context.g)!r}, the "
            f"'app_ctx_globals_class' of Flask application {context.app.name!r}, "
            "has no room for them. Take away its '__slots__', or give it a "
            "'__dict__' slot."
        ) from None
    if _LAST_TURN in scope:
        raise ScopeError(
            f"A context of Flask application {context.app.name!r} ends, and each time "
            "its session was closed it was used again: by a listener of that event, "
            "most likely. Let the listener use the connection that it is called with."
        )
    return scope


def release(context: AppContext, *, through_owners: bool) -> None:
    """Close every session of a context, whichever fails, and raise what failed first.

    :param through_owners: whether the context is the current one, which the owners'
        `remove` acts on.
    """
    scope = vars(context.g)
    errors: list[BaseException] = []
    for turn in range(_TURNS + 1):
        last = scope.get(LAST)
        if turn == _TURNS:
            scope[_LAST_TURN] = True
        for holder in [each for each in list(scope.values()) if type(each) is Holder]:
            try:
                holder.end(scope, through_owner=through_owners and not turn)
            except BaseException as error:  # noqa: BLE001, PERF203  # the others' turn comes first
                errors.append(error)
        if scope.get(LAST) is last:  # no listener made another
            break
    scope.pop(_LAST_TURN, None)
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # no cycle with its traceback
