"""Requests on a thread that another context was left on: up to Flask 3.1.

A context that is popped elsewhere stays the current one of the thread that it was
pushed on, and so does that of a streamed body which nobody reads to its end. The
thread's later requests would run in it, share its sessions, and end none of them. Here
they are given a context of their own, as on any other thread.

From Flask 3.2 on every request has a context of its own, and this is not installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import Flask, has_app_context
from flask.ctx import AppContext

from ._context import get_context
from ._ending import BEFORE_FLASK_3_2, end_if_missed, has_ended

if TYPE_CHECKING:
    from flask.ctx import RequestContext  # which Flask 3.2 warns of

_PUSHED = "_flask_sqlalchemy_session_pushed"

# On an application context whose request has been answered. What else finds it as the
# current one is another request, or the rest of that one's streamed body.
_LEFT = "_flask_sqlalchemy_session_left"

# For each time that a request context was pushed: the application context that came
# with it, and the one that it was given here.
_Pushed = tuple[AppContext | None, AppContext | None]

_subclasses: dict[type[Any], type[Any]] = {}


def give_requests_contexts(app: Flask) -> None:
    """Let each request of an application have a context that nobody left behind."""
    if BEFORE_FLASK_3_2:
        app.__class__ = _subclass(type(app), _application_methods)


def _subclass(class_: type[Any], methods: Any) -> type[Any]:
    """Return a class's subclass with other methods, the same each time."""
    subclass = _subclasses.get(class_)
    if subclass is None:
        names = {name: vars(class_).get(name) for name in ("__module__", "__doc__")}
        subclass = type(class_.__name__, (class_,), {**names, **methods(class_)})
        _subclasses[class_] = _subclasses.setdefault(subclass, subclass)
    return subclass


def _application_methods(class_: type[Flask]) -> dict[str, object]:
    def request_context(self: Flask, environ: Any) -> RequestContext:
        context = class_.request_context(self, environ)
        context.__class__ = _subclass(type(context), _request_methods)
        return context

    return {"request_context": request_context}


def _request_methods(class_: type[RequestContext]) -> dict[str, object]:
    def push(self: RequestContext) -> None:
        # One that is pushed again, as streaming does, finds its own context.
        first = _PUSHED not in vars(self)
        pushed = _pushed(self)
        before = get_context() if has_app_context() else None
        given = None
        if first and before is not None and _is_left(before, self.app):
            given = self.app.app_context()
            given.push()
        try:
            class_.push(self)
        finally:
            after = get_context() if has_app_context() else None
            pushed.append((None if after is before else after, given))

    def pop(self: RequestContext, *args: Any, **kwargs: Any) -> None:
        pushed = _pushed(self)
        own = given = None
        try:
            first, _ = pushed[0]
            if first is not None:
                vars(first)[_LEFT] = True
            own, given = pushed[-1]
            class_.pop(self, *args, **kwargs)
        finally:
            pushed[-1:] = []
            if given is not None:
                given.pop(*args, **kwargs)
            if own is not None:
                end_if_missed(own)

    return {"push": push, "pop": pop}


def _pushed(context: RequestContext) -> list[_Pushed]:
    pushed: list[_Pushed] = vars(context).setdefault(_PUSHED, [])
    return pushed


def _is_left(context: AppContext, app: Flask) -> bool:
    return context.app is app and (_LEFT in vars(context) or has_ended(context))
