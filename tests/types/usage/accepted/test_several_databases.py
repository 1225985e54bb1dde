"""Several databases: an object and a proxy for each, of types that differ."""

from __future__ import annotations

import pytest
from flask import Flask
from sqlalchemy import NullPool, create_engine, literal, select
from sqlalchemy.orm import Session, sessionmaker
from typing_extensions import assert_type

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.types.usage import ShopSession, check


class LogSession(Session):
    def append(self, line: str) -> str:
        return self.scalars(select(literal(line))).one()


@pytest.fixture
def logs(app: Flask) -> FlaskScopedSession[LogSession]:
    engine = create_engine("sqlite://", poolclass=NullPool)
    factory = sessionmaker(engine, class_=LogSession)
    return FlaskScopedSession(factory, app, name="logs")


def test_each_has_its_type(
    session: FlaskScopedSession[ShopSession], logs: FlaskScopedSession[LogSession]
) -> None:
    check(assert_type(session.proxy, ShopSession), ShopSession)
    check(assert_type(logs.proxy, LogSession), LogSession)
    check(assert_type(logs().append("sold"), str), str)
    check(assert_type(session().count_users(), int), int)
    check(assert_type(logs.name, str), str)
    both: list[Session] = [session(), logs()]
    assert both[0] is not both[1]


def test_current_session_is_the_default_one(
    session: FlaskScopedSession[ShopSession], logs: FlaskScopedSession[LogSession]
) -> None:
    check(assert_type(current_session, Session), ShopSession)
    assert current_session == session()


def test_they_can_be_told_apart_by_class(
    session: FlaskScopedSession[ShopSession], logs: FlaskScopedSession[LogSession]
) -> None:
    found: list[Session] = [session.proxy, logs.proxy]
    shops = [each for each in found if isinstance(each, ShopSession)]
    check(assert_type(shops[0].count_users(), int), int)
    assert len(shops) == 1
