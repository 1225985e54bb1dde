"""Flask-DebugToolbar: it shows a page's queries, and holds none of its connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.support import OopsError, User

pytest.importorskip("flask_debugtoolbar")

from flask_debugtoolbar import DebugToolbarExtension

if TYPE_CHECKING:
    from flask import Flask
    from flask.testing import FlaskClient
    from sqlalchemy import Engine

    from tests.support import Held


def add_views(app: Flask) -> FlaskClient:
    app.debug = True
    app.secret_key = "for the links to the queries"  # noqa: S105  # no secret
    DebugToolbarExtension(app)

    @app.get("/")
    def list_() -> str:
        names = current_session.scalars(select(User.name))
        return f"<html><body>{', '.join(names)}</body></html>"

    @app.get("/fail")
    def fail() -> str:
        current_session.scalars(select(User.name)).all()
        raise OopsError

    return app.test_client()


@pytest.mark.usefixtures("session", "ann")
class TestByItself:
    def test_the_toolbar_stands_below_the_page(self, app: Flask, held: Held) -> None:
        page = add_views(app).get("/").text
        assert page.startswith("<html><body>ann")
        assert "flDebugToolbar" in page
        assert held.count == 0

    def test_a_view_that_fails_leaves_nothing_open(
        self, app: Flask, held: Held
    ) -> None:
        client = add_views(app)
        with pytest.raises(OopsError):
            client.get("/fail")
        assert held.count == 0


class TestWithFlaskSQLAlchemy:
    def test_the_panel_shows_the_queries_of_a_session_in_its_place(
        self, app: Flask, engine: Engine, ann: User
    ) -> None:
        flask_sqlalchemy = pytest.importorskip("flask_sqlalchemy")
        db = flask_sqlalchemy.SQLAlchemy()
        db.session = session = FlaskScopedSession(db.session.session_factory)
        app.config["SQLALCHEMY_DATABASE_URI"] = engine.url
        app.config["SQLALCHEMY_RECORD_QUERIES"] = True
        db.init_app(app)
        session.init_app(app)
        page = add_views(app).get("/").text
        assert "1 query" in page
        with app.app_context():
            db.engine.dispose()
