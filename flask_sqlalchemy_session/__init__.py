"""One SQLAlchemy session for each Flask application context."""

from ._factory import SessionFactory
from ._proxy import current_session
from ._session import FlaskScopedSession, flask_scoped_session

__all__ = [
    "FlaskScopedSession",
    "SessionFactory",
    "current_session",
    "flask_scoped_session",
]
