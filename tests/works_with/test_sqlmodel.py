"""SQLModel: its `Session`, with `exec`, for each context."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy.orm import sessionmaker
from typing_extensions import assert_type

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.support import OopsError

pytest.importorskip("sqlmodel")

from sqlmodel import Field, Session, SQLModel, select

if TYPE_CHECKING:
    from flask import Flask
    from sqlalchemy import Engine

    from tests.support import Held


class Hero(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str


def add_session(app: Flask, engine: Engine) -> FlaskScopedSession[Session]:
    return FlaskScopedSession(sessionmaker(engine, class_=Session), app)


class TestSession:
    @pytest.fixture
    def session(self, app: Flask, engine: Engine) -> FlaskScopedSession[Session]:
        SQLModel.metadata.create_all(engine)
        return add_session(app, engine)

    def test_it_is_sqlmodels_own_in_both_ways(
        self, app: Flask, session: FlaskScopedSession[Session], held: Held
    ) -> None:
        own_session = session.proxy
        with app.app_context():
            assert_type(session(), Session)
            assert_type(own_session, Session)
            assert isinstance(session(), Session)
            own_session.add(Hero(name="ann"))
            own_session.commit()
            heroes = own_session.exec(select(Hero)).all()
            assert_type(heroes[0], Hero)
            assert [hero.name for hero in heroes] == ["ann"]
            assert own_session == current_session
        assert held.count == 0

    def test_a_view_that_fails_leaves_nothing(
        self, app: Flask, session: FlaskScopedSession[Session], held: Held
    ) -> None:
        @app.post("/")
        def fail() -> str:
            session.add(Hero(name="bob"))
            session.flush()
            raise OopsError

        assert app.test_client().post("/").status_code == 500
        assert held.count == 0
        with app.app_context():
            assert session.proxy.exec(select(Hero)).all() == []
