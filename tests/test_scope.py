"""Promises 1 and 2: a context has one session of its own, made when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from flask_sqlalchemy_session import current_session

if TYPE_CHECKING:
    from flask import Flask
    from sqlalchemy.orm import Session

    from flask_sqlalchemy_session import FlaskScopedSession

    from .support import Held


def test_a_context_has_one_session(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    with app.app_context():
        assert session() is session()
        assert session() == current_session
        current_session.execute(text("SELECT 1"))
        assert held.count == 1
    assert held.count == 0
