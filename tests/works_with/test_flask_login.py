"""Flask-Login: the account of each request is loaded in the request's session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    object_session,
)

from flask_sqlalchemy_session import FlaskScopedSession, current_session

pytest.importorskip("flask_login")

from flask_login import (
    LoginManager,
    UserMixin,
    current_user,
    login_required,
    login_user,
    logout_user,
)

if TYPE_CHECKING:
    from flask import Flask
    from flask.testing import FlaskClient
    from sqlalchemy import Engine

    from tests.support import Held


class Base(DeclarativeBase):
    pass


class Account(UserMixin, Base):
    __tablename__ = "accounts"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


def add_login(app: Flask) -> None:
    login = LoginManager(app)

    @login.user_loader
    def load_account(key: str) -> Account | None:
        return current_session.get(Account, int(key))


@pytest.fixture
def client(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine
) -> FlaskClient:
    """A browser that has logged in as Ann."""
    Base.metadata.create_all(engine)
    with Session(engine) as setup:
        setup.add(Account(name="ann"))
        setup.commit()
    app.secret_key = "for the cookie"  # noqa: S105  # no secret
    add_login(app)

    @app.post("/login")
    def login() -> str:
        login_user(current_session.scalars(select(Account)).one())
        return ""

    @app.post("/logout")
    def logout() -> str:
        logout_user()
        return ""

    @app.get("/name")
    @login_required
    def show() -> str:
        assert object_session(current_user) is session()
        return str(current_user.name)

    @app.post("/name")
    @login_required
    def rename() -> str:
        current_user.name = "bob"
        current_session.commit()
        return ""

    @app.post("/name/fail")
    @login_required
    def fail() -> str:
        current_user.name = "bob"
        current_session.flush()
        raise LookupError

    browser = app.test_client()
    browser.post("/login")
    return browser


def test_a_view_has_the_account_in_its_session(client: FlaskClient, held: Held) -> None:
    assert client.get("/name").text == "ann"
    assert held.count == 0


def test_a_view_changes_the_account_and_commits(
    client: FlaskClient, held: Held
) -> None:
    client.post("/name")
    assert held.count == 0
    assert client.get("/name").text == "bob"


def test_who_logs_out_is_refused(client: FlaskClient, held: Held) -> None:
    client.post("/logout")
    assert client.get("/name").status_code == 401
    assert held.count == 0


def test_an_account_that_was_deleted_is_refused(
    client: FlaskClient, engine: Engine, held: Held
) -> None:
    with Session(engine) as other:
        other.delete(other.scalars(select(Account)).one())
        other.commit()
    assert client.get("/name").status_code == 401
    assert held.count == 0


def test_a_view_that_fails_leaves_the_account_as_it_was(
    client: FlaskClient, held: Held
) -> None:
    assert client.post("/name/fail").status_code == 500
    assert held.count == 0
    assert client.get("/name").text == "ann"


def test_a_loader_that_fails_leaves_nothing_open(
    client: FlaskClient, engine: Engine, held: Held
) -> None:
    Base.metadata.drop_all(engine)
    assert client.get("/name").status_code == 500
    assert held.count == 0
