"""An engine that pings its connections before it hands them out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from flask_sqlalchemy_session.testing import isolate
from tests.support import Base, User

if TYPE_CHECKING:
    from flask import Flask


def test_an_engine_with_pre_ping_is_isolated(app: Flask, postgresql_url: str) -> None:
    engine = create_engine(postgresql_url, pool_pre_ping=True)
    Base.metadata.create_all(engine)
    session = FlaskScopedSession(sessionmaker(engine), app)
    for _ in range(2):
        with isolate(session):
            for names in (["ann"], ["bob"]):
                with app.app_context():
                    current_session.add_all(User(name=name) for name in names)
                    current_session.commit()
            with app.app_context():
                assert current_session.scalar(select(func.count(User.id))) == 2
    with app.app_context():
        assert current_session.scalar(select(func.count(User.id))) == 0
    Base.metadata.drop_all(engine)
    engine.dispose()
