"""The suite of a small application, which test_xdist.py runs in two processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from flask_sqlalchemy_session import current_session
from tests.support import OopsError, User

if TYPE_CHECKING:
    from flask import Flask
    from flask.testing import FlaskClient


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    @app.post("/users/<name>")
    def add(name: str) -> list[str]:
        with current_session.begin():
            current_session.add(User(name=name))
        return list(current_session.scalars(select(User.name)))

    return app.test_client()


@pytest.mark.parametrize("number", range(10))
def test_the_user_is_the_only_one(client: FlaskClient, number: int) -> None:
    name = f"user {number}"
    assert client.post(f"/users/{name}").get_json() == [name]


@pytest.mark.xfail(raises=OopsError, reason="a test may fail", strict=True)
@pytest.mark.parametrize("number", range(10))
def test_a_failure_leaves_nothing_to_the_next(client: FlaskClient, number: int) -> None:
    assert client.post("/users/ann").get_json() == ["ann"]
    raise OopsError
