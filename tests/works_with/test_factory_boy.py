"""factory_boy: its factories make objects in the current context's session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, object_session

from flask_sqlalchemy_session import current_session
from tests.support import User

pytest.importorskip("factory")

from factory import Sequence
from factory.alchemy import SQLAlchemyModelFactory

if TYPE_CHECKING:
    from flask import Flask
    from sqlalchemy import Engine

    from flask_sqlalchemy_session import FlaskScopedSession
    from tests.support import Held


class UserFactory(SQLAlchemyModelFactory):
    class Meta:
        model = User
        sqlalchemy_session = current_session
        sqlalchemy_session_persistence = "flush"

    name = Sequence(lambda n: f"user {n}")


pytestmark = pytest.mark.usefixtures("session")


def count_users(engine: Engine) -> int:
    """Count what is committed, without the session that is tested."""
    with Session(engine) as session:
        return session.scalars(select(func.count()).select_from(User)).one()


def test_objects_are_made_in_the_current_session(
    app: Flask, engine: Engine, held: Held
) -> None:
    for _ in range(2):
        with app.app_context():
            ann = UserFactory.create(name="ann")
            assert isinstance(ann, User)
            assert object_session(ann) == current_session
            assert ann.id is not None
    assert held.count == 0
    assert count_users(engine) == 0


def test_a_factory_takes_the_scoped_session_object_too(
    app: Flask, session: FlaskScopedSession[Session]
) -> None:
    class ScopedFactory(UserFactory):
        class Meta:
            sqlalchemy_session = session

    with app.app_context():
        assert object_session(ScopedFactory.create()) is session()


def test_what_is_committed_is_kept(app: Flask, engine: Engine, held: Held) -> None:
    with app.app_context():
        UserFactory.create_batch(3)
        current_session.commit()
    assert held.count == 0
    assert count_users(engine) == 3


def test_what_the_database_refuses_leaves_nothing_open(
    app: Flask, engine: Engine, held: Held
) -> None:
    with app.app_context():
        with pytest.raises(IntegrityError):
            UserFactory.create(name=None)
        current_session.rollback()
        UserFactory.create()
        current_session.commit()
    assert held.count == 0
    assert count_users(engine) == 1


def test_a_factory_says_what_to_do_outside_a_context() -> None:
    with pytest.raises(RuntimeError, match=r"with app\.app_context\(\):"):
        UserFactory.create()
