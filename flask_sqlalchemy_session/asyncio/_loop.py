"""The event loop that async views share, and the line that turns it on."""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
from asyncio import AbstractEventLoop
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

from flask import Flask
from flask.ctx import AppContext

from flask_sqlalchemy_session._context import ScopeError, find_context, unproxied
from flask_sqlalchemy_session._ending import has_ended, watch
from flask_sqlalchemy_session._fork import never_finalise

from ._calls import call, scheduled
from ._engines import leave_connections_to_parent

P = ParamSpec("P")
T = TypeVar("T")

# How long the process waits, when it ends, for what still runs.
_SECONDS_TO_END = 5.0


class EventLoopThread:
    """One event loop in a thread of its own, from first use to the process's end.

    A database connection belongs to the loop that made it, so the loop has to live
    as long as the connection pools do.
    """

    loop: AbstractEventLoop | None = None
    thread: threading.Thread | None = None
    _ended = False

    def started(self) -> AbstractEventLoop | None:
        """Return the loop, started if this is its first use, until the process ends."""
        if self._ended:
            return None
        if self.loop is None:
            # It keeps the context variables that it was made with.
            loop = Context().run(asyncio.new_event_loop)
            thread = threading.Thread(
                target=self._run, args=(loop,), name=__name__, daemon=True
            )
            Context().run(thread.start)
            # Atomic, and no lock: where gevent has patched `threading` since one was
            # made, who waited for it would stop the greenlet that has it, too.
            vars(self).setdefault("loop", loop)
        return self.loop

    def is_here(self) -> bool:
        """Tell whether the calling thread is the one that runs the loop."""
        return self.thread is not None and self.thread.ident == threading.get_ident()

    def stop(self) -> None:
        """Cancel what runs, and end the loop."""
        self._ended = True
        if self.loop is not None and self.thread is not None:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(_SECONDS_TO_END)

    def _run(self, loop: AbstractEventLoop) -> None:
        # Else another thread was faster.
        if vars(self).setdefault("loop", loop) is loop:
            self.thread = threading.current_thread()
            while not self._ended:
                try:
                    loop.run_forever()
                except BaseException as error:  # noqa: BLE001, PERF203  # an exit that a task raised is not every view's
                    loop.call_exception_handler(
                        {"message": "A task raised an exit", "exception": error}
                    )
            loop.run_until_complete(_end(loop))
        loop.close()


at_end: list[Callable[[], None]] = []
"""What is called on the loop when the process ends, to schedule what is left to do."""


async def _end(loop: AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()} - scheduled
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for function in at_end:
        function()
    await asyncio.gather(*scheduled, return_exceptions=True)
    await loop.shutdown_asyncgens()


_shared = EventLoopThread()


def _start_anew() -> None:
    """Leave the loop, and the connections that belong to it, to the parent process."""
    global _shared  # the process is the scope that it is shared in
    inherited, _shared = _shared, EventLoopThread()
    never_finalise([inherited, *scheduled])
    scheduled.clear()
    leave_connections_to_parent()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_start_anew)


atexit.register(lambda: _shared.stop())  # noqa: PLW0108  # the one that there is then


def _server_loop() -> AbstractEventLoop | None:
    """Return the loop of the server that called this thread through asgiref."""
    # What it sets in the threads that it calls, if it was imported, and goes by itself.
    class_ = getattr(sys.modules.get("asgiref.sync"), "SyncToAsync", None)
    caller: Any = getattr(class_, "threadlocal", None)
    if getattr(caller, "main_event_loop_pid", None) != os.getpid():
        return None
    loop: AbstractEventLoop = caller.main_event_loop
    return loop if loop.is_running() else None


