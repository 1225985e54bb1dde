"""Which session another thread is inside, so that none is closed under a statement.

SQLAlchemy refuses to close a session while another thread begins or ends its
transaction. It does not see one that executes a statement, or that reads its rows. What
happens then is the driver's affair: it waits, fails, hangs, or crashes the interpreter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import get_ident
from types import FrameType
from weakref import ref

_shared: dict[int, ref[object]] = {}
"""For each thread the session that it was given last, if another thread made that."""

# Python documents both, in spite of their underscores.
_has_gil: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
_frames: Callable[[], dict[int, FrameType]] = getattr(sys, "_current_frames")  # noqa: B009  # private to pyright


def note_use(session: object) -> None:
    """Note that the current thread is given a session that another one made."""
    if len(_shared) > 1000:  # those of greenlets, which have ever new numbers
        _shared.clear()  # pragma: no cover
    try:
        _shared[get_ident()] = ref(session)
    except TypeError:  # a test's fake may have no room for it
        forget_use()


def forget_use() -> None:
    """Note that the current thread has gone on to a session of its own."""
    _shared.pop(get_ident(), None)


def is_in_use_elsewhere(session: object, maker: int) -> bool:
    """Tell whether another thread was given a session, and is in SQLAlchemy's code.

    :param maker: the thread that made it.
    """
    here = get_ident()
    threads = {thread for thread, given in list(_shared.items()) if given() is session}
    if maker not in _shared:
        threads.add(maker)
    return any(thread != here and _is_in_sqlalchemy(thread) for thread in threads)


def _is_in_sqlalchemy(thread: int) -> bool:
    if not _has_gil():  # the frames of a thread that runs can't be followed
        return False
    frame = _frames().get(thread)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("sqlalchemy."):
            return True
        frame = frame.f_back
    return False
