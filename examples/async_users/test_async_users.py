"""The async users application, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from flask import Flask
from sqlalchemy import URL, NullPool, make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from flask_sqlalchemy_session.asyncio import current_async_session

from . import create_app, sqlite_file
from .models import NAME_LENGTH, Base

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flask.testing import FlaskClient


@pytest.fixture(params=["sqlite+aiosqlite", "postgresql+asyncpg", "postgresql+psycopg"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    if request.param == "sqlite+aiosqlite":
        # Writers wait for each other, on a busy machine for longer than five seconds.
        database = str(tmp_path / "users.sqlite3")
        return URL.create(request.param, database=database, query={"timeout": "60"})
    url = make_url(request.getfixturevalue("postgresql_url"))
    return url.set(drivername=request.param)


@pytest.fixture
def app(database_url: URL) -> Iterator[Flask]:
    app = create_app(database_url)
    yield app
    engine = engine_of(app)

    async def drop() -> None:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.drop_all)
        await engine.dispose()

    app.ensure_sync(drop)()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def engine_of(app: Flask) -> AsyncEngine:
    with app.app_context():
        engine = current_async_session.bind
    assert isinstance(engine, AsyncEngine)
    return engine


def names(client: FlaskClient) -> list[str]:
    lines = client.get("/users").text.splitlines()
    return [json.loads(line)["name"] for line in lines]


def test_a_posted_user_is_stored(client: FlaskClient) -> None:
    response = client.post("/users", data={"name": "Žofie 王"})
    assert response.status_code == 201
    user = response.get_json()
    assert user["name"] == "Žofie 王"
    assert client.get(f"/users/{user['id']}").get_json() == user
    assert names(client) == ["Žofie 王"]


@pytest.mark.parametrize("name", ["", " \t", "a\0b", "x" * (NAME_LENGTH + 1)])
def test_a_bad_name_is_a_400_and_stores_nothing(client: FlaskClient, name: str) -> None:
    assert client.post("/users", data={"name": name}).status_code == 400
    assert names(client) == []


@pytest.mark.parametrize("user_id", ["0", "999", "2147483648", "ann"])
def test_an_unknown_user_is_a_404(client: FlaskClient, user_id: str) -> None:
    assert client.get(f"/users/{user_id}").status_code == 404


def test_clients_at_the_same_time_are_served_from_one_pool(app: Flask) -> None:
    def post(number: int) -> int:
        name = f"user {number}"
        return app.test_client().post("/users", data={"name": name}).status_code

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(post, range(80))) == {201}
    assert sorted(names(app.test_client())) == sorted(f"user {n}" for n in range(80))
    pool = engine_of(app).pool
    if not isinstance(pool, NullPool):  # SQLite's files, before SQLAlchemy 2.0.38
        assert "out connections: 0" in pool.status()


def test_the_environment_names_the_database(
    app: Flask, database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = database_url.render_as_string(hide_password=False)
    monkeypatch.setenv("DATABASE_URL", url)
    again = create_app()
    assert engine_of(again).url == database_url
    assert names(again.test_client()) == []
    again.ensure_sync(engine_of(again).dispose)()


def test_the_database_is_a_file_in_the_instance_folder_by_default(
    tmp_path: Path,
) -> None:
    app = Flask(__name__, instance_path=str(tmp_path / "instance"))
    assert sqlite_file(app) == URL.create(
        "sqlite+aiosqlite",
        database=str(tmp_path / "instance" / "async_users.sqlite3"),
    )
