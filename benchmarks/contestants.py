"""The library, its peers and the floors, each set up in its documented way.

Each has an application of its own on the same database, with one view that reads a
user by primary key.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import svcs
from advanced_alchemy.extensions.flask import AdvancedAlchemy, SQLAlchemySyncConfig
from alchemical.flask import Alchemical, Model
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy_lite import SQLAlchemy as SQLAlchemyLite
from sqlalchemy import create_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)

from flask_sqlalchemy_session import FlaskScopedSession, current_session

if TYPE_CHECKING:
    from collections.abc import Iterator

OURS = "this library"
BY_THREAD = "scoped_session"
BY_HAND = "by hand"
EMPTY_HOOK = "empty hook"


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "benchmark_users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class AlchemicalUser(Model):
    __tablename__ = "benchmark_users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@contextmanager
def created_users(url: str) -> Iterator[None]:
    """Make the table that every contestant reads, and drop it in the end."""
    engine = create_engine(url)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all(User(name=f"user {number}") for number in range(100))
    yield
    Base.metadata.drop_all(engine)
    engine.dispose()


@dataclass(frozen=True)
class Contestant:
    """How one library is used. Timed code is source, so that no call is added to it."""

    name: str
    app: Flask
    session: str | None = None
    """The expression for the context's session itself."""
    accessor: str | None = None
    """The expression to which an application adds `.get(...)`, as it documents."""
    names: dict[str, object] = field(default_factory=dict)
    """What these two use."""


def this_library(url: str) -> Contestant:
    app = Flask(__name__)
    session = FlaskScopedSession(sessionmaker(create_engine(url)), app)

    @app.get("/")
    def view() -> str:
        return current_session.get_one(User, 1).name

    names = {"session": session, "proxy": session.proxy}
    return Contestant(
        OURS,
        app,
        "session()",
        "current_session",
        {**names, "current_session": current_session},
    )


def plain_scoped_session(url: str) -> Contestant:
    """The thread's floor: SQLAlchemy's own, with the hook of Flask's documentation."""
    app = Flask(__name__)
    session = scoped_session(sessionmaker(create_engine(url)))

    @app.teardown_appcontext
    def remove(_: BaseException | None) -> None:
        session.remove()

    @app.get("/")
    def view() -> str:
        return session.get_one(User, 1).name

    return Contestant(BY_THREAD, app, "session()", "session", {"session": session})


def flask_sqlalchemy(url: str) -> Contestant:
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = url

    class ModelBase(DeclarativeBase):
        pass

    db = SQLAlchemy(app, model_class=ModelBase)

    class FlaskUser(db.Model):  # type: ignore[misc, name-defined]  # a class made at run time, as its documentation has it
        __tablename__ = "benchmark_users"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    @app.get("/")
    def view() -> str:
        return db.session.get_one(FlaskUser, 1).name

    return Contestant("Flask-SQLAlchemy", app, "db.session()", "db.session", {"db": db})


def flask_sqlalchemy_lite(url: str) -> Contestant:
    app = Flask(__name__)
    app.config["SQLALCHEMY_ENGINES"] = {"default": url}
    db = SQLAlchemyLite(app)

    @app.get("/")
    def view() -> str:
        return db.session.get_one(User, 1).name

    return Contestant(
        "Flask-SQLAlchemy-Lite", app, "db.session", "db.session", {"db": db}
    )


def advanced_alchemy(url: str) -> Contestant:
    app = Flask(__name__)
    alchemy = AdvancedAlchemy(SQLAlchemySyncConfig(connection_string=url), app)

    @app.get("/")
    def view() -> str:
        return alchemy.get_sync_session().get_one(User, 1).name

    session = "alchemy.get_sync_session()"
    return Contestant("Advanced Alchemy", app, session, session, {"alchemy": alchemy})


def alchemical(url: str) -> Contestant:
    app = Flask(__name__)
    app.config["ALCHEMICAL_DATABASE_URL"] = url
    db = Alchemical(app)

    @app.get("/")
    def view() -> str:
        return db.session.get_one(AlchemicalUser, 1).name

    return Contestant("Alchemical", app, "db.session", "db.session", {"db": db})


def services(url: str) -> Contestant:
    app = svcs.flask.init_app(Flask(__name__))
    engine = create_engine(url)

    def make_session() -> Iterator[Session]:
        with Session(engine) as session:
            yield session

    svcs.flask.register_factory(app, Session, make_session)

    @app.get("/")
    def view() -> str:
        return svcs.flask.get(Session).get_one(User, 1).name

    session = "svcs.flask.get(Session)"
    return Contestant("svcs", app, session, session, {"svcs": svcs, "Session": Session})


def by_hand(url: str) -> Contestant:
    """The floor of all: what Python, Flask and SQLAlchemy cost alone."""
    app = Flask(__name__)
    engine = create_engine(url)
    current: ContextVar[Session] = ContextVar("current")
    current.set(Session(engine))

    @app.get("/")
    def view() -> str:
        with Session(engine) as session:
            return session.get_one(User, 1).name

    session = "current.get()"
    names = {"current": current, "Session": Session, "engine": engine}
    return Contestant(BY_HAND, app, session, session, names)


def empty_hook(_: str) -> Contestant:
    """Flask with a teardown hook that does nothing, to compare an idle context with."""
    app = Flask(__name__)

    @app.teardown_appcontext
    def nothing(_: BaseException | None) -> None:
        pass

    return Contestant(EMPTY_HOOK, app)


CONTESTANTS = [
    *(this_library, flask_sqlalchemy, flask_sqlalchemy_lite, advanced_alchemy),
    *(alchemical, services, plain_scoped_session, by_hand, empty_hook),
]
