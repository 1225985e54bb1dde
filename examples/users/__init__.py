"""The users application: a small JSON API over one table.

Serve it from the repository's root with ``flask --app examples.users run``.
"""

from __future__ import annotations

import os
from pathlib import Path

from flask import Flask
from sqlalchemy import URL, create_engine
from sqlalchemy.orm import sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession

from .models import create_tables
from .views import users


def create_app(database_url: str | URL | None = None) -> Flask:
    """Make the application.

    :param database_url: the database. Without it the environment's ``DATABASE_URL``
        is used, or else a SQLite file in the application's instance folder.
    :return: an application whose database has its table, and on first start a few
        users.
    """
    app = Flask(__name__)
    engine = create_engine(
        database_url or os.environ.get("DATABASE_URL") or sqlite_file(app)
    )
    create_tables(engine)
    FlaskScopedSession(sessionmaker(engine), app)
    app.register_blueprint(users)
    return app


def sqlite_file(app: Flask) -> URL:
    """Return the URL of a file that is the same wherever the server is started."""
    folder = Path(app.instance_path)
    folder.mkdir(parents=True, exist_ok=True)
    return URL.create("sqlite", database=str(folder / "users.sqlite3"))
