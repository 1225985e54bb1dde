"""The application context at hand, and what its application has been given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Flask, has_app_context
from flask.ctx import AppContext
from flask.globals import app_ctx, g

# Werkzeug documents this method as the way from a proxy to what it stands for. It is
# the fastest one there; `current_context` has the better error.
_get_context: Callable[[], AppContext] = getattr(app_ctx, "_get_current_object")  # noqa: B009  # Flask types the proxy as the context itself, without it
get_g: Callable[[], object] = getattr(g, "_get_current_object")  # noqa: B009  # as above


class ScopeError(RuntimeError, AttributeError):  # pyright: ignore[reportUnsafeMultipleInheritance]  # basedpyright's rule; neither has more to initialise than the other
    """There is no session here: no context, or an app that has none set up.

    A :exc:`RuntimeError`, as Flask raises outside a context. An
    :exc:`AttributeError` too, because 1.1 raised that for an app that was not set
    up, and so that :func:`hasattr` answers instead of raising.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.obj = None  # or Python would suggest another attribute at the end


def current_context() -> AppContext:
    """Return the current application context.

    :raises ScopeError: when there is none.
    """
    try:
        return _get_context()
    except RuntimeError:
        raise ScopeError(
            "There is no session outside an application context. Requests and CLI "
            "commands have one; elsewhere, open one: 'with app.app_context():'. "
            "[no-context]"
        ) from None


def find_context() -> AppContext | None:
    """Return the current application context, if there is one."""
    return _get_context() if has_app_context() else None  # the error takes a while


def owner_in(context: AppContext, extension: str, name: str, class_: type) -> Any:
    """Return what a context's application has under a name.

    :raises ScopeError: when it has nothing under that name.
    """
    app = context.app
    try:
        return app.extensions[extension][name]
    except KeyError:
        keyword = "" if name == "default" else f", name={name!r}"
        raise ScopeError(
            f"Flask application {app.name!r} has no session named {name!r}. Set one up "
            f"with '{class_.__name__}(session_factory, app{keyword})', or with "
            "'session.init_app(app)' in an application factory. [no-session]"
        ) from None


def unproxied(app: Flask) -> Flask:
    """Return the application itself, also where `current_app` is passed for it."""
    current: Callable[[], Flask] | None = getattr(app, "_get_current_object", None)
    return app if current is None else current()
