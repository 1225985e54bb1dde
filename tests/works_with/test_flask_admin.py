"""Flask-Admin: its model views work on the scoped session object."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import CheckConstraint, String, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

pytest.importorskip("flask_admin")

from flask_admin import Admin
from flask_admin.contrib.sqla import ModelView

if TYPE_CHECKING:
    from flask import Flask
    from flask.testing import FlaskClient
    from sqlalchemy import Engine

    from flask_sqlalchemy_session import FlaskScopedSession
    from tests.support import Held

# Flask-Admin 2 wants Flask-SQLAlchemy's `db` in the place of any session, ours or not.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Passing a session object:DeprecationWarning"
)


class Base(DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = "products"
    __table_args__ = (CheckConstraint("name <> 'gold'"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(80))


def add_admin(app: Flask, session: FlaskScopedSession[Session]) -> None:
    Admin(app).add_view(ModelView(Product, session))


@pytest.fixture
def client(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine
) -> FlaskClient:
    Base.metadata.create_all(engine)
    app.secret_key = "for the flashed messages"  # noqa: S105  # no secret
    add_admin(app, session)
    return app.test_client()


def names(engine: Engine) -> list[str]:
    with Session(engine) as session:
        return list(session.scalars(select(Product.name)))


def test_a_view_lists_makes_edits_and_deletes(
    client: FlaskClient, engine: Engine, held: Held
) -> None:
    assert "There are no items" in client.get("/admin/product/").text

    made = client.post(
        "/admin/product/new/", data={"name": "tea"}, follow_redirects=True
    )
    assert "Record was successfully created" in made.text
    assert names(engine) == ["tea"]

    assert 'value="tea"' in client.get("/admin/product/edit/?id=1").text
    edited = client.post(
        "/admin/product/edit/?id=1", data={"name": "rye"}, follow_redirects=True
    )
    assert "Record was successfully saved" in edited.text
    assert names(engine) == ["rye"]

    deleted = client.post(
        "/admin/product/delete/", data={"id": 1}, follow_redirects=True
    )
    assert "Record was successfully deleted" in deleted.text
    assert names(engine) == []
    assert held.count == 0


def test_what_the_database_refuses_is_told_and_rolled_back(
    client: FlaskClient, engine: Engine, held: Held
) -> None:
    refused = client.post("/admin/product/new/", data={"name": "gold"})
    assert "CHECK constraint failed" in refused.text
    assert held.count == 0
    client.post("/admin/product/new/", data={"name": "tea"})
    assert names(engine) == ["tea"]


def test_a_view_that_fails_leaves_nothing_open(
    client: FlaskClient, engine: Engine, held: Held
) -> None:
    Base.metadata.drop_all(engine)
    assert client.get("/admin/product/").status_code == 500
    assert held.count == 0
