"""`isolate`: what happens inside the block, on each database and for each factory."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import (
    Connection,
    Engine,
    StaticPool,
    create_engine,
    func,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    sessionmaker,
)

from flask_sqlalchemy_session import FlaskScopedSession
from flask_sqlalchemy_session.testing import IsolationError, isolate
from tests.support import Base, Held, User, begin_explicitly

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from flask import Flask

    from flask_sqlalchemy_session import SessionFactory


class OtherBase(DeclarativeBase):
    """What is kept in the other database."""


class Note(OtherBase):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


DATABASES: Mapping[str, Mapping[str, Any]] = {
    "memory": {},
    "memory-static": {
        "poolclass": StaticPool,
        "connect_args": {"check_same_thread": False},
    },
    "file": {},
    "file-begin": {},
    "file-isolation-level-autocommit": {"isolation_level": "AUTOCOMMIT"},
    "postgresql": {},
    "postgresql-isolation-level-autocommit": {"isolation_level": "AUTOCOMMIT"},
    "postgresql-execution-option-autocommit": {
        "execution_options": {"isolation_level": "AUTOCOMMIT"}
    },
}
if sys.version_info >= (3, 12):
    DATABASES = {
        **DATABASES,
        "file-driver-autocommit": {"connect_args": {"autocommit": True}},
        "file-driver-transactions": {"connect_args": {"autocommit": False}},
        "memory-static-driver-autocommit": {
            "poolclass": StaticPool,
            "connect_args": {"autocommit": True, "check_same_thread": False},
        },
    }


@dataclass
class Engines:
    """Two engines, the second for the notes, and the connections in use on each."""

    users: Engine
    notes: Engine
    autocommit: bool

    def __post_init__(self) -> None:
        self._held = [Held(self.users), Held(self.notes)]

    @property
    def held(self) -> int:
        return sum(held.count for held in self._held)

    def stored(self) -> int:
        """Count the rows that are in the databases, through the engines."""
        with self.users.connect() as users, self.notes.connect() as notes:
            return (
                users.scalars(select(func.count()).select_from(User)).one()
                + notes.scalars(select(func.count()).select_from(Note)).one()
            )


KINDS = ["sessionmaker", "function", "get_bind", "binds", "bind_arguments"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on each database, with kinds of session that take turns.

    So each pair meets: a test and a database, a test and a kind, and, as the first kind
    differs from one test to the next, a database and a kind.
    """
    tests = [name for name in globals() if name.startswith("test_")]
    first = tests.index(metafunc.function.__name__)
    metafunc.parametrize(
        ("engines", "use"),
        [
            (database, KINDS[(first + number) % len(KINDS)])
            for number, database in enumerate(DATABASES)
        ],
        indirect=True,
        scope="module",
    )


@pytest.fixture(scope="module")
def engines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engines]:
    """Engines with empty tables, which every test has to leave empty."""
    database: str = request.param
    path = tmp_path_factory.mktemp(database)
    kind = database.partition("-")[0]
    options = DATABASES[database]

    def make(name: str) -> Engine:
        match kind:
            case "memory":
                url = "sqlite://"
            case "file":
                url = f"sqlite:///{path}/{name}.sqlite3"
            case _:
                url = request.getfixturevalue("postgresql_url")
        engine = create_engine(url, **options)
        if database == "file-begin":
            begin_explicitly(engine)
        return engine

    engines = Engines(make("users"), make("notes"), "autocommit" in database)
    Base.metadata.create_all(engines.users)
    OtherBase.metadata.create_all(engines.notes)
    yield engines
    OtherBase.metadata.drop_all(engines.notes)
    Base.metadata.drop_all(engines.users)
    engines.users.dispose()
    engines.notes.dispose()


class RoutingSession(Session):
    """Finds its engine by the class that is asked for."""

    def __init__(self, engines: Engines) -> None:
        super().__init__()
        self.engines = engines

    def get_bind(self, mapper: Any = None, **kw: Any) -> Engine | Connection:
        if mapper is not None and inspect(mapper).class_ is Note:
            return self.engines.notes
        return self.engines.users


