"""`current_session` is a `Session`, in every way that its type promises."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.orm import (
    Query,
    Session,
    SessionTransaction,
    object_session,
)
from typing_extensions import assert_type

from flask_sqlalchemy_session import current_session
from tests.support import User
from tests.types.usage import check, takes_session


def test_it_is_a_session() -> None:
    check(assert_type(current_session, Session), Session)
    check(assert_type(takes_session(current_session), Session), Session)


def test_it_gets() -> None:
    check(assert_type(current_session.get(User, 1), User | None), User)
    check(assert_type(current_session.get_one(User, 1), User), User)


def test_it_selects() -> None:
    users = select(User)
    names = select(User.name)
    check(assert_type(current_session.scalars(users).one(), User), User)
    check(assert_type(current_session.scalars(names).all()[0], str), str)
    check(assert_type(current_session.scalar(names), str | None), str)
    check(assert_type(current_session.execute(users).scalar_one(), User), User)
    check(assert_type(current_session.execute(names).scalars().one(), str), str)


def test_it_queries() -> None:
    check(assert_type(current_session.query(User), Query[User]), Query)
    check(assert_type(current_session.query(User).one(), User), User)
    query = Query[User](User).with_session(current_session)
    check(assert_type(query.one(), User), User)


def test_it_writes() -> None:
    user = User(name="bob")
    check(assert_type(current_session.add(user), None), type(None))
    check(assert_type(current_session.flush(), None), type(None))
    check(assert_type(current_session.merge(user), User), User)
    check(assert_type(current_session.refresh(user), None), type(None))
    current_session.execute(update(User).values(name="eve"))
    current_session.execute(delete(User))
    check(assert_type(current_session.rollback(), None), type(None))


def test_it_begins() -> None:
    with current_session.begin():
        check(assert_type(current_session.in_transaction(), bool), bool)
    check(assert_type(current_session.begin(), SessionTransaction), SessionTransaction)


def test_it_sets_savepoints() -> None:
    nested = current_session.begin_nested()
    check(assert_type(nested, SessionTransaction), SessionTransaction)
    check(assert_type(current_session.in_nested_transaction(), bool), bool)


def test_it_stops_autoflush() -> None:
    with current_session.no_autoflush as session:
        check(assert_type(session, Session), Session)


def test_it_has_info() -> None:
    check(assert_type(current_session.info, dict[Any, Any]), dict)


def test_it_gives_its_connection() -> None:
    check(assert_type(current_session.connection(), Connection), Connection)


def test_it_is_the_session_of_its_objects() -> None:
    user = current_session.get_one(User, 1)
    check(assert_type(object_session(user), Session | None), Session)
    assert object_session(user) == current_session
    assert user in current_session


def test_it_is_a_context_manager() -> None:
    with current_session as session:
        check(assert_type(session, Session), Session)


def test_it_can_be_written_to() -> None:
    current_session.autoflush = False
    current_session.info["reason"] = "a large import"
    check(assert_type(current_session.expire_on_commit, bool), bool)
