"""Which context ends, and that its sessions end with it.

Flask calls an application's `do_teardown_appcontext` for the context that is popped.
Before Flask 3.2 that can be another than the current one (in another thread, in a
generator's finaliser, in a wrong order), and Flask does not say which. So a context
that has had a session says so itself: it is watched.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakSet, ref

from flask import Flask
from flask.ctx import AppContext

from ._context import find_context
from ._scope import release

_TEARDOWN = "do_teardown_appcontext"

_ENDED = "_flask_sqlalchemy_session_ended"


class _Popping(threading.local):
    """The watched context that this thread pops, until its teardown has begun."""

    context: AppContext | None = None


_popping = _Popping()
_teardowns: WeakSet[Callable[..., None]] = WeakSet()
_watched_classes: dict[type[AppContext], type[AppContext]] = {}


def watch(context: AppContext) -> None:
    """Let a context say when it is popped.

    By its class, since a method of the instance's own would refer to the instance,
    which only the collector could free then.
    """
    class_ = type(context)
    watched = _watched_classes.get(class_)
    if watched is None:
        watched = _watched_classes[class_] = _watched_class(class_)
        _watched_classes[watched] = watched
    context.__class__ = watched


def is_watched(context: AppContext) -> bool:
    """Tell whether a context has had a session."""
    return _watched_classes.get(type(context)) is type(context)


def has_ended(context: AppContext) -> bool:
    """Tell whether a watched context was torn down, and not pushed again since."""
    ended: bool = vars(context).get(_ENDED, False)
    return ended


def had_ended(context: AppContext) -> bool:
    """Tell whether a watched context was torn down ever."""
    return _ENDED in vars(context)


def _watched_class(class_: type[AppContext]) -> type[AppContext]:
    def push(self: AppContext) -> None:
        if _ENDED in vars(self):
            vars(self)[_ENDED] = False
        class_.push(self)

    def pop(self: AppContext, *args: Any, **kwargs: Any) -> None:
        try:
            _popping.context = self
            class_.pop(self, *args, **kwargs)
        except BaseException as error:
            # Its teardown began, or was kept from it by an interrupt.
            if _popping.context is not self or not isinstance(error, Exception):
                _end(self)
            raise
        finally:
            _popping.context = None

    return type(class_.__name__, (class_,), {"push": push, "pop": pop})


def _end(context: AppContext | None) -> None:
    if context is not None and is_watched(context):
        vars(context)[_ENDED] = True
        release(context, through_owners=context is find_context())


def end_if_missed(context: AppContext) -> None:
    """End a context that Flask should have ended, and has not."""
    if not has_ended(context):
        _end(context)


def end_with_contexts(app: Flask) -> None:
    """Release the sessions of an application's contexts at the end of each.

    A teardown hook would not do: hooks run last registered first, those of the
    application's that run later could use a session again, and before Flask 3.2 one
    that raises keeps the rest from running.
    """
    if vars(app).get(_TEARDOWN) in _teardowns:
        return
    teardown = _method_of(app, _TEARDOWN)
    original = ref(app)

    def mine(app: Flask) -> bool:
        # A copy of the application has its attributes, this function among them.
        return app is original() or vars(app).get(_TEARDOWN) is do_teardown_appcontext

    def do_teardown_appcontext(*args: Any, **kwargs: Any) -> None:
        told = args[0] if args and isinstance(args[0], AppContext) else None
        context = told or _popping.context
        _popping.context = None
        if context is None:
            # It has had no session so far. What is watched goes on.
            context = find_context()
            if context is not None and (is_watched(context) or not mine(context.app)):
                context = None
        app = original() if context is None else context.app
        try:
            teardown(app, *args, **kwargs)
        except BaseException as error:
            try:
                _end(context)
            except BaseException as another:
                if told is None or sys.version_info < (3, 11):
                    raise
                raise BaseExceptionGroup(  # noqa: F821  # as Flask does from 3.11 on
                    "Errors during app teardown", [error, another]
                ) from None
            raise
        _end(context)

    setattr(app, _TEARDOWN, do_teardown_appcontext)
    _teardowns.add(do_teardown_appcontext)


def _method_of(app: Flask, name: str) -> Callable[..., None]:
    """Return a method of an application's, to be called with the application.

    What the application has refers to it, and it would not be freed without the
    collector.
    """
    method: Any = getattr(app, name)
    if getattr(method, "__self__", None) is app:
        return method.__func__  # type: ignore[no-any-return]

    def call(app: Flask, *args: Any, **kwargs: Any) -> None:
        method(*args, **kwargs)

    return call
