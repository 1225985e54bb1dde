"""What holds one session: for whom it is found, and how it is closed once."""

from __future__ import annotations

from threading import Thread, current_thread, get_ident
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import IllegalStateChangeError
from sqlalchemy.orm import Session

from ._threads import InUseError, allow_use, end_use

if TYPE_CHECKING:
    from ._registry import ContextRegistry


_closing: dict[Holder, int] = {}
"""The thread that closes what a holder has, until that is done."""


class Holder:
    """Holds one session for one context, until it is closed."""

    __slots__ = ("closer", "registry", "session", "thread", "threads")

    registry: ContextRegistry[Any] | None
    """Whose uses find the session: None once they are to make another one."""

    closer: ContextRegistry[Any] | None
    """What closes the session: None once it is closed, or another's to close."""

    thread: int | None
    """The one that made the session, by the number that each use is compared with."""

    threads: list[Thread]
    """Those that were given the session, first the one that made it."""

    def __init__(self, registry: ContextRegistry[Any], session: Any) -> None:
        thread = current_thread()
        self.session = session
        self.thread = thread.ident
        self.threads = [thread]
        self.registry = self.closer = registry

    def share(self) -> None:
        """Note that a thread is given a session that another made."""
        if current_thread() not in self.threads:
            self.threads.append(current_thread())  # atomic, as others may do the same

    def close(self, *, seconds: float | None = None) -> None:
        """Close the session, if that is still to be done.

        :param seconds: how long to wait for an event loop that closes it.
        :raises InUseError: while another thread is inside the session, or closes it. It
            stays as it was.
        :raises BaseException: what closing raised. Every connection was given back.
        """
        thread = get_ident()
        try:
            # Atomic, and known to be this thread's wherever an interrupt comes.
            if _closing.setdefault(self, thread) != thread:
                raise InUseError(
                    "Another thread closes this session already. It is closed once "
                    "that thread is done. [closing]"
                )
            # Else another thread was faster.
            if self.closer is not None:  # pragma: no branch
                self._close(self.closer, seconds)
        finally:
            if _closing.get(self) == thread:
                del _closing[self]

    def _close(self, closer: ContextRegistry[Any], seconds: float | None) -> None:
        session = self.session
        # A listener that uses the session meanwhile is given another one, and so is a
        # thread that is not noted yet.
        registry, self.registry = self.registry, None
        is_shared = len(self.threads) > 1 or self.thread != get_ident()
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
