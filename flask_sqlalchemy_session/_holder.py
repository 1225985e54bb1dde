"""What holds one session: for whom it is found, and how it is closed, once.

Where no teardown comes, the holder is the safety net: it closes the session when Python
drops it, which is with its context.
"""

from __future__ import annotations

import math
import time
import warnings
from _thread import start_new_thread
from threading import Thread, get_ident
from typing import TYPE_CHECKING, Any
from weakref import ref

from flask import Flask
from sqlalchemy.exc import IllegalStateChangeError
from sqlalchemy.orm import Session

from ._fork import forget, in_unprepared_child, leave_to_parent, live
from ._threads import InUseError, allow_use, end_use, this_thread

if TYPE_CHECKING:
    from ._registry import ContextRegistry

SECONDS_TO_WAIT = 1.0
"""How long the end of a context waits for threads that are inside its sessions."""

SECONDS_BETWEEN_ATTEMPTS = 0.01

# Why a session was not closed by a teardown.
_ABANDONED = (
    "was closed by the safety net, not by a teardown: the context was never popped, "
    "or the session was first used after the teardown, by a thread that inherited the "
    "context"
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

_closing: dict[Holder, int] = {}
"""The thread that closes what a holder has, until that is done."""


class Holder:
    """Holds one session for one context, until it is closed."""

    __slots__ = (
        "__weakref__",
        "app",
        "closer",
        "reason",
        "registry",
        "session",
        "thread",
        "threads",
    )

    registry: ContextRegistry[Any] | None
    """Whose uses find the session: None once they are to make another one."""

    closer: ContextRegistry[Any] | None
    """What closes the session: None once it is closed, or another's to close."""

    thread: Thread
    """The one that made the session, which each use is compared with."""

    threads: list[Thread]
    """Those that were given the session, first the one that made it."""

    reason: str
    """Why a teardown did not close the session, if none does."""

    def __init__(
        self, registry: ContextRegistry[Any], session: Any, app: Flask, *, is_late: bool
    ) -> None:
        self.session = session
        self.app = app
        self.reason = _LATE if is_late else _ABANDONED
        self.thread = thread = this_thread()
        self.threads = [thread]
        self.registry = self.closer = registry
        live.add(ref(self, forget))

    def share(self) -> None:
        """Note that a thread is given a session that another made."""
        thread = this_thread()
        if thread not in self.threads:
            self.threads.append(thread)  # atomic, as others may do the same

    def close(self, *, seconds: float | None = None) -> None:
        """Close the session, if that is still to be done.

        :param seconds: how long to wait for an event loop that closes it.
        :raises InUseError: while another thread is inside the session, or closes it. It
            stays as it was.
        :raises BaseException: what closing raised. Every connection was given back.
        """
        thread = get_ident()
        try:
            try:
                # Atomic, and known to be this thread's wherever an interrupt comes.
                if _closing.setdefault(self, thread) != thread:
                    raise InUseError(
                        "Another thread closes this session already. It is closed once "
                        "that thread is done. [closing]"
                    )
                closer = self.closer
                if closer is not None:  # pragma: no branch  # another was faster
                    self._close(closer, seconds)
            finally:
                self._end_claim(thread)
        except BaseException:  # an interrupt may have come before the claim was ended
            self._end_claim(thread)
            raise

    def _end_claim(self, thread: int) -> None:
        if _closing.get(self) == thread:
            del _closing[self]

    def _close(self, closer: ContextRegistry[Any], seconds: float | None) -> None:
        session = self.session
        # A listener that uses the session meanwhile is given another one, and so is a
        # thread that is not noted yet.
        registry, self.registry = self.registry, None
        # The collector may come in a thread that has nothing of its own any more. Where
        # it has the number of one that ended, nobody else was given the session.
        is_shared = len(self.threads) > 1 or self.thread.ident != get_ident()
        try:
            # An async session is a task's, and a test's fake nobody's.
            if is_shared and isinstance(session, Session):
                end_use(session, self.threads)
            closer.close_session(session, seconds=seconds)
        except IllegalStateChangeError as error:
            allow_use(session)
            self.registry = registry
            raise InUseError(*error.args) from error
        except BaseException:
            # An interrupt may have come before anything was closed.
            if not closer.is_open(session):  # pragma: no branch  # nor traced then
                self.closer = None
            raise
        self.closer = None

    def close_until(self, deadline: float, *, seconds: float | None = None) -> bool:
        """Close the session once no other thread is inside it.

        :return: whether it was left to a thread of its own to wait for that, after the
            deadline.
        """
        self.registry = None
        while self.closer is not None:
            try:
                self.close(seconds=seconds)
            except InUseError:  # noqa: PERF203  # it waits all the same
                if time.monotonic() >= deadline:
                    return self._leave_to_thread()
                time.sleep(SECONDS_BETWEEN_ATTEMPTS)
        return False

    def _leave_to_thread(self) -> bool:
        self.reason = _BUSY
        live.add(ref(self, forget))  # again, as Python may have been about to drop it
        try:
            start_new_thread(self._close_at_last, ())
        except RuntimeError:  # no more threads: it is the safety net's
            return False
        return True

    def _close_at_last(self) -> None:  # pragma: no cover  # not traced
        try:
            self._warn()
        finally:
            self.close_until(math.inf)

    def __del__(self) -> None:
        """Close what every teardown missed, with a :exc:`ResourceWarning`."""
        # Python tells nobody of an interrupt here, who could try again.
        try: self._close_abandoned()  # fmt: skip  # noqa: E701
        except BaseException:
            self._close_abandoned()
            raise

    def _close_abandoned(self) -> None:
        # An interrupt may have come before there was anything to close.
        if getattr(self, "closer", None) is None:
            return
        if in_unprepared_child():
            leave_to_parent([self])
            return
        try:
            self._warn()
        finally:
            self.close_until(0, seconds=0)

    def _warn(self) -> None:
        closer = self.closer
        if closer is None:
            return  # pragma: no cover  # another thread was faster
        warnings.warn(
            f"A session ({closer.name!r}) of Flask application {self.app.name!r} "
            f"{self.reason}. Give work that outlives a request a context of its own: "
            "'with app.app_context():'. [late-session]",
            ResourceWarning,
            stacklevel=3,
            source=self,
        )
