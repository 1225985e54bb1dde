"""pytest-xdist: a database for each process, and a rollback for each test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select

from tests.support import User

pytest.importorskip("xdist")

SUITE = Path(__file__).parent / "xdist_shop"


def test_two_processes_run_a_suite_and_leave_nothing(tmp_path: Path) -> None:
    ran = subprocess.run(  # noqa: S603  # pytest, on a suite of ours
        [sys.executable, "-m", "pytest", "-q", "-n", "2", str(SUITE)],
        env=os.environ | {"SHOP_DIRECTORY": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    assert "10 passed, 10 xfailed" in ran.stdout
    databases = sorted(file.name for file in tmp_path.iterdir())
    assert databases == ["shop_gw0", "shop_gw1"]
    for name in databases:
        engine = create_engine(f"sqlite:///{tmp_path}/{name}")
        with engine.connect() as connection:
            assert connection.execute(select(User)).all() == []
        engine.dispose()
