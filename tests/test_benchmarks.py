"""The benchmarks run. What they measure, they alone say."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

_NEEDS = (
    "advanced_alchemy",
    "alchemical",
    "flask_sqlalchemy",
    "flask_sqlalchemy_lite",
    "matplotlib",
    "pyperf",
    "svcs",
)
_MISSING = [module for module in _NEEDS if find_spec(module) is None]


@pytest.mark.skipif(
    bool(_MISSING),
    reason=f"needs the extra 'benchmarks': {', '.join(_MISSING)} not installed",
)
def test_the_benchmarks_run_and_write_a_page_and_a_chart(
    tmp_path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", postgresql_url)
    subprocess.run(  # noqa: S603  # our own program
        [sys.executable, "-m", "benchmarks", "--quick", "--output", str(tmp_path)],
        check=True,
        cwd=Path(__file__).parents[1],
    )
    page = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    for row in (
        "`session()`",
        "`current_session.is_active`",
        "a request that reads a row, PostgreSQL",
        "memory of an open context with its session",
        "contexts alive at once",
    ):
        assert f"| {row} |" in page
    chart = ET.parse(tmp_path / "benchmarks.svg").getroot()  # noqa: S314  # our own file
    texts = {"".join(text.itertext()) for text in chart.findall(".//{*}text")}
    assert {"current_session.is_active", "threads"} <= texts
