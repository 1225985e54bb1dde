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
from typing import TYPE_CHECKING, Any
from weakref import ref

from flask import Flask
from flask.ctx import AppContext
from sqlalchemy import event

from ._checkin import is_in_checkin, leave_pool
from ._context import ScopeError, find_context
from ._fork import forget, in_unprepared_child, live, never_finalise
from ._holder import Holder
from ._threads import InUseError, allow_use

if TYPE_CHECKING:
    from ._registry import ContextRegistry

SECONDS_TO_WAIT = 1.0
"""How long the end of a context waits for threads that are inside its sessions."""

SECONDS_BETWEEN_ATTEMPTS = 0.01

# A listener may use the session again each time that one is closed, and so for ever.
_TURNS = 10

# Why a session was not closed by a teardown.
_ABANDONED = (
    "was closed by the safety net, not by a teardown: the context was never popped, "
    "its 'g' was cleared, or the session was first used after the teardown, by a "
    "thread that inherited the context"
)
_LATE = (
    "was closed by the safety net, not by a teardown: it was made after the context's "
    "teardown, by a thread that inherited the context or in a context that was pushed "
    "again and not popped"
)
_BUSY = (
    f"was in use by another thread {SECONDS_TO_WAIT:g} s after its context had ended, "
    "and is closed when that thread lets go of it"
)

# On `g`, where no name of a session makes a key that begins like this one.
SCOPE = "_flask_sqlalchemy_sessions_scope"


class Scope:
    """Knows the sessions of one context, until they are closed.

    It is on the context's `g`, beside the last holder of each registry.
    """

    __slots__ = ("__weakref__", "app", "holders", "reason", "turn")

    holders: list[Holder]
    """Those whose session is to be closed, and some that were closed since.

    Each step with it is atomic, as threads may share the context.
    """

    reason: str
    """Why a teardown did not close what is still to be closed."""

    turn: int
    """How often the end has closed what there was. After the last no more are made."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.reason = _ABANDONED
        self.holders = []
        self.turn = 0
        live.add(ref(self, forget))

    def hold(self, registry: ContextRegistry[Any], session: Any) -> Holder:
        """Hold a session, which no use of the context finds yet."""
        allow_use(session)  # a factory may return one that was closed, again
        if self.holders:
            self.forget_closed()
        if self.turn == _TURNS - 1 and is_in_checkin():
            event.listen(registry.sync_session(session), "after_begin", leave_pool)
        holder = Holder(registry, session)
        self.holders.append(holder)
        return holder

    def forget(self, holder: Holder) -> None:
        """Leave a session to others, or to nobody if it is closed."""
        try:  # noqa: SIM105  # each context comes here, and `suppress` takes longer
            self.holders.remove(holder)
        except ValueError:  # another thread was faster
            pass

    def forget_closed(self) -> None:
        for holder in self.holders.copy():
            if holder.closer is None:
                self.forget(holder)

    def unclosed(self) -> list[Holder]:
        """Return what is still to be closed."""
        return [each for each in self.holders.copy() if each.closer is not None]

    def end(self, *, through_owners: bool) -> list[BaseException]:
        """Close every session, and return what that raised.

        :param through_owners: whether their `remove` acts on this scope.
        """
        if in_unprepared_child():  # where a finaliser may end a context
            never_finalise(self.leave_to_parent())
            return []
        # A finaliser may end another context, at any point of any thread, also of one
        # that holds what others need to go on.
        seconds = None if through_owners else SECONDS_TO_WAIT
        deadline = time.monotonic() + SECONDS_TO_WAIT
        self.reason = _LATE  # of what is still to come
        errors: list[BaseException] = []
        for self.turn in range(_TURNS + 1):
            if not self.holders:
                break
            for holder in self.holders.copy():
                try:
                    if through_owners and not self.turn and holder.registry is not None:
                        holder.registry.release(holder.session)
                    else:
                        self.close(holder, deadline, seconds=seconds)
                except BaseException as error:  # noqa: BLE001, PERF203  # the others' turn comes first
                    # What another thread is inside of, the next turn waits for.
                    if not isinstance(error, InUseError):
                        errors.append(error)
            self.forget_closed()
        self.turn = 0
        return errors

    def close(
        self, holder: Holder, deadline: float, *, seconds: float | None = None
    ) -> None:
        """Close a session once no other thread is inside it.

        After the deadline it is left to a thread of its own to wait for that.
        """
        holder.registry = None
        while holder.closer is not None:
            try:
                holder.close(seconds=seconds)
            except InUseError:  # noqa: PERF203  # it waits all the same
                if time.monotonic() >= deadline:
                    self.leave_to_thread(holder)
                    return
                time.sleep(SECONDS_BETWEEN_ATTEMPTS)

    def leave_to_thread(self, holder: Holder) -> None:
        """Leave it to a thread of its own to wait until the session can be closed."""
        busy = Scope(self.app)
        busy.reason = _BUSY
        try:
            start_new_thread(busy.close_at_last, (holder,))
        except RuntimeError:  # no more threads: it is the safety net's
            self.reason = _BUSY
        else:
            self.forget(holder)

    def close_at_last(self, holder: Holder) -> None:  # pragma: no cover  # not traced
        self.holders.append(holder)
        try:
            self.warn()
        finally:
            self.close(holder, math.inf)

    def leave_to_parent(self) -> list[object]:
        """Return the sessions, which a forked child inherits and must not close."""
        inherited = self.unclosed()
        for holder in inherited:
            holder.registry = holder.closer = None
        return [holder.session for holder in inherited]

    def __del__(self) -> None:
        """Close what every teardown missed, with a :exc:`ResourceWarning`."""
        try:
            holders = self.holders and self.unclosed()
        except AttributeError:  # an interrupt came before
            return
        if not holders:
            return
        if in_unprepared_child():
            never_finalise(self.leave_to_parent())
            return
        with ExitStack() as stack:
            for holder in reversed(holders):
                stack.callback(self.close, holder, 0, seconds=0)
            self.warn()

    def warn(self) -> None:
        holders = self.unclosed()
        if not holders:
            return  # pragma: no cover  # another thread was faster
        names = ", ".join(repr(each.closer.name) for each in holders if each.closer)
        warnings.warn(
            f"A session ({names}) of Flask application {self.app.name!r} "
            f"{self.reason}. Give work that outlives a request a context of its own: "
            "'with app.app_context():'. [late-session]",
            ResourceWarning,
            stacklevel=3,
            source=holders[0],
        )


def scope_of(context: AppContext) -> Scope:
    """Return a context's scope, made if this is its first use.

    :raises ScopeError: when no more sessions can be made there.
    """
    try:
        attributes = context.g.__dict__
    except AttributeError:
        raise ScopeError(
            f"The sessions of a context live on its 'g', but {type(context.g)!r}, the "
            f"'app_ctx_globals_class' of Flask application {context.app.name!r}, "
            "has no room for them. Take away its '__slots__', or give it a "
            "'__dict__' slot. [g-slots]"
        ) from None
    scope: Scope = attributes.get(SCOPE) or attributes.setdefault(
        SCOPE, Scope(context.app)
    )
    if scope.turn == _TURNS:
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
    scope: Scope | None = getattr(context.g, "__dict__", {}).get(SCOPE)
    # What the owners' `remove` acts on is the current context.
    errors = scope.end(through_owners=context is find_context()) if scope else None
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # no cycle with its traceback
