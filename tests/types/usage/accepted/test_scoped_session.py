"""`FlaskScopedSession`: a scoped session, with what `scoped_session` leaves out."""

from __future__ import annotations

from flask import Flask, current_app
from sqlalchemy import Engine, select
from sqlalchemy.orm import (
    Query,
    Session,
    SessionTransaction,
    scoped_session,
    sessionmaker,
)
from typing_extensions import assert_type

from flask_sqlalchemy_session import FlaskScopedSession
from tests.support import User
from tests.types.usage import (
    ShopSession,
    check,
    takes_plain,
    takes_scoped,
    takes_session,
    takes_shop_scoped,
    takes_shop_session,
)

Shop = FlaskScopedSession[ShopSession]


def test_it_is_set_up(app: Flask) -> None:
    session = FlaskScopedSession(sessionmaker(), name="other")
    session.init_app(app)
    session.init_app(current_app)
    check(assert_type(session.name, str), str)


def test_calling_it_gives_the_session(session: Shop) -> None:
    check(assert_type(session(), ShopSession), ShopSession)
    check(assert_type(session().count_users(), int), int)
    check(assert_type(session.registry(), ShopSession), ShopSession)
    assert session() is session.registry()


def test_calling_it_with_keywords_gives_the_session(session: Shop) -> None:
    check(assert_type(session(autoflush=False), ShopSession), ShopSession)


def test_its_session_goes_where_sessions_go(session: Shop) -> None:
    check(assert_type(takes_session(session()), Session), ShopSession)
    check(assert_type(takes_shop_session(session()), int), int)
    check(assert_type(takes_shop_scoped(session), int), int)


def test_it_is_a_scoped_session(app: Flask, engine: Engine) -> None:
    session = FlaskScopedSession(sessionmaker(engine), app, name="other")
    check(assert_type(takes_scoped(session), Session), Session)
    scoped: scoped_session[Session] = session
    check(assert_type(scoped(), Session), Session)


def test_without_a_parameter_it_is_of_sessions(app: Flask, engine: Engine) -> None:
    session: FlaskScopedSession = FlaskScopedSession(Session, app, name="other")
    check(assert_type(session, FlaskScopedSession[Session]), FlaskScopedSession)
    check(assert_type(session(), Session), Session)
    check(assert_type(takes_plain(session), Session), Session)


def test_it_reads_and_writes(session: Shop) -> None:
    users = select(User)
    check(assert_type(session.get(User, 2), User | None), type(None))
    check(assert_type(session.get_one(User, 1), User), User)
    check(assert_type(session.scalars(users).one(), User), User)
    check(assert_type(session.execute(users).scalar_one(), User), User)
    check(assert_type(session.query(User), Query[User]), Query)
    check(assert_type(session.add(User(name="bob")), None), type(None))
    check(assert_type(session.commit(), None), type(None))


def test_it_tells_of_transactions(session: Shop) -> None:
    check(assert_type(session.in_transaction(), bool), bool)
    check(assert_type(session.in_nested_transaction(), bool), bool)
    outer = session.get_transaction()
    check(assert_type(outer, SessionTransaction | None), type(None))
    with session.begin():
        inner = session.begin_nested()
        check(assert_type(inner, SessionTransaction), SessionTransaction)
        found = session.get_nested_transaction()
        check(assert_type(found, SessionTransaction | None), SessionTransaction)
        inner.commit()


def test_it_is_a_context_manager(session: Shop) -> None:
    with session as entered:
        check(assert_type(entered, ShopSession), ShopSession)


def test_it_has_the_session_s_settings(session: Shop) -> None:
    check(assert_type(session.expire_on_commit, bool), bool)
    check(assert_type(session.autobegin, bool), bool)
    check(assert_type(session.twophase, bool), bool)
    check(assert_type(session.hash_key, int), int)
    session.expire_on_commit = False
    session.join_transaction_mode = "create_savepoint"
    check(assert_type(session.invalidate(), None), type(None))


def test_it_is_configured_and_removed(session: Shop) -> None:
    check(assert_type(session.configure(autoflush=False), None), type(None))
    check(assert_type(session.remove(), None), type(None))


class CountingScopedSession(FlaskScopedSession[ShopSession]):
    """What a subclass may add and extend."""

    removed = 0

    def remove(self) -> None:
        self.removed += 1
        super().remove()

    def count_users(self) -> int:
        return self().count_users()


def test_a_subclass_keeps_its_session_type(app: Flask, engine: Engine) -> None:
    session = CountingScopedSession(lambda: ShopSession(engine), app, name="other")
    check(assert_type(session, CountingScopedSession), CountingScopedSession)
    check(assert_type(session(), ShopSession), ShopSession)
    check(assert_type(session.proxy, ShopSession), ShopSession)
    check(assert_type(session.count_users(), int), int)
    check(assert_type(takes_shop_scoped(session), int), int)
    session.remove()
    check(assert_type(session.removed, int), int)