def loop_that_runs_here() -> AbstractEventLoop | None:
    """Return the loop that runs the calling thread, if one does."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    # Under gevent a thread is a greenlet, and asyncio, which asks the operating
    # system's thread, would take every greenlet for the loop's.
    return None if loop is _shared.loop and not _shared.is_here() else loop


def loop_to_close_on(used_on: AbstractEventLoop | None) -> AbstractEventLoop | None:
    """Return the loop to close a session on: the one that it was used on, if it can.

    Else it is the one that async views run on when this thread calls them. There is
    none any more when the process ends, but for what that loop itself does: what was
    open was closed before.
    """
    if used_on is not None and used_on.is_running():
        return used_on
    return _server_loop() or _shared.started() or loop_that_runs_here()


# Of the call that a task was started in: emptied when that has returned.
_running: ContextVar[list[None]] = ContextVar("_running")


def _async_to_sync(
    function: Callable[P, Coroutine[object, object, T]],
) -> Callable[P, T]:
    """Stand for an application's `async_to_sync`: run everything on one loop."""

    async def tracked(*args: P.args, **kwargs: P.kwargs) -> T:
        running: list[None] = [None]
        token = _running.set(running)
        try:
            return await function(*args, **kwargs)
        finally:
            running.clear()
            _running.reset(token)  # the caller is no task of this call's

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        context = find_context()
        if context is not None:
            watch(context)
        if _server_loop() is not None:
            # Below a server that asgiref wraps the application for, it reaches the
            # server's loop, and lets the view call back into this thread.
            to_sync = sys.modules["asgiref.sync"].async_to_sync
            result: T = to_sync(tracked)(*args, **kwargs)
            return result
        loop = _shared.started()
        if loop is None:
            raise RuntimeError(
                f"{function!r} was called after the event loop of async views had "
                "ended, as it does where the process ends. 'atexit' runs last what "
                "was registered first: register what calls it after 'import "
                "flask_sqlalchemy_session.asyncio'. [loop-ended]"
            )
        if loop is loop_that_runs_here():
            raise RuntimeError(
                f"{function!r} was called through 'app.async_to_sync' or "
                "'app.ensure_sync' on the event loop that has to run it. Await it "
                "instead, or call it in 'asyncio.to_thread'. [waits-for-itself]"
            )
        return call(loop, partial(tracked, *args, **kwargs))

    return run


def use_one_event_loop(app: Flask) -> None:
    """Let an application's async views share one event loop, and so one pool.

    Flask runs each async view on an event loop that lives as long as the view,
    whereas pooled connections live longer, and belong to the loop that made them.
    This sets :meth:`Flask.async_to_sync <flask.Flask.async_to_sync>` so that all
    coroutine functions that Flask calls (views, hooks, error handlers) and what
    ``app.ensure_sync`` wraps run on one event loop instead::

        app = Flask(__name__)
        use_one_event_loop(app)

    Every process has one such loop, shared by its applications, in a thread of its
    own. It starts when it is first needed, ends with the process, and starts anew in
    a forked child. Code that blocks stalls every view on it.

    Where :class:`asgiref.wsgi.WsgiToAsgi` serves the application, views run on the
    server's loop instead. To call this again for the same application does nothing.

    :param app: the application.
    """
    app = unproxied(app)
    # Documented as the place to change how the application runs async views.
    setattr(app, "async_to_sync", _async_to_sync)  # noqa: B010  # a method, for type checkers


def check_loop(context: AppContext) -> None:
    """Refuse a context where no loop lasts as long as a session and its connections.

    :raises ScopeError: when views run on loops that end with them, or when the current
        task outlived both the call that started it and the context.
    """
    app = context.app
    # A task of an earlier hook's may prepare what the view awaits.
    if not _running.get([None]) and has_ended(context):
        raise ScopeError(
            f"This task outlived the view of Flask application {app.name!r} that "
            "started it, and the view's context has ended. Give work that outlives a "
            "request a context of its own: 'with app.app_context():'. [outlived-view]"
        )
    # An application that runs views in a way of its own is taken to know what it does.
    if getattr(app.async_to_sync, "__func__", None) is Flask.async_to_sync:
        raise ScopeError(
            f"Flask application {app.name!r} runs each async view on an event loop "
            "that ends with it, and a pooled connection can't outlive the loop that "
            "made it. Add this line where the application is set up: "
            "'use_one_event_loop(app)', with 'from flask_sqlalchemy_session.asyncio "
            "import use_one_event_loop'. [one-event-loop]"
        )
