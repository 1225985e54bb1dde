"""What Flask up to 3.1 needs: contexts that are watched, and one for each request.

A context that is popped elsewhere stays the current one of the thread that it was
pushed on, and so does that of a streamed body which nobody reads to its end. The
thread's later requests would run in it, share its sessions, and end none of them. Here
they are given a context of their own, as on any other thread.

From Flask 3.2 on every request has a context of its own, and this is not installed.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import ref

import flask.globals
from flask import Flask
from flask.ctx import AppContext

from ._context import find_context
from ._ending import (
    BEFORE_FLASK_3_2,
    OWED,
    context_methods,
    end,
    has_ended,
    subclass,
    watch,
)

if TYPE_CHECKING:
    from flask import Response
    from flask.ctx import RequestContext  # which Flask 3.2 warns of

# On an application context: that the request which pushed it was answered. What finds
# it as the current one after that is another request, or the rest of that one's body.
_ANSWERED = "_flask_sqlalchemy_session_answered"

# On a request context: the first application context that was pushed with it, weakly,
# as errors keep a request longer, and for each time that it was pushed the one that
# was, or None.
_OWN = "_flask_sqlalchemy_session_own"
_PUSHED = "_flask_sqlalchemy_session_pushed"

_flasks_app_context = Flask.app_context
_flasks_request_context = Flask.request_context


def watch_contexts(app: Flask) -> None:
    """Let an application's contexts say when they are popped."""
    if BEFORE_FLASK_3_2:
        app.__class__ = subclass(type(app), _application_methods)


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


def _application_methods(class_: type[Flask]) -> dict[str, object]:
    context_class: type[AppContext] = subclass(AppContext, context_methods)
    request_class: type[RequestContext] = subclass(
        flask.ctx.RequestContext, _request_methods
    )

    # To give a context its class once it is there takes longer.
    def app_context(self: Flask, *args: Any, **kwargs: Any) -> AppContext:
        if class_.app_context is _flasks_app_context:
            return context_class(self, *args, **kwargs)
        context = class_.app_context(self, *args, **kwargs)
        watch(context)
        return context

    def request_context(self: Flask, environ: Any) -> RequestContext:
        if class_.request_context is _flasks_request_context:
            return request_class(self, environ)
        request = class_.request_context(self, environ)
        request.__class__ = subclass(type(request), _request_methods)
        return request

    def full_dispatch_request(self: Flask) -> Response:
        # Weakly too, as this frame is what an error's traceback refers to.
        own: ref[AppContext] | None = getattr(flask.globals.request_ctx, _OWN, None)
        try:
            return class_.full_dispatch_request(self)
        finally:
            if own is not None:
                with suppress(AttributeError):  # it was popped before, and is gone
                    setattr(own(), _ANSWERED, True)

    return {
        "app_context": app_context,
        "request_context": request_context,
        "full_dispatch_request": full_dispatch_request,
    }


def _request_methods(class_: type[RequestContext]) -> dict[str, object]:
    def push(self: RequestContext) -> None:
        current, app = find_context(), self.app
        if (
            current is not None
            and current.app is app
            and (has_ended(current) or hasattr(current, _ANSWERED))
            and vars(self).get(_OWN) != ref(current)
        ):
            vars(self)["app"] = _Unshared(self)
        try:
            class_.push(self)
        finally:
            self.app = app
            pushed = find_context()
            if pushed is None or pushed is current:
                pushed = None
            else:
                setattr(pushed, OWED, True)
                vars(self).setdefault(_OWN, ref(pushed))
            vars(self).setdefault(_PUSHED, []).append(pushed)

    def pop(self: RequestContext, *args: Any, **kwargs: Any) -> None:
        try:
            class_.pop(self, *args, **kwargs)
        finally:
            # What is popped elsewhere may leave it as it was: the request up to Flask
            # 3.0, a body that the request began up to 3.1.
            pushed = vars(self).get(_PUSHED)
            context = pushed.pop() if pushed else None
            if context is not None and getattr(context, OWED):
                end(context)

    return {"push": push, "pop": pop}
