"""The recipes for an application's tests, and what the wrong ways let pass."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.documents.test_documents import ROOT, python_blocks_in
from tests.support import Held, User

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flask import Flask

FLASK = tuple(int(part) for part in version("flask").split(".")[:2])

# Both insert the same key, and each waits until the other has.
SUITE = """
import time
from pathlib import Path

import pytest

from shop import Author, app, current_session


@pytest.mark.parametrize(("own", "other"), [("a", "b"), ("b", "a")])
def test_both_workers_have_the_first_author(own, other):
    with app.app_context():
        current_session.add(Author(id=1, name=own))
        current_session.commit()
        Path(own).touch()
        for _ in range(300):
            if Path(other).exists():
                break
            time.sleep(0.01)
        assert Path(other).exists()
"""

ONE_FOR_ALL = """
import os

@pytest.fixture(autouse=True)
def isolated():
    engine = create_engine(os.environ["DATABASE_URL"])
    session.configure(bind=engine)
    with isolate(session):
        yield
    engine.dispose()
"""


def blocks_of_page() -> list[str]:
    page = ROOT / "docs" / "recipes" / "tests.md"
    return python_blocks_in(page.read_text(encoding="utf-8"))


@pytest.mark.documents
class TestADatabaseForEachWorker:
    @pytest.fixture
    def database(self, postgresql_url: str) -> Iterator[str]:
        """A database's address; it and those that are named after it are dropped."""
        server = create_engine(postgresql_url, isolation_level="AUTOCOMMIT")
        with server.connect() as connection:
            connection.execute(text("CREATE DATABASE recipe"))
        yield server.url.set(database="recipe").render_as_string(hide_password=False)
        with server.connect() as connection:
            for name in connection.scalars(
                text("SELECT datname FROM pg_database WHERE datname LIKE 'recipe%'")
            ).all():
                connection.execute(text(f"DROP DATABASE {name}"))
        server.dispose()

    def run_suite(self, directory: Path, database: str, fixtures: str) -> str:
        """Run the suite with two workers, and return what pytest printed."""
        (directory / "shop.py").write_text(blocks_of_page()[0], encoding="utf-8")
        (directory / "conftest.py").write_text(
            f"from shop import *\n{fixtures}", encoding="utf-8"
        )
        (directory / "test_shop.py").write_text(SUITE, encoding="utf-8")
        done = subprocess.run(  # our own words
            [sys.executable, "-m", "pytest", "-q", "-p", "xdist", "-n", "2"],
            cwd=directory,
            env={
                **os.environ,
                "DATABASE_URL": database,
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr

    def test_the_workers_do_not_wait_for_each_other(
        self, tmp_path: Path, database: str
    ) -> None:
        (fixtures,) = (b for b in blocks_of_page() if "PYTEST_XDIST_WORKER" in b)
        assert "2 passed" in self.run_suite(tmp_path, database, fixtures)

    def test_on_one_database_one_waits_for_the_others_key(
        self, tmp_path: Path, database: str
    ) -> None:
        engine = create_engine(database)
        with engine.begin() as connection:
            connection.execute(
                text("CREATE TABLE authors (id int PRIMARY KEY, name text)")
            )
        engine.dispose()
        assert "1 failed, 1 passed" in self.run_suite(tmp_path, database, ONE_FOR_ALL)


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
class TestMocks:
    def test_a_patch_of_current_session_is_one_contexts(
        self, app: Flask, session: FlaskScopedSession[Session], ann: User
    ) -> None:
        with app.app_context(), mock.patch.object(current_session, "commit") as patched:
            current_session.commit()
            with app.app_context():
                current_session.commit()
        patched.assert_called_once_with()

    def test_a_patch_of_the_object_does_not_reach_current_session(
        self, app: Flask, session: FlaskScopedSession[Session]
    ) -> None:
        with mock.patch.object(session, "commit") as patched, app.app_context():
            current_session.commit()
        patched.assert_not_called()

    def test_an_attribute_of_the_application_does_not_redirect_current_session(
        self, app: Flask, session: FlaskScopedSession[Session]
    ) -> None:
        app.__dict__["scoped_session"] = mock.create_autospec(Session, instance=True)
        with app.app_context():
            assert current_session == session()

    def test_a_patch_of_the_class_is_everyones(
        self, app: Flask, session: FlaskScopedSession[Session], ann: User
    ) -> None:
        with mock.patch.object(Session, "commit") as patched:
            for _ in range(2):
                with app.app_context():
                    current_session.commit()
        assert patched.call_count == 2

    def test_a_session_that_takes_the_place_of_a_contexts_is_its_own_alone(
        self, app: Flask, session: FlaskScopedSession[Session], held: Held
    ) -> None:
        fake = mock.create_autospec(Session, instance=True)
        with app.app_context():
            session.registry.set(fake)
            assert current_session == fake
        with app.app_context():
            assert current_session != fake
        fake.close.assert_called()


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
class TestTheContextThatASuiteKeepsOpen:
    @pytest.fixture
    def forgetful(self, app: Flask, session: FlaskScopedSession[Session]) -> Flask:
        """An application whose view forgets to commit."""

        @app.post("/users")
        def add_user() -> str:
            current_session.add(User(name="ann"))
            current_session.flush()
            return ""

        return app

    @pytest.mark.skipif(FLASK >= (3, 2), reason="a request has its own context there")
    def test_a_context_around_the_request_hides_a_missing_commit(
        self, forgetful: Flask
    ) -> None:
        with forgetful.app_context():
            forgetful.test_client().post("/users")
            assert current_session.query(User).count() == 1

    def test_a_context_after_the_request_shows_it(self, forgetful: Flask) -> None:
        forgetful.test_client().post("/users")
        with forgetful.app_context():
            assert current_session.query(User).count() == 0
