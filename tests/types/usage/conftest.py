"""What the usage files share. One database will do: they are about types."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, StaticPool, create_engine
from sqlalchemy.orm import sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession
from tests.support import Base, User

from . import ShopSession

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Flask


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine whose `users` are ann, with the id 1."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with ShopSession(engine) as session:
        session.add(User(id=1, name="ann"))
        session.commit()
    yield engine
    engine.dispose()


@pytest.fixture
def session(app: Flask, engine: Engine) -> FlaskScopedSession[ShopSession]:
    """The default scoped session of `app`, with sessions of a class of its own."""
    return FlaskScopedSession(sessionmaker(engine, class_=ShopSession), app)


@pytest.fixture(autouse=True)
def context(app: Flask, session: FlaskScopedSession[ShopSession]) -> Iterator[None]:
    """Run each usage in a context of `app`."""
    with app.app_context():
        yield
