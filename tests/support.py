"""What the tests share: one model, and a count of the connections in use."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from flask import current_app
from sqlalchemy import QueuePool, event, make_url, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL, Connection, Engine
    from sqlalchemy.orm import Session


many_connections = pytest.mark.parametrize(
    "engine", ["sqlite-file", "postgresql"], indirect=True
)
"""Runs a test on each database that can be connected to more than once at a time."""


SET_UP = """
import sys, warnings
from flask import Flask
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.orm import Session, sessionmaker
from flask_sqlalchemy_session import FlaskScopedSession
from tests.support import User

warnings.simplefilter("ignore")  # about forking beside threads
app = Flask("script")
engine = create_engine(sys.argv[1])
session = FlaskScopedSession(sessionmaker(engine), app)
"""
"""How a script for :func:`run_script` begins, which has an application."""


def run_script(script: str, engine: Engine) -> str:
    """Run a script on an engine's database, in a process of its own that may fork.

    :return: what it printed.
    """
    url = engine.url.render_as_string(hide_password=False)
    done = subprocess.run(  # noqa: S603  # a script of ours
        [sys.executable, "-c", script, url],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Held:
    """Counts the connections that an engine has handed out and not got back.

    Unlike `Pool.checkedout()`, every kind of pool can be asked.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._count = 0
        event.listen(engine, "checkout", self._checkout)
        event.listen(engine, "checkin", self._checkin)
        event.listen(engine, "detach", self._checkin)

    @property
    def count(self) -> int:
        pool = self.engine.pool
        if isinstance(pool, QueuePool):  # both counts must agree
            assert pool.checkedout() == self._count
        return self._count

    def _checkout(self, *_: object) -> None:
        self._count += 1

    def _checkin(self, *_: object) -> None:
        self._count -= 1


def server_url(drivername: str, request: pytest.FixtureRequest) -> URL:
    """Return the URL of the run's PostgreSQL or MariaDB server, for a driver of it."""
    server = "postgresql_url" if drivername.startswith("postgresql") else "mariadb_url"
    url = make_url(request.getfixturevalue(server)).set(drivername=drivername)
    socket = url.query.get("host")
    if drivername == "postgresql+pg8000" and socket:  # which it has another name for
        return url.set(query={"unix_sock": f"{socket}/.s.PGSQL.5432"})
    return url


def drop_tables(connection: Connection) -> None:
    """Drop the tables, or fail where a test has left a transaction that uses them.

    Without a limit, the server would wait for that transaction for ever.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL lock_timeout = '5s'"))
    Base.metadata.drop_all(connection)


class OopsError(Exception):
    """What the tests themselves raise."""


def first_of(error: BaseException) -> BaseException:
    """Return an error itself, or the first in the groups that Flask 3.2 raises."""
    for first in getattr(error, "exceptions", ()):
        return first_of(first)
    return error


@contextmanager
def allows(
    expected: type[BaseException], match: str = ""
) -> Iterator[list[BaseException]]:
    """Catch an error, alone or in the groups of Flask 3.2, if it comes.

    What is given keeps the error, and with it every frame that it went through.
    """
    caught: list[BaseException] = []
    try:
        yield caught
    except BaseException as error:
        caught.append(error)
        first = first_of(error)
        if not isinstance(first, expected) or not re.search(match, str(first)):
            raise


@contextmanager
def raises(
    expected: type[BaseException], match: str = ""
) -> Iterator[list[BaseException]]:
    """Catch an error as `allows` does, and fail where none comes."""
    with allows(expected, match) as caught:
        yield caught
    assert caught, f"{expected.__name__} was not raised"


@contextmanager
def broken_rollback(*engines: Engine) -> Iterator[None]:
    """Fail each rollback of an engine, before it reaches the database."""

    def fail_to_roll_back(connection: Connection) -> None:
        raise OopsError

    for engine in engines:
        event.listen(engine, "rollback", fail_to_roll_back)
    yield
    for engine in engines:
        event.remove(engine, "rollback", fail_to_roll_back)


def default_session() -> Session:
    """Return the current context's own session, not the proxy to it."""
    session: Session = current_app.extensions["sqlalchemy_session"]["default"]()
    return session


def use(session: Session) -> None:
    """Take a connection, begin a transaction and leave marks of both."""
    session.info["mark"] = True
    session.add(User(name="mark"))
    session.flush()


def begin_explicitly(engine: Engine) -> None:
    """Set SQLite up as SQLAlchemy's documentation has it for true transactions."""

    @event.listens_for(engine, "connect")
    def _(connection: Any, _: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")
