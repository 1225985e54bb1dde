"""The library, its peers and the hand-written floor, each set up in its documented way.

Each is given an application of its own on the same database, with one view that reads
a user by primary key.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
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
FLOOR = "by hand"
EMPTY_HOOK = "empty hook"
BY_THREAD = "scoped_session"


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
    names: dict[str, object]
    """What the source below uses."""
    imports: str
    """The import statement that an application has."""
    session: str | None = None
    """The expression for the context's session itself."""
    accessor: str | None = None
    """The expression to which an application adds `.get(...)`, as it documents."""
    use: str | None = None
    """The statement by which a context uses its session once, `session` if there is
    none."""
    own_session: bool = True
    """Whether contexts that are open at once have sessions of their own."""


def this_library(url: str) -> Contestant:
    app = Flask(__name__)
    session = FlaskScopedSession(sessionmaker(create_engine(url)), app)

    @app.get("/")
    def view() -> str:
        return current_session.get_one(User, 1).name

    return Contestant(
        OURS,
        app,
        {
            "session": session,
            "current_session": current_session,
            "proxy": session.proxy,
        },
        "from flask_sqlalchemy_session import FlaskScopedSession",
        session="session()",
        accessor="session",
    )


def by_hand(url: str) -> Contestant:
    """The floor: what Python, Flask and SQLAlchemy cost alone."""
    app = Flask(__name__)
    engine = create_engine(url)

    class Holder:
        def __init__(self, session: Session) -> None:
            self.session = session

    current: ContextVar[Holder] = ContextVar("current")
    current.set(Holder(Session(engine)))

    @app.get("/")
    def view() -> str:
        with Session(engine) as session:
            return session.get_one(User, 1).name

    return Contestant(
        FLOOR,
        app,
        {"current": current, "Session": Session, "engine": engine},
        "pass",
        session="current.get().session",
        accessor="current.get().session",
        use="with Session(engine): pass",
    )


def empty_hook(url: str) -> Contestant:
    """Flask with a teardown hook that does nothing, to compare an idle context with."""
    app = Flask(__name__)

    @app.teardown_appcontext
    def nothing(_: BaseException | None) -> None:
        pass

    return Contestant(EMPTY_HOOK, app, {}, "pass")


def plain_scoped_session(url: str) -> Contestant:
    """SQLAlchemy's own, by thread, with the hook that Flask's documentation has."""
    app = Flask(__name__)
    session = scoped_session(sessionmaker(create_engine(url)))

    @app.teardown_appcontext
    def remove(_: BaseException | None) -> None:
        session.remove()

    @app.get("/")
    def view() -> str:
        return session.get_one(User, 1).name

    return Contestant(
        BY_THREAD,
        app,
        {"session": session},
        "pass",
        session="session()",
        accessor="session",
        own_session=False,
    )


def flask_sqlalchemy(url: str) -> Contestant:
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = url

    class ModelBase(DeclarativeBase):
        pass

    db = SQLAlchemy(model_class=ModelBase)

    class FlaskUser(db.Model):  # type: ignore[misc, name-defined]  # a class made at run time, as its documentation has it
        __tablename__ = "benchmark_users"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    db.init_app(app)

    @app.get("/")
    def view() -> str:
        return db.session.get_one(FlaskUser, 1).name

    return Contestant(
        "Flask-SQLAlchemy",
        app,
        {"db": db},
        "from flask_sqlalchemy import SQLAlchemy",
        session="db.session()",
        accessor="db.session",
    )


def flask_sqlalchemy_lite(url: str) -> Contestant:
    app = Flask(__name__)
    app.config["SQLALCHEMY_ENGINES"] = {"default": url}
    db = SQLAlchemyLite(app)

    @app.get("/")
    def view() -> str:
        return db.session.get_one(User, 1).name

    return Contestant(
        "Flask-SQLAlchemy-Lite",
        app,
        {"db": db},
        "from flask_sqlalchemy_lite import SQLAlchemy",
        session="db.session",
        accessor="db.session",
    )


def advanced_alchemy(url: str) -> Contestant:
    app = Flask(__name__)
    alchemy = AdvancedAlchemy(SQLAlchemySyncConfig(connection_string=url), app)

    @app.get("/")
    def view() -> str:
        return alchemy.get_sync_session().get_one(User, 1).name

    return Contestant(
        "Advanced Alchemy",
        app,
        {"alchemy": alchemy},
        "from advanced_alchemy.extensions.flask import AdvancedAlchemy",
        session="alchemy.get_sync_session()",
        accessor="alchemy.get_sync_session()",
    )


def alchemical(url: str) -> Contestant:
    app = Flask(__name__)
    app.config["ALCHEMICAL_DATABASE_URL"] = url
    db = Alchemical(app)

    @app.get("/")
    def view() -> str:
        return db.session.get_one(AlchemicalUser, 1).name

    return Contestant(
        "Alchemical",
        app,
        {"db": db},
        "from alchemical.flask import Alchemical",
        session="db.session",
        accessor="db.session",
    )


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

    return Contestant(
        "svcs",
        app,
        {"svcs": svcs, "Session": Session},
        "import svcs.flask",
        session="svcs.flask.get(Session)",
        accessor="svcs.flask.get(Session)",
    )


def contestants(url: str) -> list[Contestant]:
    """Set up all of them on a database."""
    return [
        make(url)
        for make in (
            this_library,
            plain_scoped_session,
            flask_sqlalchemy,
            flask_sqlalchemy_lite,
            advanced_alchemy,
            alchemical,
            services,
            by_hand,
            empty_hook,
        )
    ]
