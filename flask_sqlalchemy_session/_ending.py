"""Which context ends, and that its sessions end with it.

Flask calls an application's `do_teardown_appcontext` for the context that is popped.
Before Flask 3.2 that can be another than the current one (in another thread, in a
generator's finaliser, in a wrong order), and Flask does not say which. So the context
says so itself: it is watched.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from threading import get_ident
from types import new_class
from typing import Any
from weakref import ref

import flask.globals
from flask import Flask
from flask.ctx import AppContext

from ._context import find_context
from ._scope import release

BEFORE_FLASK_3_2 = "request_ctx" in vars(flask.globals)

_TEARDOWN = "do_teardown_appcontext"
_ENDED = "_flask_sqlalchemy_session_ended"

# On a class, which it lives as long as: its subclass with other methods.
_SUBCLASS = "_flask_sqlalchemy_session_subclass"

# On a watched context: what its thread was about to end when it was popped.
_OUTER = "_flask_sqlalchemy_session_outer"

# On a watched context, by the request that pushed it: that it was not popped yet.
OWED = "_flask_sqlalchemy_session_owed"

_NOT_GIVEN: Any = object()

_popping: dict[int, AppContext] = {}
"""The watched context that a thread pops, until its teardown begins."""

# On an application, and so on its copies: the teardown that this module gave it. Others
# may have put their own around it since.
_GIVEN = "_flask_sqlalchemy_session_teardown"


def subclass(class_: type[Any], methods: Callable[[Any], dict[str, object]]) -> Any:
    """Return a class's subclass with other methods, the same each time.

    An object is given it as its class, since a method of its own would refer to it, and
    only the collector would free it then. It has no base but the first class: another
    could change how objects are laid out, and then none could be given it. What is made
    is its own subclass.
    """
    made = vars(class_).get(_SUBCLASS)
    if made is None:
        names = {name: vars(class_).get(name) for name in ("__module__", "__doc__")}
        members = {**names, **methods(class_)}
        made = new_class(
            class_.__name__, (class_,), {}, lambda body: body.update(members)
        )
        # First its own, as another thread may look for it once it is the other's.
        for each in (made, class_):
            type.__setattr__(each, _SUBCLASS, made)  # whatever their own class says
    return made


def watch(context: AppContext) -> None:
    """Let a context that is to have sessions say when it is popped."""
    if not hasattr(context, _ENDED):
        context.__class__ = subclass(type(context), context_methods)


def has_ended(context: AppContext | None) -> bool:
    """Tell whether a watched context was torn down, and not pushed again since."""
    return getattr(context, _ENDED, False)


# Each context comes here, also one without a session. The names of its attributes are
# written out, as by `setattr` and `getattr` it would take longer.
def context_methods(class_: type[AppContext]) -> dict[str, object]:
    def push(self: Any) -> None:
        if self._flask_sqlalchemy_session_ended:
            self._flask_sqlalchemy_session_ended = False
        class_.push(self)

    def begin_pop(self: Any, exc: BaseException | None) -> None:
        thread = get_ident()
        self._flask_sqlalchemy_session_outer = _popping.get(thread)
        _popping[thread] = self
        if exc is _NOT_GIVEN:
            class_.pop(self)
        else:
            class_.pop(self, exc)
        self._flask_sqlalchemy_session_owed = False

    def pop(self: Any, exc: BaseException | None = _NOT_GIVEN) -> None:
        # On one line, as an interrupt in a line with no more than `try` is not caught.
        try: begin_pop(self, exc)  # fmt: skip  # noqa: E701
        except BaseException as error:
            # Its teardown began, or was kept from it by an interrupt, or by a pop
            # elsewhere, after which it was used again.
            if (
                _popping.get(get_ident()) is not self
                or not isinstance(error, Exception)
                or has_ended(self)
            ):
                end(self)
            raise
        finally:
            outer = self._flask_sqlalchemy_session_outer
            if outer is None or has_ended(outer):  # by another greenlet of the thread
                _popping.pop(get_ident(), None)
            else:
                _popping[get_ident()] = outer
            self._flask_sqlalchemy_session_outer = None

    marks = {_ENDED: False, OWED: False, _OUTER: None}
    return {"push": push, "pop": pop, **marks}


def end(context: Any) -> None:
    """Release the sessions of a context that has ended."""
    context._flask_sqlalchemy_session_ended = True  # noqa: SLF001  # ours
    context._flask_sqlalchemy_session_owed = False  # noqa: SLF001  # ours
    release(context)


def _end_after(error: BaseException, context: AppContext) -> None:
    """Release the sessions of a context whose teardown has failed."""
    try:
        end(context)
    except BaseException as another:
        if sys.version_info >= (3, 11) and not BEFORE_FLASK_3_2:
            # As Flask's own, which tells of each.
            message = "Errors during app teardown"
            raise BaseExceptionGroup(message, [error, another]) from None  # noqa: F821  # 3.11
        raise


def end_with_contexts(app: Flask) -> None:
    """Release the sessions of an application's contexts at the end of each.

    A teardown hook would not do: hooks run last registered first, those of the
    application's that run later could use a session again, and before Flask 3.2 one
    that raises keeps the rest from running.
    """
    if _GIVEN in vars(app) and _TEARDOWN in vars(app):
        return
    # What is set on an application must not refer to it, or only the collector would
    # free it. Copies of the application have it too, and ends of their own.
    original = ref(app)
    given: Callable[..., None] | None = vars(app).get(_TEARDOWN)
    # Bound for each call as Python does it, also where a tracer has wrapped it.
    of_class: Any = inspect.getattr_static(type(app), _TEARDOWN)
    bind: Any = getattr(of_class, "__get__", None)

    def teardown_of(app: Flask | None) -> Callable[..., None]:
        if given is not None:
            return given
        bound: Callable[..., None]
        bound = of_class if bind is None else bind(app, type(app))
        return bound

    def do_teardown_appcontext(*args: Any, **kwargs: Any) -> None:
        context = _popping.pop(get_ident(), None)
        if not BEFORE_FLASK_3_2:  # pragma: no cover  # only tests-dev has it
            told = args[0] if args else kwargs.get("ctx")
            context = told if isinstance(told, AppContext) else None
        if context is not None:
            try:
                teardown_of(context.app)(*args, **kwargs)
            except BaseException as error:
                _end_after(error, context)
                raise
            end(context)
            return
        # It is called by hand, as at the end of a job. The current context goes on,
        # with sessions that are yet to make.
        current = find_context()
        if (
            current is None
            or vars(current.app).get(_GIVEN) is not do_teardown_appcontext
        ):
            teardown_of(original())(*args, **kwargs)
            return
        try:
            teardown_of(current.app)(*args, **kwargs)
        finally:
            release(current)

    setattr(app, _TEARDOWN, do_teardown_appcontext)
    setattr(app, _GIVEN, do_teardown_appcontext)
