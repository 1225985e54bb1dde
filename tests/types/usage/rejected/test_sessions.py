"""What a session does not have, and where it does not fit.

Some lines here work at run time, and are rejected on purpose: a type that let them
pass would let every misspelling pass.
"""

from __future__ import annotations

import pytest
from flask import Flask
from sqlalchemy import Engine, select
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.support import User
from tests.types.usage import (
    ShopSession,
    takes_plain,
    takes_scoped,
    takes_session,
    takes_shop_scoped,
    takes_shop_session,
)

Shop = FlaskScopedSession[ShopSession]
Plain = FlaskScopedSession[Session]


@pytest.fixture
def plain(app: Flask, engine: Engine) -> Plain:
    return FlaskScopedSession(sessionmaker(engine), app, name="plain")


def test_a_misspelt_method_of_current_session() -> None:
    with pytest.raises(AttributeError, match="qeury"):
        current_session.qeury(User)  # rejected: no such attribute


def test_a_misspelt_method_of_the_scoped_session(session: Shop) -> None:
    with pytest.raises(AttributeError, match="qeury"):
        session.qeury(User)  # rejected: no such attribute


def test_a_misspelt_method_of_the_session(session: Shop) -> None:
    with pytest.raises(AttributeError, match="qeury"):
        session().qeury(User)  # rejected: no such attribute


def test_a_misspelt_method_of_the_proxy(session: Shop) -> None:
    with pytest.raises(AttributeError, match="qeury"):
        session.proxy.qeury(User)  # rejected: no such attribute


def test_a_misspelt_method_of_the_registry_s_session(session: Shop) -> None:
    with pytest.raises(AttributeError, match="qeury"):
        session.registry().qeury(User)  # rejected: no such attribute


def test_a_misspelt_method_in_a_with_statement(session: Shop) -> None:
    with session as entered, pytest.raises(AttributeError, match="qeury"):
        entered.qeury(User)  # rejected: no such attribute


def test_a_misspelt_attribute_is_not_set(session: Shop) -> None:
    with pytest.raises(AttributeError, match="expire"):
        session.expire_on_comit = False  # rejected: no such attribute


def test_a_misspelt_attribute_of_current_session() -> None:
    current_session.expire_on_comit = False  # rejected: no such attribute
    assert "expire_on_comit" in vars(current_session)


def test_a_misspelt_attribute_of_the_proxy(session: Shop) -> None:
    session.proxy.expire_on_comit = False  # rejected: no such attribute
    assert "expire_on_comit" in vars(session())


def test_a_setting_of_the_wrong_type(session: Shop) -> None:
    session.expire_on_commit = "never"  # rejected: no bool
    session.join_transaction_mode = "savepoint"  # rejected: no such mode


def test_what_is_only_read(session: Shop) -> None:
    with pytest.raises(AttributeError):
        session.name = "other"  # rejected: read-only
    with pytest.raises(AttributeError):
        session.proxy = ShopSession()  # rejected: read-only


def test_arguments_that_a_method_does_not_take(session: Shop) -> None:
    with pytest.raises(TypeError):
        current_session.get(User)  # rejected: no identity
    with pytest.raises(TypeError):
        current_session.commit(True)  # rejected: takes no argument
    with pytest.raises(TypeError):
        session.remove(current_session)  # rejected: takes no argument
    with pytest.raises(TypeError):
        session.in_transaction(True)  # rejected: takes no argument
    with pytest.raises(TypeError):
        session(False)  # rejected: takes only keywords
    with pytest.raises(ArgumentError):
        session.proxy.scalars("SELECT 1")  # rejected: a string


def test_results_are_no_any() -> None:
    user = current_session.get_one(User, 1)
    with pytest.raises(AttributeError):
        user.nmae.upper()  # rejected: no such attribute
    with pytest.raises(AttributeError):
        current_session.scalars(select(User)).one().nmae()  # rejected: no attribute
    with pytest.raises(AttributeError):
        current_session.get(User, 2).name.upper()  # rejected: may be None


def test_a_plain_session_where_a_subclass_is_wanted(plain: Plain) -> None:
    with pytest.raises(AttributeError):
        takes_shop_session(plain())  # rejected: a plain Session
    with pytest.raises(AttributeError):
        takes_shop_session(plain.proxy)  # rejected: a plain Session
    with pytest.raises(AttributeError):
        takes_shop_scoped(plain)  # rejected: of plain Sessions
    with pytest.raises(AttributeError):
        takes_shop_session(takes_plain(plain))  # rejected: a plain Session


def test_current_session_where_a_subclass_is_wanted() -> None:
    # It is one here; that of another application may not be.
    takes_shop_session(current_session)  # rejected: a Session to the checker
    current_session.count_users()  # rejected: a Session to the checker


def test_a_method_of_the_subclass_through_the_scoped_session(session: Shop) -> None:
    assert session().count_users() == 1
    assert session.count_users() == 1  # rejected: `session()` and `proxy` have it


def test_a_scoped_session_where_a_session_is_wanted(session: Shop) -> None:
    takes_session(session)  # rejected: not a Session
    takes_shop_session(session)  # rejected: not a Session
    takes_session(FlaskScopedSession)  # rejected: a class


def test_a_session_where_a_scoped_session_is_wanted(session: Shop) -> None:
    with pytest.raises(TypeError):
        takes_scoped(session.proxy)  # rejected: not a scoped_session
    takes_scoped(current_session)  # rejected: not a scoped_session


def test_a_scoped_session_of_a_subclass_is_none_of_sessions(session: Shop) -> None:
    # Whoever takes one of sessions may put a plain session into its registry.
    takes_scoped(session)  # rejected: of another type
    takes_plain(session)  # rejected: of another type


def test_a_scoped_session_of_sqlalchemy_s_own(engine: Engine) -> None:
    scoped = scoped_session(sessionmaker(engine))
    assert takes_plain(scoped) is scoped()  # rejected: a plain scoped_session
    scoped.remove()


def test_the_names_of_version_1_are_for_run_time_only(session: Shop) -> None:
    assert current_session() is session()  # rejected: a Session is not called
    current_session.remove()  # rejected: a Session has none
    assert current_session.registry is session.registry  # rejected: it has none
    current_session.configure(autoflush=False)  # rejected: it has none


def test_the_application_s_attribute_is_for_run_time_only(app: Flask) -> None:
    assert app.scoped_session() == current_session  # rejected: Flask has none


def test_what_a_proxy_has_is_the_session_s() -> None:
    current_session._get_current_object()  # rejected: not a session's
