"""What Flask up to 3.1 needs: contexts that are watched, and one for each request.

A context that is popped elsewhere stays the current one of the thread that it was
pushed on, and so does that of a streamed body which nobody reads to its end. The
thread's later requests would run in it, share its sessions, and end none of them. Here
they are given a context of their own, as on any other thread.

From Flask 3.2 on every request has a context of its own, and this is not installed.
"""

from __future__ import annotations

from collections.abc import Callable
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

# On an application context: the request that pushed it, weakly. What finds the context
# as the current one once that request was answered is another request.
_OWNER = "_flask_sqlalchemy_session_owner"

# On a request: whether it was answered, and the application context that its last push
# has pushed, or None, with what the push before it had here.
_ANSWERED = "_flask_sqlalchemy_session_answered"
_PUSHED = "_flask_sqlalchemy_session_pushed"

_flasks_app_context = Flask.app_context
_flasks_request_context = Flask.request_context


def watch_contexts(app: Flask) -> None:
    """Let an application's contexts say when they are popped."""
    if BEFORE_FLASK_3_2:
        # Its class may take arguments, or refuse to have a subclass.
        with suppress(TypeError):
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

    get_request: Callable[[], Any]
    get_request = getattr(flask.globals.request_ctx, "_get_current_object")  # noqa: B009  # as in `_context`

    # To give a context its class once it is there takes longer.
    def app_context(self: Flask, *args: Any, **kwargs: Any) -> AppContext:
        if class_.app_context is _flasks_app_context and not (args or kwargs):
            return context_class(self)
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
        request = get_request()
        try:
            return class_.full_dispatch_request(self)
        finally:
            request._flask_sqlalchemy_session_answered = True  # noqa: SLF001  # ours

    return {
        "app_context": app_context,
        "request_context": request_context,
        "full_dispatch_request": full_dispatch_request,
    }


def _is_left(context: AppContext, request: RequestContext) -> bool:
    """Tell whether the current context is one that a request must not share."""
    reference: ref[RequestContext] | None = getattr(context, _OWNER, None)
    if reference is None:
        return has_ended(context)
    owner = reference()
    if owner is request:  # the rest of its body
        return False
    return has_ended(context) or owner is None or getattr(owner, _ANSWERED)


# Each request comes here. As for contexts, the names are written out.
def _request_methods(class_: type[RequestContext]) -> dict[str, object]:
    def push(self: Any) -> None:
        current, app = find_context(), self.app
        if current is not None and current.app is app and _is_left(current, self):
            self.app = _Unshared(self)
        try:
            class_.push(self)
        finally:
            self.app = app
            pushed: Any = find_context()
            if pushed is current:
                pushed = None
            else:
                pushed._flask_sqlalchemy_session_owner = ref(self)  # noqa: SLF001  # ours
                pushed._flask_sqlalchemy_session_owed = True  # noqa: SLF001  # ours
            earlier = self._flask_sqlalchemy_session_pushed
            self._flask_sqlalchemy_session_pushed = (pushed, earlier)

    def pop(self: Any, *args: Any, **kwargs: Any) -> None:
        # On one line, as in the `pop` of a context.
        try: class_.pop(self, *args, **kwargs)  # fmt: skip  # noqa: E701
        finally:
            # What is popped elsewhere may leave it as it was: the request up to Flask
            # 3.0, a body that the request began up to 3.1.
            pushed, earlier = self._flask_sqlalchemy_session_pushed or (None, None)
            self._flask_sqlalchemy_session_pushed = earlier
            if pushed is not None and getattr(pushed, OWED):
                end(pushed)

    return {"push": push, "pop": pop, _ANSWERED: False, _PUSHED: None}
