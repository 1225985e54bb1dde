"""The library, its peers and the floors, each set up in its documented way.

Each has an application of its own on the same database, with one view that reads a
user by primary key. How a session is reached is source, for the view and for what is
timed, so that no call is added to it.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

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
    from collections.abc import Callable, Iterator

OURS = "this library"
BY_THREAD = "scoped_session"
BY_HAND = "by hand"
EMPTY_HOOK = "empty hook"


class Columns:
    __tablename__ = "benchmark_users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Base(DeclarativeBase):
    pass


class User(Columns, Base):
    pass


class AlchemicalUser(Columns, Model):
    pass


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


def this_library(app: Flask, url: str) -> dict[str, object]:
    session = FlaskScopedSession(sessionmaker(create_engine(url)), app)
    return {
        "session": session,
        "proxy": session.proxy,
        "current_session": current_session,
    }


def flask_sqlalchemy(app: Flask, url: str) -> dict[str, object]:
    app.config["SQLALCHEMY_DATABASE_URI"] = url

    class ModelBase(DeclarativeBase):
        pass

    db = SQLAlchemy(app, model_class=ModelBase)

    class FlaskUser(Columns, db.Model):  # type: ignore[misc, name-defined]  # a class made at run time, as its documentation has it
        pass

    return {"db": db, "User": FlaskUser}


def flask_sqlalchemy_lite(app: Flask, url: str) -> dict[str, object]:
    app.config["SQLALCHEMY_ENGINES"] = {"default": url}
    return {"db": SQLAlchemyLite(app)}


def advanced_alchemy(app: Flask, url: str) -> dict[str, object]:
    config = SQLAlchemySyncConfig(connection_string=url)
    return {"alchemy": AdvancedAlchemy(config, app)}


def alchemical(app: Flask, url: str) -> dict[str, object]:
    app.config["ALCHEMICAL_DATABASE_URL"] = url
    return {"db": Alchemical(app), "User": AlchemicalUser}


def services(app: Flask, url: str) -> dict[str, object]:
    svcs.flask.init_app(app)
    engine = create_engine(url)

    def make_session() -> Iterator[Session]:
        with Session(engine) as session:
            yield session

    svcs.flask.register_factory(app, Session, make_session)
    return {"svcs": svcs, "Session": Session}


def plain_scoped_session(app: Flask, url: str) -> dict[str, object]:
    """The thread's floor: SQLAlchemy's own, with the hook of Flask's documentation."""
    session = scoped_session(sessionmaker(create_engine(url)))

    @app.teardown_appcontext
    def remove(_: BaseException | None) -> None:
        session.remove()

    return {"session": session}


def by_hand(app: Flask, url: str) -> dict[str, object]:
    """The floor of all: what Flask and SQLAlchemy cost alone."""
    return {"Session": Session, "engine": create_engine(url)}


def empty_hook(app: Flask, _: str) -> dict[str, object]:
    """Flask with a teardown hook that does nothing, beside a context that uses none."""

    @app.teardown_appcontext
    def nothing(_: BaseException | None) -> None:
        pass

    return {}


class Contestant(NamedTuple):
    """How one library is used."""

    set_up: Callable[[Flask, str], dict[str, object]]
    """Sets it up, and returns what the expressions use."""
    session: str
    """The expression for the context's session itself."""
    accessor: str
    """The expression to which an application adds `.get(...)`, as it documents."""
    block: str = "{}"
    """The statement in which it does so."""

    def serve(self, url: str) -> tuple[Flask, dict[str, Any]]:
        """Return an application with a view, and what the expressions use."""
        app = Flask(__name__)
        names: dict[str, Any] = {"app": app, "User": User, **self.set_up(app, url)}
        read = f"return {self.accessor}.get_one(User, 1).name"
        exec(f"def view():\n  {self.block.format(read)}", names)  # noqa: S102  # the sources below
        app.add_url_rule("/", view_func=names["view"])
        return app, names


PEERS = {
    "Flask-SQLAlchemy": Contestant(flask_sqlalchemy, "db.session()", "db.session"),
    "Flask-SQLAlchemy-Lite": Contestant(
        flask_sqlalchemy_lite, "db.session", "db.session"
    ),
    "Advanced Alchemy": Contestant(
        advanced_alchemy, "alchemy.get_sync_session()", "alchemy.get_sync_session()"
    ),
    "Alchemical": Contestant(alchemical, "db.session", "db.session"),
    "svcs": Contestant(services, "svcs.flask.get(Session)", "svcs.flask.get(Session)"),
}
FLOORS = {
    BY_THREAD: Contestant(plain_scoped_session, "session()", "session"),
    BY_HAND: Contestant(
        by_hand, "session", "session", "with Session(engine) as session: {}"
    ),
    EMPTY_HOOK: Contestant(empty_hook, "None", "None"),
}
CONTESTANTS = {
    OURS: Contestant(this_library, "session()", "current_session"),
    **PEERS,
    **FLOORS,
}