class Use:
    """How a kind of session is used. `only` is what it has to be told each time."""

    def __init__(self, engines: Engines, kind: str) -> None:
        self.only: dict[str, Any] = {}
        self.routes = kind in ("get_bind", "binds")
        self.factory: SessionFactory[Session]
        match kind:
            case "sessionmaker":
                self.factory = sessionmaker(engines.users)
            case "function":
                self.factory = lambda: Session(engines.users, expire_on_commit=False)
            case "get_bind":
                self.factory = partial(RoutingSession, engines)
            case "binds":
                self.factory = sessionmaker(
                    binds={Base: engines.users, OtherBase: engines.notes}
                )
            case _:
                self.factory = sessionmaker()
                self.only = {"bind": engines.users}

    def add(self, session: Session, name: str, **values: object) -> None:
        """Write a user, without a commit."""
        session.execute(
            insert(User).values(name=name, **values), bind_arguments={**self.only}
        )

    def names(self, session: Session) -> list[str]:
        return [
            *session.scalars(
                select(User.name).order_by(User.name), bind_arguments={**self.only}
            )
        ]

    def execute(self, session: Session, statement: str) -> None:
        arguments = self.only or {"mapper": User}
        session.execute(text(statement), bind_arguments={**arguments})


@pytest.fixture
def use(request: pytest.FixtureRequest, engines: Engines) -> Use:
    return Use(engines, request.param)


@pytest.fixture
def session(app: Flask, use: Use) -> FlaskScopedSession[Session]:
    return FlaskScopedSession(use.factory, app)


@pytest.fixture(autouse=True)
def nothing_is_left(engines: Engines) -> Iterator[None]:
    """Look, after each test here, for what the block left behind."""
    pools = engines.users.pool, engines.notes.pool
    tables = inspect(engines.users).get_table_names()
    yield
    assert engines.held == 0
    assert (engines.users.pool, engines.notes.pool) == pools
    assert engines.stored() == 0
    assert inspect(engines.users).get_table_names() == tables


def test_a_commit_is_seen_by_later_contexts(
    app: Flask, session: FlaskScopedSession[Session], use: Use
) -> None:
    with isolate(session):
        with app.app_context():
            use.add(session(), "ann")
            session.commit()
        with app.app_context():
            assert use.names(session()) == ["ann"]
            use.add(session(), "bob")
            session.commit()
            use.add(session(), "cid")
            session.commit()
        with app.app_context():
            assert use.names(session()) == ["ann", "bob", "cid"]


def test_a_rollback_undoes_what_was_not_committed(
    app: Flask, session: FlaskScopedSession[Session], use: Use, engines: Engines
) -> None:
    with isolate(session), app.app_context():
        use.add(session(), "ann")
        session.commit()
        use.add(session(), "bob")
        session.rollback()
        kept = ["ann", "bob"] if engines.autocommit else ["ann"]
        assert use.names(session()) == kept
        use.add(session(), "cid")
        session.commit()
        assert use.names(session()) == [*kept, "cid"]


def test_begin_commits_and_rolls_back(
    app: Flask, session: FlaskScopedSession[Session], use: Use, engines: Engines
) -> None:
    with isolate(session):
        with app.app_context():
            with session.begin():
                use.add(session(), "ann")
            with pytest.raises(LookupError), session.begin():  # noqa: PT012  # the block
                use.add(session(), "bob")
                raise LookupError
        with app.app_context():
            kept = ["ann", "bob"] if engines.autocommit else ["ann"]
            assert use.names(session()) == kept


def test_begin_nested_commits_and_rolls_back(
    app: Flask, session: FlaskScopedSession[Session], use: Use
) -> None:
    with isolate(session):
        with app.app_context():
            use.add(session(), "ann")
            with session.begin_nested():
                use.add(session(), "bob")
            with pytest.raises(LookupError), session.begin_nested():  # noqa: PT012  # the block
                use.add(session(), "cid")
                raise LookupError
            use.add(session(), "dee")
            session.commit()
        with app.app_context():
            assert use.names(session()) == ["ann", "bob", "dee"]


def test_an_integrity_error_leaves_what_was_committed(
    app: Flask, session: FlaskScopedSession[Session], use: Use, engines: Engines
) -> None:
    with isolate(session):
        with app.app_context():
            use.add(session(), "ann", id=1)
            session.commit()
            use.add(session(), "bob", id=2)
            with pytest.raises(IntegrityError):
                use.add(session(), "cid", id=1)
            session.rollback()
            use.add(session(), "dee", id=3)
            session.commit()
        with app.app_context():
            kept = ["ann", "bob", "dee"] if engines.autocommit else ["ann", "dee"]
            assert use.names(session()) == kept


def test_an_integrity_error_in_a_savepoint_leaves_the_rest(
    app: Flask, session: FlaskScopedSession[Session], use: Use
) -> None:
    with isolate(session):
        with app.app_context():
            use.add(session(), "ann", id=1)
            with pytest.raises(IntegrityError), session.begin_nested():
                use.add(session(), "bob", id=1)
            session.commit()
        with app.app_context():
            assert use.names(session()) == ["ann"]


