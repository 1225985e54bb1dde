"""`session.proxy`: a proxy typed as the application's own session."""

from __future__ import annotations

from flask import Flask
from sqlalchemy import Engine, select
from sqlalchemy.orm import Query, Session, SessionTransaction, sessionmaker
from typing_extensions import assert_type

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.support import User
from tests.types.usage import ShopSession, check, takes_session, takes_shop_session


def test_it_is_typed_as_the_session(session: FlaskScopedSession[ShopSession]) -> None:
    check(assert_type(session.proxy, ShopSession), ShopSession)
    check(assert_type(session.proxy.count_users(), int), int)
    assert session.proxy == session() == current_session


def test_it_goes_where_sessions_go(session: FlaskScopedSession[ShopSession]) -> None:
    check(assert_type(takes_session(session.proxy), Session), ShopSession)
    check(assert_type(takes_shop_session(session.proxy), int), int)


def test_it_is_a_session_in_use(session: FlaskScopedSession[ShopSession]) -> None:
    shop = session.proxy
    check(assert_type(shop.get_one(User, 1), User), User)
    check(assert_type(shop.scalars(select(User.name)).one(), str), str)
    check(assert_type(shop.query(User), Query[User]), Query)
    shop.rollback()
    check(assert_type(shop.begin(), SessionTransaction), SessionTransaction)
    with shop as entered:
        check(assert_type(entered, ShopSession), ShopSession)


def test_it_is_typed_as_a_plain_session_where_that_is_made(
    app: Flask, engine: Engine
) -> None:
    session = FlaskScopedSession(sessionmaker(engine), app, name="other")
    check(assert_type(session.proxy, Session), Session)


def test_it_can_be_kept_by_a_name_of_its_own(
    session: FlaskScopedSession[ShopSession],
) -> None:
    kept: Session = session.proxy
    check(kept, ShopSession)
