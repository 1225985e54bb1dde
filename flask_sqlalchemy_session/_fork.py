"""What a forked child does with the sessions of its parent: nothing, ever.

To close a session that was open before the fork, or to finalise its connection, would
end the parent's transaction on the socket or file that both share.
"""

from __future__ import annotations

import gc
import os
from threading import get_ident
from typing import TYPE_CHECKING
from weakref import ref

if TYPE_CHECKING:
    from ._holder import Holder

live: set[ref[Holder]] = set()
"""The holders of this process, until each is dropped."""

forget = live.discard


def living() -> list[Holder]:
    """Return the holders that there are. A list: one may be dropped meanwhile."""
    return [holder for each in list(live) if (holder := each()) is not None]


_held: dict[int, list[Holder]] = {}
_never_finalised: list[object] = []
_pid = os.getpid()


def in_unprepared_child() -> bool:
    """Tell whether this is a forked child in which `_leave_all` did not run yet.

    Another hook, or the collector, can drop what the child inherits before.
    """
    return os.getpid() != _pid


def never_finalise(objects: list[object]) -> None:
    """Keep objects, and what they refer to, from every finaliser."""
    _never_finalised.append(objects)
    # A cycle that is frozen is not even finalised when the process exits.
    objects.append(objects)
    if hasattr(gc, "freeze"):  # PyPy has none, and finalises nothing at its exit
        gc.freeze()


def leave_to_parent(holders: list[Holder]) -> None:
    """Keep the sessions that a forked child inherits from every finaliser."""
    inherited = [holder for holder in holders if holder.closer is not None]
    for holder in inherited:
        holder.registry = holder.closer = None
    if inherited:
        never_finalise([holder.session for holder in inherited])


def _hold() -> None:
    """Keep the holders from a collection in the child before its turn has come."""
    _held[get_ident()] = living()


def _drop() -> None:
    _held.pop(get_ident(), None)


def _leave_all() -> None:
    global _pid  # noqa: PLW0603  # what it tells is the process's
    leave_to_parent(living())
    _held.clear()
    _pid = os.getpid()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(before=_hold, after_in_parent=_drop, after_in_child=_leave_all)