def test_what_a_context_forgets_to_commit_is_gone(
    app: Flask, session: FlaskScopedSession[Session], use: Use, engines: Engines
) -> None:
    with isolate(session):
        with app.app_context():
            use.add(session(), "ann")
        with app.app_context():
            assert use.names(session()) == (["ann"] if engines.autocommit else [])


def test_a_table_is_created_and_gone_after_the_block(
    app: Flask, session: FlaskScopedSession[Session], use: Use
) -> None:
    with isolate(session):
        with app.app_context():
            use.execute(session(), "CREATE TABLE extra (id INTEGER)")
            use.execute(session(), "INSERT INTO extra VALUES (1)")
            session.commit()
        with app.app_context():
            use.execute(session(), "DROP TABLE extra")
            session.commit()
            use.execute(session(), "CREATE TABLE extra (id INTEGER)")
            session.commit()


def test_a_context_that_only_read_keeps_what_a_nested_one_commits(
    app: Flask, session: FlaskScopedSession[Session], use: Use
) -> None:
    with isolate(session):
        with app.app_context():
            assert use.names(session()) == []
            with app.app_context():
                use.add(session(), "ann")
                session.commit()
            assert use.names(session()) == ["ann"]
            with app.app_context():
                use.add(session(), "bob")
                session.commit()
        with app.app_context():
            assert use.names(session()) == ["ann", "bob"]


def test_a_context_that_wrote_can_commit_after_a_nested_one(
    app: Flask, session: FlaskScopedSession[Session], use: Use
) -> None:
    with isolate(session):
        with app.app_context():
            use.add(session(), "ann")
            with app.app_context():
                use.add(session(), "bob")
                session.commit()
            session.commit()
        with app.app_context():
            assert use.names(session()) == ["ann", "bob"]


def test_a_context_that_wrote_can_roll_back_after_a_nested_one_did(
    app: Flask, session: FlaskScopedSession[Session], use: Use, engines: Engines
) -> None:
    with isolate(session):
        with app.app_context():
            use.add(session(), "ann")
            with app.app_context():
                use.add(session(), "bob")
                session.rollback()
            session.rollback()
        with app.app_context():
            assert use.names(session()) == (
                ["ann", "bob"] if engines.autocommit else []
            )


def test_a_context_that_wrote_can_not_roll_back_what_a_nested_one_committed(
    app: Flask, session: FlaskScopedSession[Session], use: Use, engines: Engines
) -> None:
    # In autocommit the first has committed each statement.
    refused = None if engines.autocommit else "rolled back"
    with raising(refused), isolate(session):
        with app.app_context():
            use.add(session(), "ann")
            with app.app_context():
                use.add(session(), "bob")
                session.commit()
            # The block raises it again at its end, should a view have swallowed it.
            with raising(refused):
                session.rollback()
        with app.app_context():
            assert use.names(session()) == ["ann", "bob"]


def raising(message: str | None) -> AbstractContextManager[object]:
    if message is None:
        return nullcontext()
    return pytest.raises(IsolationError, match=message)


def test_two_engines_are_rolled_back(
    app: Flask, session: FlaskScopedSession[Session], use: Use, engines: Engines
) -> None:
    with isolate(session):
        with app.app_context():
            notes = {} if use.routes else {"bind": engines.notes}
            use.add(session(), "ann")
            session.execute(insert(Note).values(text="a"), bind_arguments={**notes})
            session.commit()
        with app.app_context():
            assert use.names(session()) == ["ann"]
            assert session.scalars(
                select(Note.text), bind_arguments={**notes}
            ).all() == ["a"]
        assert engines.held == 0  # as outside: it counts what the application holds
        assert engines.stored() == 2


def test_a_bind_named_for_a_connection_is_isolated(
    app: Flask, session: FlaskScopedSession[Session], use: Use, engines: Engines
) -> None:
    with isolate(session):
        with app.app_context():
            connection = session.connection(bind_arguments={"bind": engines.notes})
            connection.execute(insert(Note).values(text="a"))
            session.commit()
        assert engines.stored() == 1


def test_objects_are_flushed_to_isolated_engines(
    app: Flask, session: FlaskScopedSession[Session], use: Use, engines: Engines
) -> None:
    with isolate(session):
        with app.app_context():
            if use.only:
                session.bind_mapper(User, engines.users)
            session.add(User(name="ann"))
            if use.routes:
                session.add(Note(text="a"))
            session.commit()
        assert engines.stored() == 1 + use.routes
