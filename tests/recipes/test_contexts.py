"""An engine for each application, and code inside or outside a context."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from flask import Flask
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from flask_sqlalchemy_session.testing import isolate
from tests.documents.test_documents import ROOT, program_with, python_blocks_in
from tests.support import Held, User

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path
    from types import ModuleType


class TestAnEngineForEachApplication:
    @pytest.fixture
    def apps(
        self, recipe: Callable[[str], ModuleType], postgresql_url: str
    ) -> Iterator[tuple[ModuleType, Flask, Flask]]:
        """The page's program, with an application on a server and one on a file."""
        page = recipe('found: Engine = current_app.extensions["engine"]')
        served = page.create_app({"DATABASE_URL": postgresql_url})
        filed = page.create_app({"DATABASE_URL": "sqlite:///own.sqlite3"})
        for app in (served, filed):
            assert app.test_cli_runner().invoke(args=["create-tables"]).exit_code == 0
        yield page, served, filed
        page.Base.metadata.drop_all(served.extensions["engine"])
        for app in (served, filed):
            app.extensions["engine"].dispose()

    def test_each_application_has_its_own_rows(
        self, apps: tuple[ModuleType, Flask, Flask]
    ) -> None:
        page, served, filed = apps
        with served.app_context():
            current_session.add(page.User(name="ann"))
            current_session.commit()
            with filed.app_context():
                assert current_session.scalars(select(page.User)).all() == []
        assert served.test_client().get("/users").get_json() == ["ann"]
        assert filed.test_client().get("/users").get_json() == []

    def test_one_block_isolates_both(
        self, apps: tuple[ModuleType, Flask, Flask]
    ) -> None:
        page, *both = apps
        with isolate(page.session):
            for app in both:
                with app.app_context():
                    current_session.add(page.User(name="ann"))
                    current_session.commit()
                assert app.test_client().get("/users").get_json() == ["ann"]
        for app in both:
            assert app.test_client().get("/users").get_json() == []

    def test_a_factory_that_is_configured_anew_sends_all_to_the_last_database(
        self, tmp_path: Path
    ) -> None:
        engines = [create_engine(f"sqlite:///{tmp_path}/{name}") for name in "ab"]
        session = FlaskScopedSession(sessionmaker())
        apps = [Flask("a"), Flask("b")]
        for app, engine in zip(apps, engines, strict=True):
            session.init_app(app)
            session.configure(bind=engine)
        with apps[0].app_context():
            assert current_session.get_bind() is engines[1]

    def test_alembic_finds_the_models_by_the_lines_for_it(self, tmp_path: Path) -> None:
        text = (ROOT / "docs" / "databases.md").read_text(encoding="utf-8")
        (lines,) = (block for block in python_blocks_in(text) if "set_main" in block)
        program = program_with('found: Engine = current_app.extensions["engine"]')
        shop = program.code.partition("north = create_app")[0]
        (tmp_path / "shop.py").write_text(shop, encoding="utf-8")

        def alembic(*arguments: str) -> str:
            done = subprocess.run(  # noqa: S603  # our own words
                [sys.executable, "-m", "alembic", *arguments],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=True,
            )
            return done.stdout + done.stderr

        alembic("init", "migrations")
        env = tmp_path / "migrations" / "env.py"
        env.write_text(env.read_text().replace("target_metadata = None", lines))
        made = alembic("revision", "--autogenerate", "-m", "users")
        assert "Detected added table 'users'" in made
        assert "Running upgrade" in alembic("upgrade", "head")


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
class TestInsideOrOutsideAContext:
    def count(self, context: AbstractContextManager[object]) -> int:
        with context:
            return current_session.scalars(select(func.count(User.id))).one()

    @pytest.fixture
    def a_context(
        self,
        recipe: Callable[[str], ModuleType],
        session: FlaskScopedSession[Session],
        app: Flask,
    ) -> Callable[[], AbstractContextManager[object]]:
        function: Callable[[], AbstractContextManager[object]]
        function = recipe("def a_context(").a_context
        function.__globals__["app"] = app
        return function

    def test_it_shares_what_the_caller_has_not_committed_and_its_connection(
        self,
        a_context: Callable[[], AbstractContextManager[object]],
        app: Flask,
        held: Held,
    ) -> None:
        with app.app_context():
            current_session.add(User(name="ann"))
            current_session.flush()
            assert self.count(a_context()) == 1
            assert held.count == 1
            assert current_session.in_transaction()

    def test_it_has_a_context_of_its_own_where_there_is_none(
        self, a_context: Callable[[], AbstractContextManager[object]], held: Held
    ) -> None:
        assert self.count(a_context()) == 0
        assert held.count == 0

    def test_a_context_inside_a_context_sees_nothing_of_it_and_takes_another_connection(
        self, session: FlaskScopedSession[Session], app: Flask, held: Held
    ) -> None:
        with app.app_context():
            current_session.add(User(name="ann"))
            current_session.flush()
            with app.app_context():
                assert current_session.scalar(select(func.count(User.id))) == 0
                assert held.count == 2
