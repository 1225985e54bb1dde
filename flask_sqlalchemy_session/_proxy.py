"""`current_session`: the current application's default session."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from sqlalchemy.orm import Session

from ._context import current_context, get_g, owner_in
from ._registry import key_of
from ._session import (
    EXTENSION,
    OWN_NAMES,
    SCOPED_NAMES,
    FlaskScopedSession,
    SessionProxy,
)
from ._threads import here

_KEY = key_of(EXTENSION, "default")


def _default() -> FlaskScopedSession[Session]:
    owner: FlaskScopedSession[Session]  # all that `init_app` puts there
    owner = owner_in(current_context(), EXTENSION, "default", FlaskScopedSession)
    return owner


def _default_session() -> Session:
    return _default().registry()


class CurrentSession(SessionProxy[Session]):
    """Stands for the session named ``"default"`` of the current application context.

    It has every attribute of that session, which ``help(Session)`` describes, and
    those by which version 1.1's users reached the scoped session. Any use outside an
    application context raises a :exc:`RuntimeError`.
    """

    __slots__ = ()

    if not TYPE_CHECKING:

        def __call__(self, **kw: object) -> Session:
            return _default()(**kw)

        def __getattribute__(self, name):
            if name in OWN_NAMES:
                return object.__getattribute__(self, name)
            try:
                # Without the way by the application, which is most of the time.
                holder = get_g().__dict__.get(_KEY)
            except (RuntimeError, AttributeError):
                holder = None
            if (
                holder is not None
                and holder.registry is not None
                and holder.thread is here.thread
            ):
                return getattr(holder.session, name)
            return getattr(_default_session(), name)

        def _scoped_session(self):
            return _default()

        def __getattr__(self, name: str) -> object:
            target = _default() if name in SCOPED_NAMES else self._get_current_object()
            return getattr(target, name)


# The proxy stands for a session in every way that the type promises. Editors that do
# not look into a cast read the annotation.
current_session: Session = cast("Session", CurrentSession(_default_session))
"""The current application context's session.

A proxy, in the manner of :data:`flask.g`: import it anywhere, and each use reaches
the session that the current context has under the name ``"default"``, made on first
use and closed when the context ends. It stands for the session itself, so that
``isinstance(current_session, Session)`` holds and ``with current_session.begin():``
works.

Any use raises a :exc:`RuntimeError` outside an application context, and one that is
an :exc:`AttributeError` too when the application was not set up with a
:class:`FlaskScopedSession`. For a proxy typed as your own ``Session`` subclass, or
for another name, see :attr:`FlaskScopedSession.proxy`.
"""
