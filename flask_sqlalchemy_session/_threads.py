"""Whether another thread is inside a session, so that none is closed under a statement.

SQLAlchemy refuses to close a session while another thread begins or ends its
transaction. It does not see one that executes a statement, or that reads its rows. What
happens then is the driver's affair: it waits, fails, hangs, or crashes the interpreter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from threading import Thread, current_thread, get_ident, local
from types import FrameType
from typing import Any
from weakref import ref

from sqlalchemy import Engine
from sqlalchemy.exc import IllegalStateChangeError, InvalidRequestError
from sqlalchemy.orm import Session

# Python documents both, in spite of their underscores.
_has_gil: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
_frames: Callable[[], dict[int, FrameType]] = getattr(sys, "_current_frames")  # noqa: B009  # private to pyright


class _Here(local):
    """What each thread is told by: not by its number, which the next may have again."""

    # Not set in `__init__`, which the collector may come before, or an interrupt into.
    thread: Thread | None = None


here = _Here()


def this_thread() -> Thread:
    """Return the thread that runs, by which `here` knows it from now on."""
    thread = here.thread
    if thread is None:
        here.thread = thread = current_thread()
    return thread


class InUseError(IllegalStateChangeError):
    """A session is not closed, as another thread is inside it or closes it."""


class _Refusal:
    """Stands for the `get_bind` of a session, which each statement asks for."""

    def __init__(self, session: Session, is_late: Callable[[], bool]) -> None:
        self.session = ref(session)  # which has this, and is no cycle
        self.is_late = is_late

    def __call__(self, *args: Any, **kwargs: Any) -> object:
        if self.is_late():
            raise InvalidRequestError(
                "This session was closed, after another thread or task had been given "
                "it: its context has ended, or session.remove() was called. Give work "
                "that outlives a request a context of its own: 'with "
                "app.app_context():'. [closed-session]"
            )
        # A test's own session, which its factory returns each time.
        session = self.session()
        assert session is not None  # it asks
        return type(session).get_bind(session, *args, **kwargs)


def refuse_use(session: Session, is_late: Callable[[], bool]) -> None:
    """Let a session refuse the statements of who is late, until :func:`allow_use`."""
    vars(session).setdefault("get_bind", _Refusal(session, is_late))


def end_use(session: Session, threads: Collection[Thread]) -> None:
    """Let a session refuse other threads' statements, once none is inside it.

    :param threads: those that were given the session.
    :raises InUseError: while one is inside it. It may refuse statements all the same,
        until :func:`allow_use`.
    """
    # Another thread may have the number of one that has ended.
    running = {thread.ident for thread in threads if _is_running(thread)}
    _check(session, running)
    # It is asked for before there is a connection. A thread that asked earlier is found
    # by the second check.
    late = running - {get_ident()}
    refuse_use(session, lambda: get_ident() in late)
    _check(session, running)


def allow_use(session: object) -> None:
    """Let a session execute statements, also if it was about to be closed."""
    # A test's fake may have none.
    if isinstance(getattr(session, "get_bind", None), _Refusal):
        delattr(session, "get_bind")


def _is_running(thread: Thread) -> bool:
    try:
        return thread.is_alive()
    except RuntimeError:  # so Python tells it of one that it did not start
        return False


def _check(session: Session, given: Collection[int | None]) -> None:
    if not _has_gil():  # the frames of a thread that runs can't be followed
        return
    # Not this thread, whose number is another one under gevent: a frame that refers to
    # itself keeps what it knows until the collector comes.
    frames = {
        thread: frame
        for thread, frame in _frames().items()
        if frame.f_code is not _check.__code__
    }
    for thread, frame in frames.items():
        if _is_inside(session, frame, thread in given):
            raise InUseError(
                "Another thread executes a statement on this session, which can't be "
                "closed meanwhile. Wait for that thread, or give it a context of its "
                "own: 'with app.app_context():'. [in-use]"
            )


def _is_inside(session: Session, frame: FrameType | None, was_given: bool) -> bool:
    """Tell whether a thread is in SQLAlchemy's code on behalf of a session.

    Rows are read, and a connection is used, without the session that they are from. So
    a thread that was given the session counts, unless the work is another session's,
    or an engine's that connects.
    """
    inside = others = False
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith("sqlalchemy."):
            inside = True
            for value in list(frame.f_locals.values()):
                if value is session:
                    return True
                # Not `isinstance`, which asks a proxy for its session.
                others = others or issubclass(type(value), (Session, Engine))
        frame = frame.f_back
    return inside and was_given and not others
