"""One session for all applications, and one engine for each."""

from flask import Flask, current_app
from flask_sqlalchemy_session import FlaskScopedSession
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session


def engine() -> Engine:
    found: Engine = current_app.extensions["engine"]
    return found


def make_session() -> Session:
    return Session(engine())


session = FlaskScopedSession(make_session)


def init_app(app: Flask) -> None:
    app.extensions["engine"] = create_engine(
        app.config["DATABASE_URL"], **app.config["ENGINE_OPTIONS"]
    )
    session.init_app(app)
