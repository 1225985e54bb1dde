"""What a session has, a `FlaskScopedSession` has, and it reaches the real one."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession
from tests.support import User, use

if TYPE_CHECKING:
    from flask import Flask
    from sqlalchemy import Engine

    from tests.support import Held


@pytest.fixture
def engine(memory: Engine) -> Engine:
    return memory


def public(names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith("_")]


# Of the installed SQLAlchemy, also those that only an instance has.
MEMBERS = public(dir(Session()))

# What belongs to the class, or to SQLAlchemy's event system.
ON_THE_CLASS = {"close_all", "dispatch", "identity_key", "object_session"}


@pytest.mark.parametrize("name", MEMBERS)
def test_a_sessions_public_members_are_there(
    name: str, app: Flask, session: FlaskScopedSession[Session]
) -> None:
    with app.app_context():
        expected = getattr(session(), name)
        if name in ON_THE_CLASS:
            assert hasattr(session, name)
        elif name == "no_autoflush":  # a new context manager each time
            with session.no_autoflush:
                assert not session().autoflush
        elif inspect.ismethod(expected):
            assert callable(getattr(session, name))
        else:
            assert getattr(session, name) == expected


METHODS_AND_PROPERTIES = [
    name
    for name in public(list(vars(Session)))
    if name != "dispatch"  # the event system's
    if inspect.isroutine(vars(Session)[name])
    or isinstance(vars(Session)[name], property)
]


@pytest.mark.parametrize("name", METHODS_AND_PROPERTIES)
def test_a_sessions_methods_and_properties_are_on_the_class(name: str) -> None:
    assert hasattr(FlaskScopedSession, name)


CALLS: dict[str, tuple[object, ...]] = {
    "bind_mapper": (User, None),
    "bind_table": (User.__table__, None),
    "enable_relationship_loading": (None,),
    "get_nested_transaction": (),
    "get_transaction": (),
    "in_nested_transaction": (),
    "in_transaction": (),
    "invalidate": (),
    "prepare": (),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_method_that_scoped_session_lacks_reaches_the_session(name: str) -> None:
    assert not hasattr(scoped_session, name)
    assert inspect.signature(getattr(FlaskScopedSession, name)).parameters.keys() == (
        inspect.signature(getattr(Session, name)).parameters.keys()
    )


@pytest.mark.parametrize("name", CALLS)
def test_its_arguments_and_its_result_are_the_sessions(name: str, app: Flask) -> None:
    calls = []
    result = object()

    def record(self: Session, *args: object) -> object:
        calls.append((self, args))
        return result

    recording: type[Session] = type("Recording", (Session,), {name: record})
    session = FlaskScopedSession(recording, app)
    returns_nothing = inspect.signature(getattr(Session, name)).return_annotation in (
        "None",
        None,
    )
    with app.app_context():
        got = getattr(session, name)(*CALLS[name])
        assert got is (None if returns_nothing else result)
        assert calls[0] == (session(), CALLS[name])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("autobegin", False),
        ("autoflush", False),
        ("bind", None),
        ("enable_baked_queries", False),
        ("expire_on_commit", False),
        ("join_transaction_mode", "create_savepoint"),
        ("twophase", True),
    ],
)
def test_a_write_reaches_the_session_and_no_other(
    name: str, value: object, app: Flask, session: FlaskScopedSession[Session]
) -> None:
    before = dict(vars(session))
    with app.app_context():
        default = getattr(session(), name)
        assert default != value
        setattr(session, name, value)
        assert getattr(session(), name) == value
        assert getattr(session, name) == value
    with app.app_context():
        assert getattr(session, name) == default
    assert vars(session) == before


def test_a_with_statement_closes_the_session_and_keeps_it(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    with app.app_context():
        with session as entered:
            assert entered is session()
            use(entered)
            assert held.count == 1
        assert held.count == 0
        assert session() is entered
        assert session.scalars(select(User)).all() == []


def test_a_with_statement_lets_an_exception_through(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    def fail() -> None:
        with session:
            use(session())
            raise ValueError("mine")

    with app.app_context():
        with pytest.raises(ValueError, match="mine"):
            fail()
        assert held.count == 0


def test_begin_commits_and_in_transaction_tells(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine
) -> None:
    with app.app_context():
        assert not session.in_transaction()
        assert session.get_transaction() is None
        with session.begin():
            use(session())
            assert session.in_transaction()
            with session.begin_nested():
                assert session.in_nested_transaction()
                assert session.get_nested_transaction()
        assert not session.in_transaction()
    with Session(engine) as after:
        assert after.scalars(select(User.name)).all() == ["mark"]


def test_containment_and_iteration_reach_the_session(
    app: Flask, session: FlaskScopedSession[Session]
) -> None:
    with app.app_context():
        user = User(name="ann")
        assert user not in session
        session.add(user)
        assert user in session
        assert list(session) == [user]


def test_invalidate_throws_the_connection_away(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    with app.app_context():
        session.execute(text("SELECT 1"))
        session.invalidate()
        assert held.count == 0


class Tenants(Session):
    tenant = "none"

    def of(self, name: str) -> str:
        self.tenant = name
        return f"{name}'s"

    @property
    def owner(self) -> str:
        raise AttributeError("the owner's own")


def test_a_subclasss_own_members_are_reached(app: Flask, engine: Engine) -> None:
    session = FlaskScopedSession(sessionmaker(engine, class_=Tenants), app)
    with app.app_context():
        reach = getattr(session, "of")  # noqa: B009  # typed by session() and proxy
        assert reach("ann") == "ann's"
        assert session.proxy.tenant == session().tenant == "ann"
        assert session.proxy.of("bob") == "bob's"
        with pytest.raises(AttributeError, match="the owner's own"):
            getattr(session, "owner")  # noqa: B009
    with app.app_context():
        assert session().tenant == "none"
