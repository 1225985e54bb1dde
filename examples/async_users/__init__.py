"""The async users application: the users application's start, with async views.

Serve it from the repository's root with ``flask --app examples.async_users run``.
"""

from __future__ import annotations

import os
from pathlib import Path

from flask import Flask
from sqlalchemy import URL, AsyncAdaptedQueuePool
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from flask_sqlalchemy_session.asyncio import (
    FlaskAsyncScopedSession,
    use_one_event_loop,
)

from .models import create_tables
from .views import users


def create_app(database_url: str | URL | None = None) -> Flask:
    """Make the application.

    :param database_url: the database, with an async driver: ``sqlite+aiosqlite``,
        ``postgresql+asyncpg`` or ``postgresql+psycopg``. Without it the environment's
        ``DATABASE_URL`` is used, or else a SQLite file in the application's instance
        folder.
    :return: an application whose database has its table.
    """
    app = Flask(__name__)
    use_one_event_loop(app)
    url = database_url or os.environ.get("DATABASE_URL") or sqlite_file(app)
    app.ensure_sync(create_tables)(url)
    # The pool is the default, but for SQLite's files before SQLAlchemy 2.0.38.
    engine = create_async_engine(url, poolclass=AsyncAdaptedQueuePool)
    FlaskAsyncScopedSession(async_sessionmaker(engine, expire_on_commit=False), app)
    app.register_blueprint(users)
    return app


def sqlite_file(app: Flask) -> URL:
    """Return the URL of a file that is the same wherever the server is started."""
    folder = Path(app.instance_path)
    folder.mkdir(parents=True, exist_ok=True)
    return URL.create("sqlite+aiosqlite", database=str(folder / "async_users.sqlite3"))
