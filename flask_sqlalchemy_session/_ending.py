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
from functools import partial
from types import new_class
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
_subclasses: dict[type[Any], type[Any]] = {}
_watched: set[type[AppContext]] = set()


def subclass(class_: type[Any], methods: Callable[[Any], dict[str, object]]) -> Any:
    """Return a class's subclass with other methods, the same each time.

    What is made is its own subclass. An object is given it as its class, since a method
    of its own would refer to it, and only the collector would free it then.
    """
    made = _subclasses.get(class_)
    if made is None:
        names = {name: vars(class_).get(name) for name in ("__module__", "__doc__")}
        members = {**names, **methods(class_)}
        new = new_class(
            class_.__name__, (class_,), {}, lambda body: body.update(members)
        )
        made = _subclasses.setdefault(class_, new)
        _subclasses[made] = made
    return made


def watch(context: AppContext) -> None:
    """Let a context say when it is popped."""
    if type(context) not in _watched:
        class_ = subclass(type(context), _context_methods)
        _watched.add(class_)
        context.__class__ = class_


def has_ended(context: AppContext) -> bool:
    """Tell whether a watched context was torn down, and not pushed again since."""
    return _ENDED in vars(context)


def _context_methods(class_: type[AppContext]) -> dict[str, object]:
    def push(self: AppContext) -> None:
        vars(self).pop(_ENDED, None)
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

    return {"push": push, "pop": pop}


def _end(context: AppContext | None) -> None:
    if context is not None and type(context) in _watched:
        vars(context)[_ENDED] = True
        release(context, through_owners=context is find_context())


def end_if_missed(context: AppContext) -> None:
    """Release the sessions of a context that Flask should have torn down."""
    if not has_ended(context):
        _end(context)


def _call_without_app(
    function: Callable[..., None], _: Flask | None, *args: Any, **kwargs: Any
) -> None:
    function(*args, **kwargs)


def end_with_contexts(app: Flask) -> None:
    """Release the sessions of an application's contexts at the end of each.

    A teardown hook would not do: hooks run last registered first, those of the
    application's that run later could use a session again, and before Flask 3.2 one
    that raises keeps the rest from running.
    """
    if vars(app).get(_TEARDOWN) in _teardowns:
        return
    # What is set on an application must not refer to it, or only the collector would
    # free it. Copies of the application have it too, and ends of their own.
    original = ref(app)
    method: Any = getattr(app, _TEARDOWN)
    is_its = getattr(method, "__self__", None) is app
    tear_down: Callable[..., None] = (
        method.__func__ if is_its else partial(_call_without_app, method)
    )

    def is_mine(app: Flask) -> bool:
        return app is original() or vars(app).get(_TEARDOWN) is do_teardown_appcontext

    def do_teardown_appcontext(*args: Any, **kwargs: Any) -> None:
        context = _popping.context if BEFORE_FLASK_3_2 else args[0]
        if context is not None:
            _popping.context = None
        else:
            # It has had no session so far. One that has had a session goes on.
            current = find_context()
            if current and type(current) not in _watched and is_mine(current.app):
                context = current
        try:
            tear_down(context.app if context else original(), *args, **kwargs)
        except BaseException as error:
            try:
                _end(context)
            except BaseException as another:
                if sys.version_info >= (3, 11) and not BEFORE_FLASK_3_2:
                    message = "Errors during app teardown"  # Flask's own
                    raise BaseExceptionGroup(message, [error, another]) from None  # noqa: F821  # 3.11
                raise
            raise
        _end(context)

    setattr(app, _TEARDOWN, do_teardown_appcontext)
    _teardowns.add(do_teardown_appcontext)
