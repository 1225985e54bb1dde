"""The lines that `isolate` documents, run as an application's tests."""

from __future__ import annotations

import re
import subprocess
import sys
from inspect import getdoc
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from flask_sqlalchemy_session.testing import isolate

if TYPE_CHECKING:
    from pathlib import Path

APPLICATION = """
import unittest
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from flask import Flask
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession
from flask_sqlalchemy_session.testing import isolate


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


engine = create_engine("sqlite:///users.sqlite3")
Base.metadata.drop_all(engine)
Base.metadata.create_all(engine)
app = Flask("shop")
session = FlaskScopedSession(sessionmaker(engine), app)


@app.get("/users/<int:id_>")
def get_user(id_: int) -> str:
    return session.get_one(User, id_).name


def add() -> None:
    with app.app_context():
        session.add(User(name="ann"))
        session.commit()
    with app.app_context():
        assert session.scalar(select(func.count()).select_from(User)) == 1


"""


def example(title: str) -> str:
    """Return the code under a title in the docstring."""
    found = re.search(
        rf"^{re.escape(title)}.*?::\n\n(.*?)\n(?=\S)",
        getdoc(isolate) or "",
        re.DOTALL | re.MULTILINE,
    )
    assert found is not None
    return APPLICATION + dedent(found[1])


@pytest.mark.documents
def test_the_documented_lines_isolate_tests(tmp_path: Path) -> None:
    functions = "\n\ndef test_a(): add()\ndef test_b(): add()\n"
    methods = "\n    def test_a(self): add()\n    def test_b(self): add()\n"
    again = "\n\ntest_again = test_a_user_is_stored\n"
    for name, lines in {
        "test_fixture.py": example("A pytest fixture") + functions,
        "test_unittest.py": example("A :class:`unittest.TestCase`") + methods,
        "test_decorator.py": example("A decorated function") + again,
    }.items():
        (tmp_path / name).write_text(lines)
    run = subprocess.run(  # our own code
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "6 passed" in run.stdout, run.stdout
