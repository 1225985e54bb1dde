"""The scope: what one application context holds, and how it is let go.

A context's sessions live on it. No table maps contexts to sessions, so none can outlive
its context or be mistaken for another's. On its ``g``, the place that Flask gives
extensions, each use looks first.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from flask.ctx import AppContext
from sqlalchemy import event

from ._checkin import is_in_checkin, leave_pool
from ._context import ScopeError, find_context
from ._fork import in_unprepared_child, leave_to_parent
from ._holder import SECONDS_TO_WAIT, Holder
from ._threads import InUseError, allow_use

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._registry import ContextRegistry

# On a context, and not on its `g`, which contexts may share: those whose session is to
# be closed, and some that were closed since. Each step with the list is atomic, as
# threads may share the context.
_HOLDERS = "_flask_sqlalchemy_session_holders"

# On a context that ends: how often this has closed what there was. It stays there, as
# a context that has ended may be used, or pushed, again.
_TURN = "_flask_sqlalchemy_session_turn"

# A listener may use the session again each time that one is closed, and so for ever.
_TURNS = 10


def check_place(context: AppContext) -> None:
    """Refuse a context that can hold no more sessions.

    :raises ScopeError: when its `g` has no room, or it has ended and goes on ending.
    """
    if not hasattr(context.g, "__dict__"):
        raise ScopeError(
            f"The sessions of a context are found on its 'g', but {type(context.g)!r}, "
            f"the 'app_ctx_globals_class' of Flask application {context.app.name!r}, "
            "has no room for them. Take away its '__slots__', or give it a "
            "'__dict__' slot. [g-slots]"
        )
    if getattr(context, _TURN, None) == _TURNS:
        raise ScopeError(
            f"A context of Flask application {context.app.name!r} ends, and each time "
            "its session was closed it was used again: by a listener of that event, "
            "most likely. Let the listener use the connection that it is called with. "
            "[used-while-closed]"
        )


def hold(context: AppContext, registry: ContextRegistry[Any], session: Any) -> Holder:
    """Hold a session until its context ends."""
    allow_use(session)  # a factory may return one that was closed, again
    holders: list[Holder] = vars(context).setdefault(_HOLDERS, [])
    _forget_closed(holders)
    turn: int | None = getattr(context, _TURN, None)
    if turn == _TURNS - 1 and is_in_checkin():
        event.listen(registry.sync_session(session), "after_begin", leave_pool)
    holder = Holder(registry, session, context.app, is_late=turn is not None)
    holders.append(holder)
    return holder


def held(context: AppContext, registry: ContextRegistry[Any]) -> Holder | None:
    """Return what holds a registry's session in a context, if it was made.

    Of threads that share the context, and all make one, it is the same for all.
    """
    holders: Sequence[Holder] = getattr(context, _HOLDERS, ())
    for holder in [*holders]:  # others may be forgotten meanwhile
        if holder.registry is registry:
            return holder
    return None


def release(context: AppContext) -> None:
    """Close every session of a context, whichever fails, and raise what failed first.

    It waits one time for all that other threads are inside of.
    """
    holders: list[Holder] | None = getattr(context, _HOLDERS, None)
    if not holders:
        return
    if in_unprepared_child():  # where a finaliser may end a context
        leave_to_parent(holders)
        return
    deadline = time.monotonic() + SECONDS_TO_WAIT
    first: list[BaseException] = []
    turn = 0
    while holders and turn <= _TURNS:
        setattr(context, _TURN, turn)
        for holder in holders.copy():
            registry = holder.registry  # which another thread may take away
            try:
                if not turn and registry is not None:
                    registry.release(holder, context)
                elif holder.close_until(deadline, seconds=_seconds_in(context)):
                    _forget(holder, holders)
            except InUseError:  # the next turn waits for it
                pass
            except BaseException as error:  # noqa: BLE001  # the others' turn comes first
                first = first or [error]
        _forget_closed(holders)
        turn += 1
    setattr(context, _TURN, 0)
    if first:
        raise first.pop()  # no cycle with its traceback


def _seconds_in(context: AppContext) -> float | None:
    """Return how long to wait for an event loop, if not for as long as it takes.

    A finaliser may end a context that is not the current one, at any point of any
    thread, also of one that holds what others need to go on.
    """
    return None if context is find_context() else SECONDS_TO_WAIT


def _forget(holder: Holder, holders: list[Holder]) -> None:
    """Leave a session to others, or to nobody if it is closed."""
    try:  # noqa: SIM105  # each context comes here, and `suppress` takes longer
        holders.remove(holder)
    except ValueError:  # another thread was faster
        pass


def _forget_closed(holders: list[Holder]) -> None:
    for holder in holders.copy():
        if holder.closer is None:
            _forget(holder, holders)
