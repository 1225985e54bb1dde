"""Flask-Security: its datastore works on the scoped session object."""

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

pytest.importorskip("flask_security")

from flask_security import (
    Security,
    SQLAlchemySessionUserDatastore,
    auth_required,
    current_user,
    hash_password,
)
from flask_security.models import sqla

if TYPE_CHECKING:
    from flask import Flask
    from flask.testing import FlaskClient
    from sqlalchemy import Engine

    from tests.support import Held


class Base(DeclarativeBase):
    pass


sqla.FsModels.set_db_info(base_model=Base)  # type: ignore[no-untyped-call]  # it has no annotations


class Role(Base, sqla.FsRoleMixin):
    __tablename__ = "role"


class User(Base, sqla.FsUserMixin):
    __tablename__ = "user"

    name: Mapped[str | None] = mapped_column(default=None)


def add_security(
    app: Flask, session: FlaskScopedSession[Session]
) -> SQLAlchemySessionUserDatastore:
    datastore = SQLAlchemySessionUserDatastore(session, User, Role)
    Security(app, datastore)
    return datastore


ANN = {"email": "ann@example.com", "password": "correct horse"}
BOB = {
    "email": "bob@example.com",
    "password": "battery staple",
    "password_confirm": "battery staple",
}


@pytest.fixture
def client(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine
) -> FlaskClient:
    """A browser, in a shop where Ann has an account."""
    Base.metadata.create_all(engine)
    app.config.update(
        SECRET_KEY="for the cookies",  # noqa: S106  # no secret
        SECURITY_PASSWORD_SALT="for the passwords",  # noqa: S106  # no secret
        SECURITY_PASSWORD_HASH="pbkdf2_sha512",  # noqa: S106  # its name, not a hash
        SECURITY_REGISTERABLE=True,
        SECURITY_SEND_REGISTER_EMAIL=False,
        SECURITY_EMAIL_VALIDATOR_ARGS={"check_deliverability": False},
        WTF_CSRF_ENABLED=False,
    )
    datastore = add_security(app, session)
    with app.app_context():
        datastore.create_user(
            email=ANN["email"], password=hash_password(ANN["password"])
        )
        session.commit()

    @app.get("/email")
    @auth_required("session")
    def show() -> str:
        assert object_session(current_user) is session()
        return str(current_user.email)

    @app.post("/fail")
    @auth_required("session")
    def fail() -> str:
        current_user.active = False
        current_session.flush()
        raise LookupError

    return app.test_client()


def emails(engine: Engine) -> list[str]:
    with Session(engine) as session:
        return list(session.scalars(select(User.email)))


def test_who_logs_in_is_known(client: FlaskClient, held: Held) -> None:
    assert client.post("/login", json=ANN).status_code == 200
    assert client.get("/email").text == ANN["email"]
    assert held.count == 0


def test_who_registers_is_stored(
    client: FlaskClient, engine: Engine, held: Held
) -> None:
    assert client.post("/register", json=BOB).status_code == 200
    assert held.count == 0
    assert emails(engine) == [ANN["email"], BOB["email"]]
    assert client.get("/email").text == BOB["email"]


def test_a_wrong_password_is_refused(client: FlaskClient, held: Held) -> None:
    wrong = ANN | {"password": "wrong"}
    assert client.post("/login", json=wrong).status_code == 400
    assert held.count == 0


def test_a_view_that_fails_leaves_the_account_as_it_was(
    client: FlaskClient, held: Held
) -> None:
    client.post("/login", json=ANN)
    assert client.post("/fail").status_code == 500
    assert held.count == 0
    assert client.get("/email").text == ANN["email"]


def test_a_database_that_fails_leaves_nothing_open(
    client: FlaskClient, engine: Engine, held: Held
) -> None:
    Base.metadata.drop_all(engine)
    assert client.post("/login", json=ANN).status_code == 500
    assert held.count == 0
