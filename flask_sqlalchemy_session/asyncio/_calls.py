"""Calls of coroutine functions on an event loop that another thread runs."""

from __future__ import annotations

import asyncio
import queue
import sys
from contextlib import suppress
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")

# An event loop refers to its tasks weakly.
scheduled: set[asyncio.Task[None]] = set()


def call(loop: asyncio.AbstractEventLoop, function: Callable[[], Awaitable[T]]) -> T:
    """Call a coroutine function on a loop that another thread runs, and wait for it.

    It sees the caller's context variables and the error that the caller handles, and
    the caller what it changes in the variables. To interrupt the wait cancels the call,
    and waits for that to end.

    :raises BaseException: what the call raises.
    """
    tasks: list[asyncio.Task[None]] = []
    results: list[T] = []
    # What becomes of a call that is cancelled before it begins.
    errors: list[BaseException] = [asyncio.CancelledError()]
    changed: list[Context] = []
    handled = [error for error in sys.exc_info()[1:2] if error is not None]
    # No event: that is Python code, which an interrupt can leave halfway.
    ended: queue.SimpleQueue[object] = queue.SimpleQueue()

    async def run() -> None:
        try:
            results.append(await _handling(handled, function))
        except BaseException as error:  # noqa: BLE001  # the caller's; an exit raised here would end the loop for everyone
            errors[:] = [error]
        changed.append(copy_context())

    def start() -> None:
        tasks.append(loop.create_task(run()))
        tasks[0].add_done_callback(ended.put)

    def cancel() -> None:
        # The interrupt may have come before the call was made, or after it had ended.
        if not tasks or not tasks[0].cancel():
            ended.put(None)

    try:
        loop.call_soon_threadsafe(start, context=copy_context())
        ended.get()
    except BaseException:
        loop.call_soon_threadsafe(cancel)
        ended.get()
        raise
    for context in changed:
        _adopt(context)
    if results:
        return results.pop()
    # Taken out of what its traceback refers to, for no cycle to keep it.
    raise errors.pop()


async def _handling(
    errors: list[BaseException], function: Callable[[], Awaitable[T]]
) -> T:
    """Call a coroutine function where an error is handled, if there is one."""
    if not errors:
        return await function()
    try:
        raise errors.pop()  # noqa: TRY301  # what the caller handles
    except BaseException as error:  # noqa: BLE001  # whatever it is
        # Without this frame, which is in nobody's code.
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        return await function()


def _adopt(context: Context) -> None:
    """Set the context variables that have another value in a context."""
    unset = object()
    for variable, value in context.items():
        if variable.get(unset) is not value:
            variable.set(value)


def schedule(
    loop: asyncio.AbstractEventLoop,
    coroutine: Coroutine[object, object, None],
    *,
    here: bool,
    seconds: float,
) -> None:
    """Let a loop run a coroutine to its end. It logs what that raises.

    :param here: whether the calling thread runs the loop, and so can't wait.
    :param seconds: how long to wait for the end at most.
    """
    ended: queue.SimpleQueue[object] = queue.SimpleQueue()

    def start() -> None:
        task = loop.create_task(coroutine)
        scheduled.add(task)
        task.add_done_callback(scheduled.discard)
        task.add_done_callback(ended.put)

    # None of the caller's context variables, which may keep much alive.
    context = Context()
    if here:
        # Where this is the last that the loop has to do, it still begins it.
        context.run(start)
    else:
        loop.call_soon_threadsafe(start, context=context)
        if seconds:
            with suppress(queue.Empty):
                ended.get(timeout=seconds)
