"""Calls of coroutine functions on an event loop that another thread runs."""

from __future__ import annotations

import asyncio
import queue
import sys
from asyncio import AbstractEventLoop
from contextlib import suppress
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")

# Python has it from 3.12 on.
_eager_task_factory: Any = getattr(asyncio, "eager_task_factory", None)

# An event loop refers to its tasks weakly.
scheduled: set[asyncio.Task[None]] = set()


def call(loop: AbstractEventLoop, function: Callable[[], Awaitable[T]]) -> T:
    """Call a coroutine function on a loop that another thread runs, and wait for it.

    It sees the caller's context variables and the error that the caller handles, and
    the caller what it changes in the variables. To interrupt the wait cancels the call,
    and waits for that to end.

    :raises BaseException: what the call raises.
    """
    tasks: list[asyncio.Task[Context]] = []
    results: list[T] = []
    errors: list[BaseException] = []
    handled = [sys.exc_info()[1]]
    # No event: that is Python code, which an interrupt can leave halfway.
    ended: queue.SimpleQueue[object] = queue.SimpleQueue()

    async def run() -> Context:
        try:
            results.append(await _handling(handled.pop(), function))
        except BaseException as error:  # noqa: BLE001  # the caller's; an exit raised here would end the loop for everyone
            errors.append(error)
        return copy_context()

    def start() -> None:
        # It begins at once where Python can do that, a turn of the loop earlier, and
        # where nobody has set a factory, which is to make each task.
        if _eager_task_factory is not None and loop.get_task_factory() is None:
            tasks.append(_eager_task_factory(loop, run()))
        else:
            tasks.append(loop.create_task(run()))
        tasks[0].add_done_callback(ended.put)

    def cancel() -> None:
        # The interrupt may have come before the call was made, or after it had ended.
        if not tasks or not tasks[0].cancel():
            ended.put(None)

    try:
        loop.call_soon_threadsafe(start)
        ended.get()
    except BaseException:
        loop.call_soon_threadsafe(cancel)
        ended.get()
        raise
    _adopt(tasks[0].result())  # an error, where it was cancelled before it began
    if results:
        return results.pop()
    # Taken out of what its traceback refers to, for no cycle to keep it.
    raise errors.pop()


async def _handling(
    error: BaseException | None, function: Callable[[], Awaitable[T]]
) -> T:
    """Call a coroutine function where an error is handled, if there is one."""
    if error is None:
        return await function()
    traceback = error.__traceback__
    try:
        raise error  # noqa: TRY301  # what the caller handles
    except BaseException:  # noqa: BLE001  # whatever it is
        # Without this frame, which is in nobody's code, nor a cycle with it.
        error.__traceback__ = traceback
        del error
        return await function()


def _adopt(context: Context) -> None:
    """Set the context variables that have another value in a context."""
    unset = object()
    for variable, value in context.items():
        if variable.get(unset) is not value:
            variable.set(value)


def schedule(coroutine: Coroutine[object, object, None]) -> asyncio.Task[None]:
    """Let the loop that runs here run a coroutine to its end. It logs what that raises.

    The coroutine has none of the context variables at hand, which may keep much alive.
    """
    # Not in a turn of its own: where this is the last that the loop has to do, it still
    # begins it.
    task: asyncio.Task[None] = Context().run(asyncio.Task, coroutine)  # ty: ignore[invalid-assignment]  # it does not infer the task's type
    scheduled.add(task)
    task.add_done_callback(scheduled.discard)
    return task


def schedule_on(
    loop: AbstractEventLoop, coroutine: Coroutine[object, object, None], seconds: float
) -> None:
    """Schedule a coroutine on a loop that another thread runs.

    :param seconds: how long to wait for the end at most.
    """
    ended: queue.SimpleQueue[object] = queue.SimpleQueue()

    def start() -> None:
        schedule(coroutine).add_done_callback(ended.put)

    loop.call_soon_threadsafe(start, context=Context())
    with suppress(queue.Empty):
        ended.get(timeout=seconds)
