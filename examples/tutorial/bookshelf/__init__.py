"""The bookshelf application."""

from collections.abc import Mapping

from flask import Flask

from . import database, errors
from .views import books


def create_app(config: Mapping[str, object] | None = None) -> Flask:
    app = Flask(__name__)
    app.config["DATABASE_URL"] = "sqlite:///bookshelf.sqlite3"
    app.config["ENGINE_OPTIONS"] = {}
    app.config.from_prefixed_env("BOOKSHELF")
    app.config.from_mapping(config)
    database.init_app(app)
    errors.init_app(app)
    app.register_blueprint(books)
    return app
