"""The users application, over HTTP, on SQLite and on PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING

import pytest
from flask import Flask
from sqlalchemy import URL, Engine, create_engine, func, select
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from flask_sqlalchemy_session import current_session

from . import create_app, sqlite_file
from .models import FIRST_USERS, NAME_LENGTH, Base, User, create_tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask.testing import FlaskClient


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[URL | str]:
    if request.param == "sqlite":
        yield URL.create("sqlite", database=str(tmp_path / "users.sqlite3"))
        return
    url: str = request.getfixturevalue("postgresql_url")
    yield url
    engine = create_engine(url)
    Base.metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture
def app(database_url: URL | str) -> Iterator[Flask]:
    app = create_app(database_url)
    yield app
    dispose(app)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def dispose(app: Flask) -> None:
    with app.app_context():
        engine = current_session.get_bind()
    assert isinstance(engine, Engine)
    engine.dispose()


def names(client: FlaskClient) -> list[str]:
    return [user["name"] for user in client.get("/users").get_json()]


def test_the_first_start_seeds(client: FlaskClient) -> None:
    assert names(client) == FIRST_USERS


def test_a_later_start_changes_nothing(
    client: FlaskClient, database_url: URL | str
) -> None:
    client.post("/users", json={"name": "Dora"})
    again = create_app(database_url)
    assert names(again.test_client()) == [*FIRST_USERS, "Dora"]
    dispose(again)


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


def test_starts_at_once_seed_once(database_url: URL | str) -> None:
    starts = 8
    together = Barrier(starts)

    def start(engine: Engine) -> None:
        together.wait()
        create_tables(engine)

    engines = [create_engine(database_url) for _ in range(starts)]
    with ThreadPoolExecutor(starts) as threads:
        for started in [threads.submit(start, engine) for engine in engines]:
            started.result()
    with Session(engines[0]) as session:
        assert session.scalar(select(func.count(User.id))) == len(FIRST_USERS)
    for engine in engines:
        engine.dispose()


def test_a_start_that_is_cut_short_is_made_good_by_the_next(
    database_url: URL | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = create_engine(database_url)
    with monkeypatch.context() as patch:
        patch.setattr("examples.users.models.FIRST_USERS", ["Ann", None])
        with pytest.raises(IntegrityError):
            create_tables(engine)
    engine.dispose()
    app = create_app(database_url)
    assert names(app.test_client()) == FIRST_USERS
    dispose(app)


def test_a_database_that_refuses_the_table_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "users.sqlite3"
    file.touch()
    engine = create_engine(f"sqlite:///file:{file}?mode=ro&uri=true")
    with pytest.raises(OperationalError, match="readonly"):
        create_tables(engine)
    engine.dispose()


def test_the_environment_names_the_database(
    database_url: URL | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = create_engine(database_url).url
    monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
    app = create_app()
    with app.app_context():
        engine = current_session.get_bind()
        assert isinstance(engine, Engine)
        assert engine.url == url
    assert names(app.test_client()) == FIRST_USERS
    dispose(app)


def test_the_database_is_a_file_in_the_instance_folder_by_default(
    tmp_path: Path,
) -> None:
    app = Flask(__name__, instance_path=str(tmp_path / "a?b" / "instance"))
    engine = create_engine(sqlite_file(app))
    create_tables(engine)
    assert (tmp_path / "a?b" / "instance" / "users.sqlite3").is_file()


def test_the_instance_folder_is_the_repositorys(
    database_url: URL | str,
) -> None:
    app = create_app(database_url)
    root = Path(__file__).parent.parent.parent
    assert Path(app.instance_path) == root / "instance"
    dispose(app)
