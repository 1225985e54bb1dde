"""Promise 6: errors say what to do, and a failed call leaves everything as it was."""

from __future__ import annotations

import re
import traceback
from functools import partial
from typing import TYPE_CHECKING, cast
from unittest import mock

import pytest
from flask import Flask
from sqlalchemy import text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession, current_session

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from flask_sqlalchemy_session import SessionFactory
    from tests.support import Held


@pytest.fixture
def engine(memory: Engine) -> Engine:
    return memory


NO_CONTEXT = (
    "There is no session outside an application context. Requests and CLI commands "
    "have one; elsewhere, open one: 'with app.app_context():'. [no-context]"
)


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


def as_factory(value: object) -> SessionFactory[Session]:
    """Pass what a type checker would refuse, as users without one do."""
    return cast("SessionFactory[Session]", value)


USES: dict[str, Callable[[FlaskScopedSession[Session]], object]] = {
    "called": lambda session: session(),
    "called with keywords": lambda session: session(info={}),
    "a method": lambda session: session.execute(text("SELECT 1")),
    "an attribute": lambda session: session.info,
    "a forwarded method": lambda session: session.in_transaction(),
    "a forwarded attribute": lambda session: session.expire_on_commit,
    "a with statement": lambda session: session.__enter__(),
    "the registry": lambda session: session.registry(),
    "the registry set": lambda session: session.registry.set(Session()),
    "a write": lambda session: setattr(session, "autoflush", False),
    "a forwarded write": lambda session: setattr(session, "expire_on_commit", False),
    "the proxy": lambda session: session.proxy.info,
    "a write to the proxy": lambda session: setattr(session.proxy, "autoflush", False),
    "current_session": lambda session: current_session.info,
    "a write to current_session": lambda session: setattr(
        current_session, "autoflush", False
    ),
    "current_session called": lambda session: cast(
        "Callable[[], Session]", current_session
    )(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_every_use_outside_a_context_says_to_open_one(
    use: Callable[[FlaskScopedSession[Session]], object],
    session: FlaskScopedSession[Session],
    app: Flask,
) -> None:
    before = dict(vars(session))
    with pytest.raises(RuntimeError, match=exactly(NO_CONTEXT)) as caught:
        use(session)
    assert isinstance(caught.value, AttributeError)
    assert vars(session) == before
    with app.app_context():
        assert session.autoflush
        assert session.expire_on_commit


def test_python_suggests_no_other_attribute_after_an_error() -> None:
    with pytest.raises(AttributeError) as caught:
        current_session.scalars(text("SELECT 1"))
    told = traceback.format_exception(None, caught.value, None)
    assert told[-1].endswith("[no-context]\n")


@pytest.mark.parametrize(
    "use",
    [lambda _: current_session.info, lambda session: session.info],
    ids=["current_session", "the object"],
)
def test_an_app_that_was_not_set_up_is_named(
    use: Callable[[FlaskScopedSession[Session]], object],
) -> None:
    app = Flask("bare")
    message = (
        "Flask application 'bare' has no session named 'default'. Set one up with "
        "'FlaskScopedSession(session_factory, app)', or with 'session.init_app(app)' "
        "in an application factory. [no-session]"
    )
    session = FlaskScopedSession(Session)
    with app.app_context():
        for error in (RuntimeError, AttributeError):
            with pytest.raises(error, match=exactly(message)):
                use(session)
    assert not app.extensions


@pytest.mark.parametrize("name", ["audit", "reports"])
def test_a_name_that_was_not_set_up_is_in_the_message(name: str, app: Flask) -> None:
    default = FlaskScopedSession(Session, app)
    session = FlaskScopedSession(Session, name=name)
    message = (
        f"Flask application 'shop' has no session named {name!r}. Set one up with "
        f"'FlaskScopedSession(session_factory, app, name={name!r})', or with "
    )
    with app.app_context(), pytest.raises(RuntimeError, match=re.escape(message)):
        session()
    session.init_app(app)
    assert getattr(app, "scoped_session") is default  # noqa: B009  # Flask has none


def test_an_object_of_another_app_is_refused(
    app: Flask, session: FlaskScopedSession[Session]
) -> None:
    stranger = FlaskScopedSession(Session)
    message = (
        "Flask application 'shop' has another session named 'default'. Use that one, "
        "or give this one a name of its own: "
        "'FlaskScopedSession(session_factory, app, name=...)'. [another-session]"
    )
    with app.app_context():
        with pytest.raises(RuntimeError, match=exactly(message)):
            stranger()
        with pytest.raises(RuntimeError, match=exactly(message)):
            stranger.registry.set(Session())
        assert not stranger.registry.has()
        assert session() == current_session


def test_a_second_object_under_a_name_in_use_is_refused(
    app: Flask, session: FlaskScopedSession[Session]
) -> None:
    extensions = dict(app.extensions["sqlalchemy_session"])
    before = dict(vars(app))
    message = (
        "Flask application 'shop' already has a session named 'default'. Give this "
        "one a name of its own: 'FlaskScopedSession(session_factory, app, name=...)'. "
        "[name-in-use]"
    )
    with pytest.raises(RuntimeError, match=exactly(message)):
        FlaskScopedSession(Session, app)
    second = FlaskScopedSession(Session)
    with pytest.raises(RuntimeError, match=exactly(message)):
        second.init_app(app)
    assert vars(app) == before
    assert app.extensions["sqlalchemy_session"] == extensions
    with app.app_context():
        assert session() == current_session
    # The refused object serves another app.
    other = Flask("other")
    second.init_app(other)
    with other.app_context():
        assert second() == current_session


@pytest.mark.parametrize("factory", [None, "sqlite://", Session()], ids=type)
def test_a_factory_that_is_not_callable_is_refused(factory: object) -> None:
    app = Flask("shop")
    before = dict(vars(app))
    message = (
        f"A session factory is called to make each session, but {factory!r} is not "
        "callable. Pass 'sessionmaker(engine)', a Session subclass or a function that "
        "returns a new Session. [not-callable]"
    )
    with pytest.raises(TypeError, match=exactly(message)):
        FlaskScopedSession(as_factory(factory), app)
    assert vars(app) == before
    assert not app.extensions


@pytest.mark.parametrize("made", [None, 1], ids=lambda x: type(x).__name__)
def test_a_factory_that_returns_no_session_is_refused(made: object, app: Flask) -> None:
    products = [made, Session()]

    def factory() -> object:
        return products.pop(0)

    session = FlaskScopedSession(as_factory(factory), app)
    message = (
        f"A session factory must return a sqlalchemy.orm.Session, but {factory!r} "
        f"returned {made!r}. Pass 'sessionmaker(engine)', a Session subclass or a "
        "function that returns a new Session. [not-a-session]"
    )
    with app.app_context():
        with pytest.raises(TypeError, match=exactly(message)):
            session()
        assert not session.registry.has()
        assert isinstance(session(), Session)  # the next that it makes


def test_a_mocked_factory_that_returns_no_session_is_not_taken_for_an_async_one(
    app: Flask,
) -> None:
    session = FlaskScopedSession(mock.Mock(), app)
    with app.app_context(), pytest.raises(TypeError, match="Pass 'sessionmaker"):
        session()


def test_a_factory_that_raises_leaves_no_session(app: Flask, engine: Engine) -> None:
    failures = [ValueError("no tenant")]

    def factory() -> Session:
        if failures:
            raise failures.pop()
        return Session(engine)

    session = FlaskScopedSession(factory, app)
    with app.app_context():
        with pytest.raises(ValueError, match="no tenant"):
            session()
        assert not session.registry.has()
        session.execute(text("SELECT 1"))


def test_configure_on_a_factory_that_takes_none_is_refused(
    app: Flask, engine: Engine
) -> None:
    factory = partial(Session, engine)
    session = FlaskScopedSession(factory, app)
    message = (
        f"session.configure() needs a sessionmaker, but the session factory is "
        f"{factory!r}. Pass 'sessionmaker(...)', or configure the sessions where that "
        "factory makes them. [no-sessionmaker]"
    )
    with pytest.raises(TypeError, match=exactly(message)):
        session.configure(autoflush=False)
    with app.app_context():
        assert session.autoflush
        with pytest.raises(TypeError, match=exactly(message)):
            session.configure(autoflush=False)


def test_configure_warns_in_a_context_that_has_its_session(
    app: Flask, session: FlaskScopedSession[Session]
) -> None:
    with app.app_context():
        session()
        with pytest.warns(match="At least one scoped session is already present"):
            session.configure(expire_on_commit=False)
        assert session.expire_on_commit
        session.remove()
        assert not session.expire_on_commit


def test_keyword_arguments_on_a_factory_that_takes_none_are_refused(
    app: Flask, engine: Engine, held: Held
) -> None:
    def factory() -> Session:
        return Session(engine)

    session = FlaskScopedSession(factory, app)
    message = (
        "session(**keywords) passes its keyword arguments to the session factory, but "
        f"{factory!r} does not take them: got an unexpected keyword argument 'info'. "
        "Use a sessionmaker, or let the factory accept them. [factory-keywords]"
    )
    with app.app_context():
        with pytest.raises(TypeError, match=exactly(message)):
            session(info={})
        assert not session.registry.has()
        session()


def test_a_type_error_inside_the_factory_is_its_own(app: Flask) -> None:
    def factory(**keywords: object) -> Session:
        raise TypeError("inside")

    session = FlaskScopedSession(factory, app)
    with app.app_context(), pytest.raises(TypeError, match=r"^inside$"):
        session(info={})


def test_a_factory_that_does_not_tell_what_it_takes_is_called(app: Flask) -> None:
    factory = partial(next, iter([Session()]))
    session = FlaskScopedSession(factory, app)
    with app.app_context():
        with pytest.raises(TypeError, match="no keyword arguments"):
            session(info={})
        session()


def test_keyword_arguments_after_the_first_use_are_refused(
    app: Flask, session: FlaskScopedSession[Session]
) -> None:
    message = (
        "This context's session was made already, so session(**keywords) can't pass "
        "keyword arguments to the factory. Pass them on first use, or call "
        "session.remove() before. [made-already]"
    )
    with app.app_context():
        made = session()
        with pytest.raises(InvalidRequestError, match=exactly(message)):
            session(info={})
        assert session() is made


@pytest.mark.parametrize(
    "name", ["session", "info", "in_transaction", "no_such", "_private", "__html__"]
)
def test_hasattr_outside_a_context_answers(
    name: str, session: FlaskScopedSession[Session]
) -> None:
    on_class = hasattr(FlaskScopedSession, name) and name == "in_transaction"
    assert hasattr(session, name) is on_class
    assert hasattr(current_session, name) is False
    assert hasattr(session.proxy, name) is False


def test_a_write_of_an_unknown_name_does_not_land_on_the_wrapper(
    app: Flask, session: FlaskScopedSession[Session]
) -> None:
    before = dict(vars(session))
    message = (
        "'FlaskScopedSession' object has no attribute 'tenant'. To set it on the "
        "current context's session, write 'session().tenant = ...'. [no-attribute]"
    )
    for context in (app.app_context(), None):
        if context:
            context.push()
        with pytest.raises(AttributeError, match=exactly(message)):
            setattr(session, "tenant", 1)  # noqa: B010  # no checker knows it
        if context:
            context.pop()
    assert vars(session) == before


def test_a_subclass_keeps_attributes_of_its_own(app: Flask, engine: Engine) -> None:
    class Audited(FlaskScopedSession[Session]):
        def __init__(self, app: Flask) -> None:
            super().__init__(sessionmaker(engine), app)
            self.removed = 0

        def remove(self) -> None:
            self.removed += 1
            super().remove()

    audited = Audited(app)
    with app.app_context():
        audited()
    assert audited.removed == 1


def test_a_misspelt_name_is_an_attribute_error(
    app: Flask, session: FlaskScopedSession[Session]
) -> None:
    with app.app_context():
        for target in (session, current_session, session.proxy):
            with pytest.raises(AttributeError, match="object has no attribute"):
                getattr(target, "exceute")  # noqa: B009  # no checker knows it


def test_an_attribute_that_is_asked_for_before_the_object_is_made_is_told_so() -> None:
    class Shop(FlaskScopedSession):
        def __init__(self) -> None:
            self.prefix = self.is_active
            super().__init__(sessionmaker())

    with pytest.raises(AttributeError, match="'Shop' object has no attribute"):
        Shop()
