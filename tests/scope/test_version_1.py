"""What version 1.1's users wrote still works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast
from unittest import mock

import pytest
from flask import Flask, abort, jsonify
from sqlalchemy.exc import LegacyAPIWarning
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Query,
    Session,
    mapped_column,
    sessionmaker,
)

from flask_sqlalchemy_session import (
    FlaskScopedSession,
    current_session,
    flask_scoped_session,
)
from tests.scope.flask_versions import FLASK_3_2
from tests.support import User, use

if TYPE_CHECKING:
    from flask.typing import ResponseReturnValue
    from sqlalchemy import Engine

    from tests.support import Held

# 1.1's `current_session` was typed by nothing.
legacy = cast("Any", current_session)


def test_the_two_names_are_one_class() -> None:
    assert flask_scoped_session is FlaskScopedSession


def test_the_users_app_of_the_documentation(
    engine: Engine, ann: User, held: Held
) -> None:
    app = Flask("users")
    session = flask_scoped_session(sessionmaker(bind=engine), app)

    @app.route("/users/<int:user_id>")
    def user(user_id: int) -> ResponseReturnValue:
        with pytest.warns(LegacyAPIWarning, match=r"Query\.get"):
            found = session.query(User).get(user_id)
        if found is None:
            abort(404)
        return jsonify(id=found.id, name=found.name)

    client = app.test_client()
    assert client.get(f"/users/{ann.id}").json == {"id": ann.id, "name": "ann"}
    assert client.get("/users/0").status_code == 404
    assert held.count == 0


def test_a_view_that_imports_only_current_session(
    app: Flask, session: FlaskScopedSession[Session], ann: User
) -> None:
    with app.test_request_context(), pytest.warns(LegacyAPIWarning):
        found = current_session.query(User).get(ann.id)
    assert found
    assert found.name == "ann"


def test_an_application_factory(engine: Engine) -> None:
    session = flask_scoped_session(sessionmaker(engine))
    app = Flask("users")
    session.init_app(app)
    with app.app_context():
        assert current_session == session()


def test_the_app_has_its_scoped_session(
    app: Flask, session: FlaskScopedSession[Session]
) -> None:
    scoped = cast("Any", app).scoped_session
    assert scoped is session
    with app.app_context():
        assert scoped() == current_session


def test_current_session_can_be_called(
    app: Flask, session: FlaskScopedSession[Session]
) -> None:
    with app.app_context():
        assert legacy(info={"tenant": 1}) is session()
        assert legacy() is session()
        assert session.info == {"tenant": 1}


def test_current_session_has_what_the_scoped_session_had(
    app: Flask, session: FlaskScopedSession[Session]
) -> None:
    with app.app_context():
        assert legacy.registry is session.registry
        assert legacy.session_factory is session.session_factory
        first = legacy()
        legacy.remove()
        assert not legacy.registry.has()
        legacy.configure(info={"tenant": 1})
        assert legacy() is not first
        assert current_session.info == {"tenant": 1}


@pytest.mark.parametrize("of", ["session", "current_session"])
def test_a_query_property_queries_the_contexts_session(
    of: str, app: Flask, session: FlaskScopedSession[Session], ann: User
) -> None:
    class Model(DeclarativeBase):
        pass

    class Person(Model):
        __tablename__ = "users"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    person = cast("Any", Person)
    if of == "session":  # at import, outside any context
        cast("Any", Model).query = session.query_property()
    for _ in range(2):
        with app.app_context():
            if of == "current_session":
                cast("Any", Model).query = legacy.query_property()
            assert isinstance(person.query, Query)
            assert person.query.session is session()
            assert [found.name for found in person.query] == ["ann"]


def test_remove_is_called_once_for_each_context_that_used_the_session(
    app: Flask, session: FlaskScopedSession[Session]
) -> None:
    @app.route("/")
    def index() -> str:
        current_session.query(User).all()
        return ""

    with mock.patch.object(session, "remove", wraps=session.remove) as remove:
        for count in range(1, 4):
            assert app.test_client().get("/").status_code == 200
            assert remove.call_count == count


def test_a_teardown_that_is_called_by_hand_releases_the_session(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    with app.app_context() as context:
        for _ in range(2):
            use(session())
            assert held.count == 1
            if FLASK_3_2:
                cast("Any", app).do_teardown_appcontext(ctx=context)
            else:
                app.do_teardown_appcontext()
            assert held.count == 0
        use(session())
    assert held.count == 0


def test_an_app_that_was_not_set_up_raises_an_attribute_error() -> None:
    with Flask("bare").app_context():
        with pytest.raises(AttributeError, match="'bare' has no session"):
            current_session.query(User)
        with pytest.raises(AttributeError, match="'bare' has no session"):
            legacy.remove()


def test_no_context_raises_a_runtime_error() -> None:
    with pytest.raises(RuntimeError, match="outside an application context"):
        current_session.query(User)
    with pytest.raises(RuntimeError, match="outside an application context"):
        legacy.remove()
