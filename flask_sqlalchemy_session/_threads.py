"""Which session another thread is inside, so that none is closed under a statement.

SQLAlchemy refuses to close a session while another thread begins or ends its
transaction. It does not see one that executes a statement, or that reads its rows. What
happens then is the driver's affair: it waits, fails, hangs, or crashes the interpreter.
"""

from __future__ import annotations

import sys
from threading import get_ident
from types import FrameType
from weakref import ref

_given: dict[int, ref[object]] = {}
"""The session that each thread was given last, as far as it was noted."""

_has_gil = getattr(sys, "_is_gil_enabled", lambda: True)


def note_use(session: object, thread: int) -> None:
    """Note that a thread, the current one, is given a session."""
    try:
        _given[thread] = ref(session)
    except TypeError:  # a test's fake may have no room for it
        _given.pop(thread, None)


def forget_use(session: object, thread: int) -> None:
    """Forget that a thread, the current one, was given a session, which is closed."""
    given = _given.get(thread)
    if given is not None and given() is session:
        _given.pop(thread, None)


def is_in_use_elsewhere(session: object) -> bool:
    """Tell whether another thread was given a session, and is in SQLAlchemy's code."""
    here = get_ident()
    return any(
        given() is session and thread != here and _is_in_sqlalchemy(thread)
        for thread, given in list(_given.items())
    )


def _is_in_sqlalchemy(thread: int) -> bool:
    if not _has_gil():  # the frames of a thread that runs can't be followed
        return False
    # Documented, as the name above is, in spite of the underscore.
    frame: FrameType | None = sys._current_frames().get(thread)  # noqa: SLF001
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("sqlalchemy."):
            return True
        frame = frame.f_back
    return False
