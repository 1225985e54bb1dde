"""Flask-Migrate: it asks for an engine and a metadata, and for no session."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import inspect
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from flask_sqlalchemy_session import current_session

pytest.importorskip("flask_migrate")

from flask_migrate import Migrate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result
    from flask import Flask
    from sqlalchemy import Engine

    from flask_sqlalchemy_session import FlaskScopedSession
    from tests.support import Held

pytestmark = pytest.mark.usefixtures("logging_restored")


class Base(DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = "products"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


def add_migrations(app: Flask, engine: Engine) -> None:
    db = SimpleNamespace(engine=engine, metadata=Base.metadata)
    Migrate(app, db)  # type: ignore[arg-type]  # its types know Flask-SQLAlchemy's alone


@pytest.fixture
def flask_db(
    app: Flask,
    session: FlaskScopedSession[Session],
    engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Result]:
    """Runs `flask db` as in a shell."""
    monkeypatch.chdir(tmp_path)
    add_migrations(app, engine)
    return lambda *arguments: app.test_cli_runner().invoke(args=["db", *arguments])


def test_a_migration_is_made_run_and_undone(
    flask_db: Callable[..., Result], app: Flask, engine: Engine, held: Held
) -> None:
    for command in (["init"], ["migrate", "-m", "products"], ["upgrade"]):
        assert flask_db(*command).exception is None
        assert held.count == 0
    with app.app_context():
        current_session.add(Product(name="tea"))
        current_session.commit()
    assert flask_db("downgrade").exception is None
    assert not inspect(engine).has_table("products")
    assert held.count == 0


def test_a_migration_that_fails_leaves_nothing_open(
    flask_db: Callable[..., Result], tmp_path: Path, engine: Engine, held: Held
) -> None:
    assert flask_db("init").exception is None
    assert flask_db("revision", "-m", "broken").exception is None
    (migration,) = (tmp_path / "migrations" / "versions").glob("*_broken.py")
    code = migration.read_text()
    migration.write_text(
        code.replace("pass", "op.execute('INSERT INTO nowhere VALUES (1)')", 1)
    )
    assert "no such table: nowhere" in str(flask_db("upgrade").exception)
    assert held.count == 0
    migration.write_text(code)
    assert flask_db("upgrade").exception is None
    assert flask_db("check").exception is not None  # the products are missing
    assert held.count == 0
