"""Flask-SQLAlchemy: this library's session beside `db.session`, and in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from flask import Flask
from sqlalchemy import inspect, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from flask_sqlalchemy_session.testing import isolate
from tests.support import Held, OopsError, raises

pytest.importorskip("flask_sqlalchemy")

from flask_sqlalchemy import SQLAlchemy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Base(DeclarativeBase):
    pass


# The page shows what is in its place from here
db = SQLAlchemy(model_class=Base)
session = FlaskScopedSession(db.session.session_factory)
db.session = session


def init_app(app: Flask) -> None:
    db.init_app(app)
    session.init_app(app)


# to here.


# The page shows what is beside it from here
beside = SQLAlchemy(model_class=Base)


def make_session() -> Session:
    return Session(beside.engine)


own_session = FlaskScopedSession(make_session)


def init_app_beside(app: Flask) -> None:
    beside.init_app(app)
    own_session.init_app(app)


# to there.


class User(db.Model):  # type: ignore[name-defined,misc]  # a class that is made at run time
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Event(db.Model):  # type: ignore[name-defined,misc]  # as above
    __tablename__ = "events"
    __bind_key__ = "log"

    id: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[str]


class Account(Base):
    __tablename__ = "accounts"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/shop.sqlite3"
    app.config["SQLALCHEMY_BINDS"] = {"log": f"sqlite:///{tmp_path}/log.sqlite3"}
    return app


class TestInItsPlace:
    @pytest.fixture(autouse=True)
    def tables(self, app: Flask) -> Iterator[None]:
        init_app(app)
        with app.app_context():
            db.create_all()
            engines = list(db.engines.values())
        self.held = [Held(engine) for engine in engines]
        yield
        assert [held.count for held in self.held] == [0, 0]
        for engine in engines:
            engine.dispose()

    def test_both_names_are_one_session(self, app: Flask) -> None:
        with app.app_context():
            assert db.session() is session()
            assert db.session() == current_session
            db.session.add(User(name="ann"))
            assert current_session.scalars(select(User.name)).one() == "ann"

    def test_its_queries_pages_and_404s_use_the_session(self, app: Flask) -> None:
        @app.get("/users/<int:key>")
        def show(key: int) -> str:
            return str(db.get_or_404(User, key).name)

        @app.get("/users")
        def list_() -> dict[str, object]:
            page = db.paginate(select(User).order_by(User.id), per_page=1)
            assert page.total is not None
            return {"names": [user.name for user in page], "total": page.total}

        @app.post("/users")
        def add() -> str:
            current_session.add_all([User(name="ann"), User(name="bob")])
            assert User.query.count() == 2
            current_session.commit()
            return ""

        client = app.test_client()
        client.post("/users")
        assert client.get("/users/1").text == "ann"
        assert client.get("/users/3").status_code == 404
        assert client.get("/users").get_json() == {"names": ["ann"], "total": 2}

    def test_a_bind_key_leads_to_its_database(self, app: Flask) -> None:
        with app.app_context():
            current_session.add_all([User(name="ann"), Event(what="she came")])
            current_session.commit()
            assert not inspect(db.engine).has_table("events")
            assert inspect(db.engines["log"]).get_table_names() == ["events"]
            assert current_session.scalars(select(Event.what)).one() == "she came"
            assert current_session.get_bind(Event) is db.engines["log"]

    def test_a_view_that_fails_leaves_nothing(self, app: Flask) -> None:
        @app.get("/")
        def fail() -> str:
            db.session.add_all([User(name="ann"), Event(what="she came")])
            db.session.flush()
            raise OopsError

        assert app.test_client().get("/").status_code == 500
        assert [held.count for held in self.held] == [0, 0]
        with app.app_context():
            assert db.session.scalars(select(User)).all() == []

    def test_a_hook_that_fails_keeps_no_session_from_its_release(
        self, app: Flask
    ) -> None:
        # Flask runs it before Flask-SQLAlchemy's own, which before 3.2 is skipped.
        @app.teardown_appcontext
        def fail(error: BaseException | None) -> None:
            raise OopsError

        with raises(OopsError), app.app_context():
            db.session.scalars(select(User)).all()
        assert [held.count for held in self.held] == [0, 0]

    def test_isolate_rolls_back_what_the_session_commits(self, app: Flask) -> None:
        with isolate(session):
            with app.app_context():
                db.session.add_all([User(name="ann"), Event(what="she came")])
                db.session.commit()
            with app.app_context():
                assert db.session.scalars(select(User.name)).one() == "ann"
        with app.app_context():
            assert db.session.scalars(select(User)).all() == []
            assert db.session.scalars(select(Event)).all() == []


class TestBesideIt:
    @pytest.fixture(autouse=True)
    def tables(self, app: Flask) -> Iterator[None]:
        init_app_beside(app)
        with app.app_context():
            beside.create_all()
            engines = list(beside.engines.values())
            self.held = Held(beside.engine)
        yield
        assert self.held.count == 0
        for engine in engines:
            engine.dispose()

    def test_each_sees_what_the_other_committed(self, app: Flask) -> None:
        with app.app_context():
            beside.session.add(Account(name="ann"))
            assert current_session.scalars(select(Account)).all() == []
            beside.session.commit()
            assert current_session.scalars(select(Account.name)).one() == "ann"
            assert self.held.count == 1
        with app.app_context():
            current_session.get_one(Account, 1).name = "bob"
            current_session.commit()
            assert beside.session.get_one(Account, 1).name == "bob"

    def test_a_view_that_fails_leaves_nothing_of_either(self, app: Flask) -> None:
        @app.get("/")
        def fail() -> str:
            beside.session.scalars(select(Account)).all()
            current_session.add(Account(name="ann"))
            current_session.flush()
            raise OopsError

        assert app.test_client().get("/").status_code == 500
        assert self.held.count == 0
        with app.app_context():
            assert beside.session.scalars(select(Account)).all() == []
