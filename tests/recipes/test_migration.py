"""The first step away from Flask-SQLAlchemy: its session becomes ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.query import Query
from sqlalchemy import ForeignKey, event, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from flask_sqlalchemy_session.testing import isolate
from tests.support import raises

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Shop:
    """An application of Flask-SQLAlchemy, with two databases and our session."""

    def __init__(self, url: str, stats: str) -> None:
        class Base(DeclarativeBase):
            pass

        self.db = db = SQLAlchemy(
            model_class=Base, session_options={"expire_on_commit": False}
        )
        self.session = FlaskScopedSession(db.session.session_factory)
        db.session = self.session

        class Customer(db.Model):  # type: ignore[misc, name-defined]  # its type is `Any`
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str]

        class Letter(db.Model):  # type: ignore[misc, name-defined]  # its type is `Any`
            id: Mapped[int] = mapped_column(primary_key=True)
            customer_id: Mapped[int] = mapped_column(ForeignKey("customer.id"))

        class Visit(db.Model):  # type: ignore[misc, name-defined]  # its type is `Any`
            __bind_key__ = "stats"
            id: Mapped[int] = mapped_column(primary_key=True)

        self.Customer, self.Letter, self.Visit = Customer, Letter, Visit
        self.app = Flask("shop")
        self.app.config["SQLALCHEMY_DATABASE_URI"] = url
        self.app.config["SQLALCHEMY_BINDS"] = {"stats": stats}
        db.init_app(self.app)
        self.session.init_app(self.app)


@pytest.fixture
def shop(postgresql_url: str, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(postgresql_url, f"sqlite:///{tmp_path}/stats.sqlite3")
    with shop.app.app_context():
        shop.db.create_all()
        engines = list(shop.db.engines.values())
    yield shop
    with shop.app.app_context():
        shop.db.drop_all()
    for engine in engines:
        engine.dispose()


def test_both_names_reach_one_session_and_one_transaction(shop: Shop) -> None:
    with shop.app.app_context():
        shop.db.session.add(shop.Customer(name="ann"))
        assert current_session.scalar(select(func.count(shop.Customer.id))) == 1
        assert Query(shop.Customer, session=shop.db.session()).count() == 1
        assert shop.db.paginate(select(shop.Customer)).total == 1


def test_its_options_binds_and_listeners_stay(shop: Shop) -> None:
    heard: list[Session] = []
    event.listen(shop.db.session, "before_commit", heard.append)
    with shop.app.app_context():
        ann = shop.Customer(name="ann")
        current_session.add_all([ann, shop.Visit()])
        current_session.commit()
        assert heard == [current_session]
        assert not current_session.in_transaction()
        assert ann.name == "ann"
        assert not current_session.in_transaction()  # it did not expire
        assert current_session.get_bind(shop.Visit) is shop.db.engines["stats"]
        assert current_session.get_bind(shop.Customer) is shop.db.engine


def test_isolate_takes_both_databases(shop: Shop) -> None:
    with isolate(shop.session), shop.app.app_context():
        current_session.add_all([shop.Customer(name="ann"), shop.Visit()])
        current_session.commit()
    with shop.app.app_context():
        for model in (shop.Customer, shop.Visit):
            assert current_session.scalars(select(model)).all() == []


def test_it_is_released_though_a_teardown_function_fails(shop: Shop) -> None:
    failures = [LookupError()]

    @shop.app.teardown_appcontext
    def fail_once(error: BaseException | None) -> None:
        if failures:
            raise failures.pop()

    with raises(LookupError), shop.app.app_context():
        current_session.connection()
    with shop.app.app_context():
        assert "Checked out connections: 0" in shop.db.engine.pool.status()
