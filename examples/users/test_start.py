"""How the users application starts: its database, its table, its first users."""

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
from .models import FIRST_USERS, Base, User, create_tables

if TYPE_CHECKING:
    from collections.abc import Iterator


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


def dispose(app: Flask) -> None:
    with app.app_context():
        engine = current_session.get_bind()
    assert isinstance(engine, Engine)
    engine.dispose()


def names(app: Flask) -> list[str]:
    return [user["name"] for user in app.test_client().get("/users").get_json()]


def test_a_later_start_changes_nothing(
    database_url: URL | str,
) -> None:
    app = create_app(database_url)
    app.test_client().post("/users", json={"name": "Dora"})
    again = create_app(database_url)
    assert names(again) == [*FIRST_USERS, "Dora"]
    dispose(app)
    dispose(again)


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
    assert names(app) == FIRST_USERS
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
    assert names(app) == FIRST_USERS
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
