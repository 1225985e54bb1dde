"""Which context ends, and that its sessions end with it.

Flask calls an application's `do_teardown_appcontext` for the context that is popped.
Before Flask 3.2 that can be another than the current one (in another thread, in a
generator's finaliser, in a wrong order), and Flask does not say which. So the context
says so itself: it is watched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from threading import get_ident
from types import new_class
from typing import Any
from weakref import WeakSet, ref

import flask.globals
from flask import Flask
from flask.ctx import AppContext

from ._context import find_context
from ._scope import release

BEFORE_FLASK_3_2 = "request_ctx" in vars(flask.globals)
NOT_GIVEN: Any = object()

_TEARDOWN = "do_teardown_appcontext"

_popping: dict[int, AppContext] = {}
"""The watched context that a thread pops, until its teardown begins."""

_teardowns: WeakSet[Callable[..., None]] = WeakSet()
_subclasses: dict[type[Any], type[Any]] = {}


def subclass(class_: type[Any], mixin: type[Any]) -> type[Any]:
    """Return a class's subclass with a mixin, the same each time.

    An object is given it as its class, since a method of its own would refer to it,
    and only the collector would free it then.
    """
    if issubclass(class_, mixin):
        return class_
    made = _subclasses.get(class_)
    if made is None:
        names = {name: vars(class_).get(name) for name in ("__module__", "__doc__")}
        new = new_class(
            class_.__name__, (mixin, class_), {}, lambda body: body.update(names)
        )
        made = _subclasses.setdefault(class_, new)  # another thread's, perhaps
    return made


class WatchedContext(AppContext):
    """A context that says when it is popped."""

    sqlalchemy_session_ended = False
    """Whether it was torn down, and not pushed again since."""

    sqlalchemy_session_used = False
    """Whether it has, or had, sessions."""

    sqlalchemy_session_owed = False
    """Whether the request that pushed it is still to pop it."""

    sqlalchemy_session_answered = False
    """Whether the request that pushed it was answered.

    What finds it as the current one after that is another request, or the rest of that
    one's body.
    """

    sqlalchemy_session_outer: AppContext | None = None
    """What its thread was about to end when it was popped."""

    def push(self) -> None:
        if self.sqlalchemy_session_ended:
            self.sqlalchemy_session_ended = False
        super().push()

    def pop(self, exc: BaseException | None = NOT_GIVEN) -> None:
        try:
            self.sqlalchemy_session_outer = _popping.get(get_ident())
            _popping[get_ident()] = self
            if exc is NOT_GIVEN:
                super().pop()
            else:
                super().pop(exc)
            self.sqlalchemy_session_owed = False
        except BaseException as error:
            # Its teardown began, or was kept from it by an interrupt.
            if _popping.get(get_ident()) is not self or not isinstance(
                error, Exception
            ):
                end(self)
            raise
        finally:
            if self.sqlalchemy_session_outer is None:
                _popping.pop(get_ident(), None)
            else:
                _popping[get_ident()] = self.sqlalchemy_session_outer
                self.sqlalchemy_session_outer = None


def watch(context: AppContext) -> WatchedContext:
    """Let a context that is to have sessions say when it is popped."""
    if not isinstance(context, WatchedContext):
        context.__class__ = subclass(type(context), WatchedContext)
        assert isinstance(context, WatchedContext)
    return context


def has_ended(context: AppContext) -> bool:
    """Tell whether a watched context was torn down, and not pushed again since."""
    return isinstance(context, WatchedContext) and context.sqlalchemy_session_ended


def end(context: AppContext | None, *, popped: bool = True) -> None:
    """Release the sessions of a context, if it has any.

    :param popped: whether it has ended, or goes on, with sessions that are yet to make.
    """
    if isinstance(context, WatchedContext):
        if popped:
            context.sqlalchemy_session_ended = True
            context.sqlalchemy_session_owed = False
        if context.sqlalchemy_session_used:
            release(context)


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

    def context_of_a_call_by_hand(*args: object) -> AppContext | None:
        if args and isinstance(args[0], AppContext):  # as from Flask 3.2 on
            return args[0]
        context = find_context()
        if context is not None and context.app is not original():
            copied = vars(context.app).get(_TEARDOWN) is do_teardown_appcontext
            return context if copied else None
        return context

    def do_teardown_appcontext(*args: Any, **kwargs: Any) -> None:
        context = _popping.pop(get_ident(), None)
        popped = context is not None
        if not popped:  # as at the end of a job, or from Flask 3.2 on without a session
            context = context_of_a_call_by_hand(*args)
        try:
            app = original() if context is None else context.app
            tear_down(app, *args, **kwargs)
        except BaseException as error:
            try:
                end(context, popped=popped)
            except BaseException as another:
                if sys.version_info >= (3, 11) and not BEFORE_FLASK_3_2:
                    message = "Errors during app teardown"  # Flask's own
                    raise BaseExceptionGroup(message, [error, another]) from None  # noqa: F821  # 3.11
                raise
            raise
        end(context, popped=popped)

    setattr(app, _TEARDOWN, do_teardown_appcontext)
    _teardowns.add(do_teardown_appcontext)
