"""What `isolate` does not take, and what can't be done with what it returns."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from flask_sqlalchemy_session.testing import isolate
from tests.types.usage import ShopSession

Shop = FlaskScopedSession[ShopSession]


def test_it_takes_no_other_scoped_session(engine: Engine) -> None:
    other = scoped_session(sessionmaker(engine))
    with pytest.raises(TypeError, match="takes a"):
        isolate(other)  # rejected: its scope is not the context


def test_it_takes_no_session(engine: Engine) -> None:
    with pytest.raises(TypeError, match="takes a"):
        isolate(Session(engine))  # rejected: it isolates what makes the sessions


def test_it_takes_no_current_session() -> None:
    with pytest.raises(TypeError, match="takes a"):
        isolate(current_session)  # rejected: it isolates what makes the sessions


def test_it_takes_no_engine(engine: Engine) -> None:
    with pytest.raises(TypeError, match="takes a"):
        isolate(engine)  # rejected: engines are found by themselves


def test_it_takes_one_at_least() -> None:
    with pytest.raises(TypeError, match="argument"):
        isolate()  # rejected: nothing to isolate


def test_it_takes_no_list_of_them(session: Shop) -> None:
    with pytest.raises(TypeError, match="takes a"):
        isolate([session])  # rejected: one argument each


def test_a_decorated_function_takes_what_it_took(session: Shop) -> None:
    @isolate(session)
    def greet(name: str) -> str:
        return f"hello {name}"

    with pytest.raises(TypeError, match="name"):
        greet()  # rejected: the name is missing
    greet(1)  # rejected: the name is a string
