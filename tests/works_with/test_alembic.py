"""Alembic by itself: it takes the application's engine and metadata."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import inspect

from tests.support import Held

pytest.importorskip("alembic")

from alembic import command
from alembic.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flask import Flask
    from sqlalchemy import Engine

    from flask_sqlalchemy_session import FlaskScopedSession

pytestmark = pytest.mark.usefixtures("logging_restored")

SHOP = """
from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


app = Flask("shop")
engine = create_engine("sqlite:///shop.sqlite3")
session = FlaskScopedSession(sessionmaker(engine), app)
"""

# What `env.py` says in the place of `target_metadata = None`, and of its engine.
TARGET = """\
from shop import Base, engine

target_metadata = Base.metadata
"""
ENGINE = """\
    connectable = engine
"""


class Shop:
    """An application with migrations, in a directory."""

    def __init__(self, directory: Path) -> None:
        (directory / "shop.py").write_text(SHOP)
        self.config = Config(directory / "alembic.ini")
        self.versions = directory / "migrations" / "versions"
        command.init(self.config, str(directory / "migrations"))
        env = directory / "migrations" / "env.py"
        made = env.read_text()
        before, start, rest = made.partition("    connectable = engine_from_config(")
        _, end, after = rest.partition("    )\n")
        assert start
        assert end
        made = before + ENGINE + after
        assert made.count("target_metadata = None\n") == 1
        env.write_text(made.replace("target_metadata = None\n", TARGET))
        shop = import_module("shop")
        self.app: Flask = shop.app
        self.engine: Engine = shop.engine
        self.session: FlaskScopedSession = shop.session
        self.user: type = shop.User
        self.held = Held(self.engine)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shop = Shop(tmp_path)
    yield shop
    shop.engine.dispose()
    del sys.modules["shop"]


def test_a_migration_is_made_run_and_undone(shop: Shop) -> None:
    command.revision(shop.config, "users", autogenerate=True)
    command.upgrade(shop.config, "head")
    with shop.app.app_context():
        shop.session.add(shop.user(name="ann"))
        shop.session.commit()
    command.downgrade(shop.config, "base")
    assert not inspect(shop.engine).has_table("users")
    assert shop.held.count == 0


def test_a_migration_that_fails_leaves_nothing_open(shop: Shop) -> None:
    command.revision(shop.config, "broken")
    (migration,) = shop.versions.glob("*_broken.py")
    migration.write_text(migration.read_text().replace("pass", "raise LookupError", 1))
    with pytest.raises(LookupError):
        command.upgrade(shop.config, "head")
    assert shop.held.count == 0
