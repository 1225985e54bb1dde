"""Calls of coroutine functions on an event loop that another thread runs."""

from __future__ import annotations

import asyncio
import threading
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")

# An event loop refers to its tasks weakly.
scheduled: set[asyncio.Task[None]] = set()


class RunningLoop(NamedTuple):
    """An event loop and the thread that runs it."""

    loop: asyncio.AbstractEventLoop
    # None stands for a thread other than the one that asks. Under gevent a thread is
    # a greenlet, and asyncio, which asks the operating system's thread which loop
    # it runs, would take every greenlet for the loop's.
    thread: int | None

    def has_ended(self) -> bool:
        """Tell whether nothing runs on this loop any more."""
        return not self.loop.is_running()

    def is_here(self) -> bool:
        """Tell whether the calling thread is the one that runs the loop."""
        return self.thread == threading.get_ident()

    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Call a coroutine function, and wait for it.

        It sees the caller's context variables, and the caller what it changes in
        them. To interrupt the wait cancels the call, and waits for that to end.

        :raises BaseException: what the call raises.
        """
        return _Call(self.loop, function).wait()

    def schedule(self, coroutine: Coroutine[object, object, None]) -> None:
        """Let the loop run a coroutine, from any thread, without waiting for it.

        Errors go to the loop's exception handler, which logs them.
        """

        async def run() -> None:
            try:
                await coroutine
            except BaseException as error:  # noqa: BLE001  # nobody waits for it
                self.loop.call_exception_handler(
                    {"message": "A session could not be closed", "exception": error}
                )

        def start() -> None:
            task = self.loop.create_task(run())
            scheduled.add(task)
            task.add_done_callback(scheduled.discard)

        # None of the caller's context variables, which may keep much alive.
        context = Context()
        if self.is_here():
            # Where this is the last that the loop has to do, it still begins it.
            context.run(start)
        else:
            self.loop.call_soon_threadsafe(start, context=context)


class _Call(Generic[T]):
    """A call of a coroutine function that another thread waits for."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, function: Callable[[], Awaitable[T]]
    ) -> None:
        self.loop = loop
        self.function = function
        self.results: list[T] = []
        self.errors: list[BaseException] = []
        self.changed = Context()
        self.task: asyncio.Task[None] | None = None
        self.ended = False
        # A bare lock, which an interrupt leaves whole: an event consists of Python
        # code that it can interrupt anywhere.
        self.waiting = threading.Lock()
        self.waiting.acquire()

    def wait(self) -> T:
        try:
            self.loop.call_soon_threadsafe(self._start, context=copy_context())
            self.waiting.acquire()
        except BaseException:
            self.loop.call_soon_threadsafe(self._cancel)
            if not self.ended:
                self.waiting.acquire()
            raise
        _adopt(self.changed)
        if self.errors:
            # Taken out of what its traceback refers to, for no cycle to keep it.
            raise self.errors.pop()
        return self.results.pop()

    def _start(self) -> None:
        self.task = self.loop.create_task(self._run())
        self.task.add_done_callback(self._end)

    async def _run(self) -> None:
        try:
            self.results.append(await self.function())
        except BaseException as error:  # noqa: BLE001  # the caller's; an exit raised here would end the loop for everyone
            self.errors.append(error)
        self.changed = copy_context()

    def _end(self, task: asyncio.Task[None] | None) -> None:
        if task is not None and task.cancelled():  # before it began
            self.errors.append(asyncio.CancelledError())
        self.ended = True
        self.waiting.release()

    def _cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()
        else:  # the interrupt came before the call was made
            self._end(None)


def _adopt(context: Context) -> None:
    """Set the context variables that have another value in a context."""
    unset = object()
    for variable, value in context.items():
        if variable.get(unset) is not value:
            variable.set(value)
