"""The benchmarks run. What they measure, they alone say."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[2]
_NEEDS = (
    "advanced_alchemy",
    "aiosqlite",
    "alchemical",
    "asyncpg",
    "flask_sqlalchemy",
    "flask_sqlalchemy_lite",
    "gunicorn",
    "pyperf",
    "svcs",
)
_MISSING = [module for module in _NEEDS if find_spec(module) is None]

pytestmark = pytest.mark.skipif(
    bool(_MISSING),
    reason=f"needs the extra 'benchmarks': {', '.join(_MISSING)} not installed",
)


def test_the_benchmarks_run_and_write_their_tables_and_a_chart(
    tmp_path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", postgresql_url)
    page = tmp_path / "benchmarks.md"
    before = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    page.write_text(before, encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks", "--processes", "2", "--rounds", "1"]
    command += ["--page", str(page), "--save", str(tmp_path / "measured.json")]
    subprocess.run(command, check=True, cwd=ROOT)  # noqa: S603  # our own program
    after = page.read_text(encoding="utf-8")
    for row in (
        "`session()`",
        "a context that uses `session()` once",
        "a context that uses `current_session` once",
        "a request that reads a row, PostgreSQL",
        "memory of an open context with its session",
        "contexts alive at once",
    ):
        assert f"| {row} |" in after
    begin, end = "<!-- measured: begin -->", "<!-- measured: end -->"
    assert after.partition(begin)[0] == before.partition(begin)[0]
    assert after.partition(end)[2] == before.partition(end)[2]
    chart = ET.parse(tmp_path / "benchmarks.svg").getroot()  # noqa: S314  # our own file
    texts = {"".join(text.itertext()) for text in chart.findall(".//{*}text")}
    assert {"this library", "Flask-SQLAlchemy", "by hand"} <= texts
    show = [sys.executable, "-m", "pyperf", "show", str(tmp_path / "measured.json")]
    subprocess.run(show, check=True)  # noqa: S603  # our own words


def test_async_views_are_loaded_and_counted_in_a_page(
    tmp_path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", postgresql_url)
    page = tmp_path / "async.md"
    before = (ROOT / "docs" / "async.md").read_text(encoding="utf-8")
    page.write_text(before, encoding="utf-8")
    subprocess.run(  # noqa: S603  # our own program
        [
            *(sys.executable, "-m", "benchmarks.async_views"),
            *("--quick", "--page", str(page)),
        ],
        check=True,
        cwd=ROOT,
    )
    after = page.read_text(encoding="utf-8")
    for driver in ("asyncpg", "psycopg", "aiosqlite"):
        assert f"| {driver} | 1 | this library | 6 of 6 | 0 | 1 |" in after
        assert f"| {driver} | 1 | Flask-SQLAlchemy-Lite |" in after
        alone = rf"^\| {driver} \| 8 \| this library \| \d\.\d\d \|"
        assert re.search(alone, after, re.MULTILINE)
    begin, end = "<!-- measured: begin -->", "<!-- measured: end -->"
    assert after.partition(begin)[0] == before.partition(begin)[0]
    assert after.partition(end)[2] == before.partition(end)[2]
