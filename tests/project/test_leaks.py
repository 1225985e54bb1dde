"""The check that a test leaves nothing open can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from tests.leaks import nothing_left_open

if TYPE_CHECKING:
    from sqlalchemy import Engine


def test_a_connection_that_is_not_given_back_is_found(engine: Engine) -> None:
    with (
        pytest.raises(AssertionError, match="connection was not given back"),
        nothing_left_open(),
    ):
        connection = engine.connect()
    connection.close()


def test_a_session_that_is_not_closed_is_found(engine: Engine) -> None:
    session = Session(engine)
    with (
        pytest.raises(AssertionError, match="session in a transaction"),
        nothing_left_open(),
    ):
        session.begin()
    session.close()


@pytest.mark.leaks
def test_a_session_that_is_dropped_in_a_transaction_is_found(engine: Engine) -> None:
    with (
        pytest.raises(AssertionError, match="session in a transaction"),
        nothing_left_open(),
    ):
        Session(engine).execute(text("SELECT 1"))


def test_what_is_closed_is_not_found(engine: Engine) -> None:
    with nothing_left_open(), Session(engine) as session:
        session.execute(text("SELECT 1"))
        session.begin_nested()
        session.connection().invalidate()
    with nothing_left_open(), engine.connect() as connection:
        connection.detach()


LEAKY = """
from tests.leaks import earlier_objects_out_of_the_collector, leaks


def test_leaves_a_file_to_the_collector():
    cycle = [open(__file__)]
    cycle.append(cycle)


def test_closes_it():
    open(__file__).close()
"""


def test_a_resource_warning_fails_the_test_that_it_is_of(tmp_path: Path) -> None:
    (tmp_path / "test_leaky.py").write_text(LEAKY)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider"]
    command += ["-c", str(root / "pyproject.toml"), "--rootdir", str(root)]
    done = subprocess.run(  # noqa: S603  # our own words
        [*command, str(tmp_path)], capture_output=True, cwd=root, text=True, check=False
    )
    assert "2 passed, 1 error" in done.stdout
    assert "ERROR at teardown of test_leaves_a_file_to_the_collector" in done.stdout
    assert "ResourceWarning: unclosed file" in done.stdout
