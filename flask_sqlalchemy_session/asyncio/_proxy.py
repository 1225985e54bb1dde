"""`current_async_session`: the current application's default async session."""

from __future__ import annotations

from typing import cast

from sqlalchemy.ext.asyncio import AsyncSession

from flask_sqlalchemy_session._context import current_context, owner_in

from ._session import EXTENSION, AsyncSessionProxy, FlaskAsyncScopedSession


def _default() -> FlaskAsyncScopedSession[AsyncSession]:
    owner: FlaskAsyncScopedSession[AsyncSession]  # all that `init_app` puts there
    owner = owner_in(current_context(), EXTENSION, "default", FlaskAsyncScopedSession)
    return owner


# The proxy stands for a session in every way that the type promises. Editors that do
# not look into a cast read the annotation.
current_async_session: AsyncSession = cast("AsyncSession", AsyncSessionProxy(_default))
"""The current application context's async session.

A proxy, in the manner of :data:`flask.g`: import it anywhere, and each use reaches
the session that the current context has under the name ``"default"``, made on first
use and closed when the context ends. It stands for the session itself, so that
``isinstance(current_async_session, AsyncSession)`` holds and ``async with
current_async_session.begin():`` works.

One session serves one task at a time. Give each of several tasks that run at the
same time a session of its own, from the factory: ``async with maker() as session:``.

Any use raises a :exc:`RuntimeError` outside an application context, and one that is
an :exc:`AttributeError` too when the application was not set up with a
:class:`FlaskAsyncScopedSession` and :func:`use_one_event_loop`. For a proxy typed as
your own ``AsyncSession`` subclass, or for another name, see
:attr:`FlaskAsyncScopedSession.proxy`.
"""
