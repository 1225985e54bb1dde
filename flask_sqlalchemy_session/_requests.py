"""What Flask up to 3.1 needs: contexts that are watched, and one for each request.

A context that is popped elsewhere stays the current one of the thread that it was
pushed on, and so does that of a streamed body which nobody reads to its end. The
thread's later requests would run in it, share its sessions, and end none of them. Here
they are given a context of their own, as on any other thread.

From Flask 3.2 on every request has a context of its own, and this is not imported.
"""

from __future__ import annotations

from typing import Any

import flask.globals
from flask import Flask, Response
from flask.ctx import AppContext, RequestContext

from ._context import find_context
from ._ending import (
    NOT_GIVEN,
    WatchedContext,
    end,
    subclass,
    watch,
)

_flasks_app_context = Flask.app_context
_watched_context: type[AppContext] = subclass(AppContext, WatchedContext)


def watch_contexts(app: Flask) -> None:
    """Let an application's contexts say when they are popped."""
    app.__class__ = subclass(type(app), WatchedApp)


class _Unshared:
    """A request's application, until the request has pushed a context of its own.

    Flask lets a request share the current context if that is of the same application.
    """

    def __init__(self, request: RequestContext) -> None:
        self.request = request
        self.app = request.app

    def app_context(self) -> AppContext:
        self.request.app = self.app
        return self.app.app_context()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.app, name)


class WatchedApp(Flask):
    """An application whose contexts are watched, and whose requests have their own."""

    def app_context(self) -> AppContext:
        make = super().app_context
        if getattr(make, "__func__", None) is _flasks_app_context:
            # To give a context its class once it is there takes longer.
            return _watched_context(self)
        return watch(make())

    def request_context(self, environ: Any) -> RequestContext:
        request = super().request_context(environ)
        request.__class__ = subclass(type(request), WatchedRequest)
        return request

    def full_dispatch_request(self) -> Response:
        request: Any = flask.globals.request_ctx
        own = getattr(request, "sqlalchemy_session_own", None)
        try:
            return super().full_dispatch_request()
        finally:
            if own is not None:
                own.sqlalchemy_session_answered = True


class WatchedRequest(RequestContext):
    """A request that has a context of its own, and ends what it pushed."""

    sqlalchemy_session_own: WatchedContext | None = None
    """The first application context that was pushed with it."""

    sqlalchemy_session_pushed: tuple[WatchedContext | None, ...] = ()
    """For each time that it was pushed, the context that was pushed with it, if any."""

    def push(self) -> None:
        current = find_context()
        if (
            isinstance(current, WatchedContext)
            and current.app is self.app
            and (
                current.sqlalchemy_session_ended or current.sqlalchemy_session_answered
            )
            and self.sqlalchemy_session_own is not current
        ):
            vars(self)["app"] = _Unshared(self)
        try:
            super().push()
        finally:
            pushed = find_context()
            if pushed is current or not isinstance(pushed, WatchedContext):
                pushed = None
            else:
                pushed.sqlalchemy_session_owed = True
                if self.sqlalchemy_session_own is None:
                    self.sqlalchemy_session_own = pushed
            self.sqlalchemy_session_pushed += (pushed,)

    def pop(self, exc: BaseException | None = NOT_GIVEN) -> None:
        try:
            if exc is NOT_GIVEN:
                super().pop()
            else:
                super().pop(exc)
        finally:
            # What is popped elsewhere may leave it as it was: the request up to Flask
            # 3.0, a body that the request began up to 3.1.
            *others, context = self.sqlalchemy_session_pushed or (None,)
            self.sqlalchemy_session_pushed = tuple(others)
            if context is not None and context.sqlalchemy_session_owed:
                end(context)
