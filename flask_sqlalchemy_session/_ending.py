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

import flask.globals
from flask import Flask
from flask.ctx import AppContext

from ._context import find_context
from ._scope import release

BEFORE_FLASK_3_2 = "request_ctx" in vars(flask.globals)

_TEARDOWN = "do_teardown_appcontext"
_ENDED = "_flask_sqlalchemy_session_ended"


class _Popping(threading.local):
    """The watched context that this thread pops, until its teardown begins."""

    context: AppContext | None = None


_popping = _Popping()
_teardowns: WeakSet[Callable[..., None]] = WeakSet()

_watched: dict[type[AppContext], type[AppContext]] = {}
_watched_classes: set[type[AppContext]] = set()


def watch(context: AppContext) -> None:
    """Let a context say when it is popped.

    By its class, since a method of its own would refer to it, and only the collector
    would free it then.
    """
    class_ = type(context)
    if class_ not in _watched_classes:
        if class_ not in _watched:
            _watched[class_] = _watched_class(class_)
            _watched_classes.add(_watched[class_])
        context.__class__ = _watched[class_]


def has_ended(context: AppContext) -> bool:
    """Tell whether a watched context was torn down, and not pushed again since."""
    ended: bool = vars(context).get(_ENDED, False)
    return ended


def had_ended(context: AppContext) -> bool:
    """Tell whether a watched context was torn down, and perhaps pushed again."""
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


def _current_without_session() -> AppContext | None:
    context = find_context()
    return None if type(context) in _watched_classes else context


def _end(context: AppContext | None) -> None:
    if context is not None and type(context) in _watched_classes:
        vars(context)[_ENDED] = True
        release(context, through_owners=context is find_context())


def end_if_missed(context: AppContext) -> None:
    """Release the sessions of a context that Flask should have torn down."""
    if not has_ended(context):
        _end(context)


def end_with_contexts(app: Flask) -> None:  # noqa: C901  # of the functions in it
    """Release the sessions of an application's contexts at the end of each.

    A teardown hook would not do: hooks run last registered first, those of the
    application's that run later could use a session again, and before Flask 3.2 one
    that raises keeps the rest from running.
    """
    if vars(app).get(_TEARDOWN) in _teardowns:
        return
    method: Any = getattr(app, _TEARDOWN)
    # What is set on an application must not refer to it, or only the collector would
    # free it. Copies of the application have it too, and ends of their own.
    function = method.__func__ if getattr(method, "__self__", None) is app else None
    original = ref(app)

    def mine(app: Flask) -> bool:
        return app is original() or vars(app).get(_TEARDOWN) is do_teardown_appcontext

    def tear_down(app: Flask | None, *args: Any, **kwargs: Any) -> None:
        if function is None:
            method(*args, **kwargs)
        else:
            function(app, *args, **kwargs)

    def do_teardown_appcontext(*args: Any, **kwargs: Any) -> None:
        context = _popping.context if BEFORE_FLASK_3_2 else args[0]
        if context is not None:
            _popping.context = None
        else:
            # It has had no session so far. What has had one goes on.
            context = _current_without_session()
            if context is not None and not mine(context.app):
                context = None
        try:
            tear_down(context.app if context else original(), *args, **kwargs)
        except BaseException as error:
            try:
                _end(context)
            except BaseException as another:
                if BEFORE_FLASK_3_2 or sys.version_info < (3, 11):
                    raise
                raise BaseExceptionGroup(  # noqa: F821  # as Flask does from 3.11 on
                    "Errors during app teardown", [error, another]
                ) from None
            raise
        _end(context)

    setattr(app, _TEARDOWN, do_teardown_appcontext)
    _teardowns.add(do_teardown_appcontext)
