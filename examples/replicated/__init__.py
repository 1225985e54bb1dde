"""The notes application: writes go to a primary database, reads to a replica of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from flask import Flask, request
from sqlalchemy import select

from flask_sqlalchemy_session import FlaskScopedSession

from .models import Note
from .sessions import ReplicatedSession

if TYPE_CHECKING:
    from sqlalchemy import Engine


def create_app(primary: Engine, replica: Engine) -> Flask:
    """Make the application.

    :param primary: the database that is written to. It has the table.
    :param replica: a copy of it, which lags behind.
    """
    app = Flask(__name__)
    make_session = partial(ReplicatedSession, primary, replica)
    current_session = FlaskScopedSession(make_session, app).proxy

    @app.get("/notes")
    def notes() -> list[str]:
        return list(current_session.scalars(select(Note.text).order_by(Note.id)))

    @app.post("/notes")
    def add_note() -> tuple[list[str], int]:
        with current_session.begin():
            current_session.add(Note(text=request.form["text"]))
        return notes(), 201

    return app
