"""Requests on a thread that another context was left on: up to Flask 3.1.

A context that is popped elsewhere stays the current one of the thread that it was
pushed on, and so does that of a streamed body which nobody reads to its end. The
thread's later requests would run in it, share its sessions, and end none of them. Here
they are given a context of their own, as on any other thread.

From Flask 3.2 on every request has a context of its own, and this is not installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import Flask, Response, has_app_context
from flask.ctx import AppContext

from ._context import get_context
from ._ending import BEFORE_FLASK_3_2, end_if_missed, has_ended, subclass

if TYPE_CHECKING:
    from flask.ctx import RequestContext  # which Flask 3.2 warns of

# On an application context: how many requests share it that are not answered yet, and
# that its own request was answered. What finds it as the current one after that is
# another request, or the rest of a streamed body.
_SHARED = "_flask_sqlalchemy_session_shared"
_ANSWERED = "_flask_sqlalchemy_session_answered"

# On a request context: the application context that was pushed with it.
_OWN = "_flask_sqlalchemy_session_own"


def give_requests_contexts(app: Flask) -> None:
    """Let each request of an application have a context that nobody left behind."""
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
    def request_context(self: Flask, environ: Any) -> RequestContext:
        request = class_.request_context(self, environ)
        if has_app_context():
            context = get_context()
            if context.app is self:
                if _ANSWERED in vars(context) or has_ended(context):
                    vars(request)["app"] = _Unshared(request)
                else:
                    vars(context)[_SHARED] = vars(context).get(_SHARED, 0) + 1
                    return request
        request.__class__ = subclass(type(request), _request_methods)
        return request

    def process_response(self: Flask, response: Response) -> Response:
        marks = vars(get_context())
        if marks.get(_SHARED):
            marks[_SHARED] -= 1
        else:
            marks[_ANSWERED] = True
        return class_.process_response(self, response)

    return {"request_context": request_context, "process_response": process_response}


def _request_methods(class_: type[RequestContext]) -> dict[str, object]:
    def push(self: RequestContext) -> None:
        class_.push(self)
        vars(self).setdefault(_OWN, get_context())

    def pop(self: RequestContext, *args: Any, **kwargs: Any) -> None:
        try:
            class_.pop(self, *args, **kwargs)
        except BaseException:
            # Up to Flask 3.0 one that is popped elsewhere leaves its own as it was.
            if _OWN in vars(self):
                end_if_missed(vars(self)[_OWN])
            raise

    return {"push": push, "pop": pop}
