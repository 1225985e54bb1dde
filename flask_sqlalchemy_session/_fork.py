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
    from ._scope import Scope

live: set[ref[Scope]] = set()
"""The scopes of this process, until each is dropped."""

forget = live.discard


def living() -> list[Scope]:
    """Return the scopes that there are. A list: one may be dropped meanwhile."""
    return [scope for each in list(live) if (scope := each()) is not None]


_held: dict[int, list[Scope]] = {}
_never_finalised: list[object] = []
_pid = os.getpid()


def in_unprepared_child() -> bool:
    """Tell whether this is a forked child in which `_leave_to_parent` did not run yet.

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


def _hold() -> None:
    """Keep the scopes from a collection in the child before its turn has come."""
    _held[get_ident()] = living()


def _drop() -> None:
    _held.pop(get_ident(), None)


def _leave_to_parent() -> None:
    global _pid  # noqa: PLW0603  # what it tells is the process's
    inherited = [each for scope in living() for each in scope.leave_to_parent()]
    _held.clear()
    _pid = os.getpid()
    if inherited:
        never_finalise(inherited)


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(
        before=_hold, after_in_parent=_drop, after_in_child=_leave_to_parent
    )
