"""One `AsyncSession` for each Flask application context."""

import importlib.util

if importlib.util.find_spec("greenlet") is None:  # SQLAlchemy might say so late
    raise ImportError(
        "flask_sqlalchemy_session.asyncio needs greenlet, as SQLAlchemy's own asyncio "
        "extension does. Install it with: pip install 'sqlalchemy[asyncio]' "
        "[no-greenlet]"
    )

from ._factory import AsyncSessionFactory
from ._loop import use_one_event_loop
from ._proxy import current_async_session
from ._session import FlaskAsyncScopedSession, flask_async_scoped_session

__all__ = [
    "AsyncSessionFactory",
    "FlaskAsyncScopedSession",
    "current_async_session",
    "flask_async_scoped_session",
    "use_one_event_loop",
]
