"""The users application, over HTTP, on SQLite and on PostgreSQL.

Its views commit, and every test leaves the database as it found it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import URL, Engine

from flask_sqlalchemy_session import current_session
from flask_sqlalchemy_session.testing import isolate

from . import create_app
from .models import FIRST_USERS, NAME_LENGTH, Base

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Flask
    from flask.testing import FlaskClient


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def app(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Flask]:
    """The application, one for all tests on a database."""
    if request.param == "sqlite":
        file = tmp_path_factory.mktemp("users") / "users.sqlite3"
        url = URL.create("sqlite", database=str(file))
    else:
        url = request.getfixturevalue("postgresql_url")
    app = create_app(url)
    yield app
    with app.app_context():
        engine = current_session.get_bind()
    assert isinstance(engine, Engine)
    Base.metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture
def client(app: Flask) -> Iterator[FlaskClient]:
    with isolate(app.extensions["sqlalchemy_session"]["default"]):
        yield app.test_client()


def names(client: FlaskClient) -> list[str]:
    return [user["name"] for user in client.get("/users").get_json()]


def test_the_first_start_seeds(client: FlaskClient) -> None:
    assert names(client) == FIRST_USERS


def test_a_user_is_answered_as_json(client: FlaskClient) -> None:
    response = client.get("/users/1")
    assert response.status_code == 200
    assert response.get_json() == {"id": 1, "name": "Ann"}


@pytest.mark.parametrize("user_id", ["0", "999", "2147483648", "9" * 30, "ann", "-1"])
def test_an_unknown_user_is_a_json_404(client: FlaskClient, user_id: str) -> None:
    response = client.get(f"/users/{user_id}")
    assert response.status_code == 404
    assert response.get_json()["error"]


def test_an_unknown_number_is_named(client: FlaskClient) -> None:
    assert client.get("/users/999").get_json() == {"error": "There is no user 999."}


@pytest.mark.parametrize("name", ["Dora", "Žofie 王", "x" * NAME_LENGTH])
def test_a_posted_user_is_stored(client: FlaskClient, name: str) -> None:
    response = client.post("/users", json={"name": name})
    assert response.status_code == 201
    user = response.get_json()
    assert user["name"] == name
    assert response.location == f"/users/{user['id']}"
    assert client.get(response.location).get_json() == user
    assert names(client) == [*FIRST_USERS, name]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "must be JSON"),
        (b"name=Dora", "must be JSON"),
        (b'{"name": "Dora"', "must be JSON"),
        (b'{"name": "\xff"}', "must be JSON"),
        (b"[" * 200_000, "must be JSON"),
        (b"null", "must be a JSON object"),
        (b'["Dora"]', "must be a JSON object"),
        (b'"Dora"', "must be a JSON object"),
        (b"{}", "'name' is missing"),
        (b'{"name": null}', "must be a string"),
        (b'{"name": 7}', "must be a string"),
        (b'{"name": ["Dora"]}', "must be a string"),
        (b'{"name": ""}', "must not be blank"),
        (b'{"name": " \\t"}', "must not be blank"),
        (b'{"name": "%s"}' % (b"x" * (NAME_LENGTH + 1)), "longer than 80 characters"),
        (b'{"name": "Do\\u0000ra"}', "control characters"),
        (b'{"name": "Do\\ud800ra"}', "lone surrogates"),
        (b'{"name": "Dora", "id": 1}', "Unknown keys: 'id'"),
        (b'{"name": "Dora", "\\ud800": 1}', r"Unknown keys: '\ud800'"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_bad_input_is_a_400_that_says_why_and_stores_nothing(
    client: FlaskClient, body: bytes, reason: str
) -> None:
    response = client.post("/users", data=body, content_type="application/json")
    assert response.status_code == 400
    assert reason in response.get_json()["error"]
    assert names(client) == FIRST_USERS


def test_a_form_is_a_400(client: FlaskClient) -> None:
    response = client.post("/users", data={"name": "Dora"})
    assert response.status_code == 400
    assert "application/json" in response.get_json()["error"]
    assert names(client) == FIRST_USERS


def test_a_wrong_method_is_told_the_right_ones(client: FlaskClient) -> None:
    response = client.delete("/users")
    assert response.status_code == 405
    assert response.get_json()["error"]
    assert {"GET", "POST"} <= set(response.allow)
