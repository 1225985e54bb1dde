"""Flask-Session: web sessions in a database, apart from the work of the views."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flask
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.support import Held, OopsError, User

pytest.importorskip("flask_session")

import flask_session
from flask_sqlalchemy import SQLAlchemy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flask import Flask
    from flask.testing import FlaskClient
    from sqlalchemy import Engine

# Flask-Session asks for the time in a way that Python deprecated.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:datetime\.datetime\.utcnow:DeprecationWarning"
)


def add_web_sessions(app: Flask, url: str) -> None:
    db = SQLAlchemy()
    session = FlaskScopedSession(db.session.session_factory, name="web sessions")
    db.session = session
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    db.init_app(app)
    session.init_app(app)

    app.config["SESSION_TYPE"] = "sqlalchemy"
    app.config["SESSION_SQLALCHEMY"] = db
    flask_session.Session(app)


def add_views(app: Flask) -> FlaskClient:
    @app.post("/")
    def remember() -> str:
        flask.session["name"] = flask.request.form["name"]
        return ""

    @app.get("/")
    def recall() -> str:
        return str(flask.session["name"])

    @app.post("/unfinished")
    def unfinished() -> str:
        flask.session["name"] = "bob"
        current_session.add(User(name="bob"))
        return ""

    @app.post("/fail")
    def fail() -> str:
        flask.session["name"] = "bob"
        current_session.add(User(name="bob"))
        current_session.flush()
        raise OopsError

    return app.test_client()


def users(engine: Engine) -> list[str]:
    with Session(engine) as session:
        return list(session.scalars(select(User.name)))


class TestApart:
    @pytest.fixture
    def web(
        self, app: Flask, session: FlaskScopedSession[Session], tmp_path: Path
    ) -> Iterator[Engine]:
        """The engine of the web sessions."""
        # In SQLite one file has one writer, and a view that fails may still be writing.
        add_web_sessions(app, f"sqlite:///{tmp_path}/web.sqlite3")
        with app.app_context():
            engine: Engine = app.extensions["sqlalchemy"].engine
        yield engine
        engine.dispose()

    @pytest.fixture
    def client(self, app: Flask, web: Engine, held: Held) -> Iterator[FlaskClient]:
        of_web = Held(web)
        yield add_views(app)
        assert held.count == 0
        assert of_web.count == 0

    def test_a_web_session_is_kept(self, client: FlaskClient) -> None:
        client.post("/", data={"name": "ann"})
        assert client.get("/").text == "ann"

    def test_a_view_that_fails_keeps_the_web_session_alone(
        self, client: FlaskClient, engine: Engine
    ) -> None:
        assert client.post("/fail").status_code == 500
        assert client.get("/").text == "bob"
        assert users(engine) == []

    def test_what_a_view_did_not_commit_stays_uncommitted(
        self, client: FlaskClient, engine: Engine
    ) -> None:
        client.post("/unfinished")
        assert client.get("/").text == "bob"
        assert users(engine) == []

    def test_a_hook_that_fails_leaves_nothing_open(
        self, app: Flask, client: FlaskClient
    ) -> None:
        # A web session that is only read is not committed.
        app.config["SESSION_REFRESH_EACH_REQUEST"] = False
        fails = False

        # Flask runs it before Flask-SQLAlchemy's own, which before 3.2 is skipped.
        @app.teardown_appcontext
        def fail(error: BaseException | None) -> None:
            if fails:
                raise OopsError

        client.post("/", data={"name": "ann"})
        fails = True
        with pytest.raises(OopsError):
            client.get("/")


class TestInOneSession:
    """What the page warns of."""

    def test_what_a_view_did_not_commit_is_committed_with_the_web_session(
        self, app: Flask, engine: Engine
    ) -> None:
        db = SQLAlchemy()
        session = FlaskScopedSession(db.session.session_factory)
        db.session = session
        app.config["SQLALCHEMY_DATABASE_URI"] = engine.url
        db.init_app(app)
        session.init_app(app)
        app.config["SESSION_TYPE"] = "sqlalchemy"
        app.config["SESSION_SQLALCHEMY"] = db
        flask_session.Session(app)
        add_views(app).post("/unfinished")
        assert users(engine) == ["bob"]
        with app.app_context():
            db.engine.dispose()
