"""The page *Works with* says what these tests and their environments do."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("markdown_it")

from markdown_it import MarkdownIt

HERE = Path(__file__).parent
TEXT = (HERE.parents[1] / "docs" / "works-with.md").read_text(encoding="utf-8")
BLOCKS = [block for block in MarkdownIt().parse(TEXT) if block.type == "fence"]
# Where a test's lines are, when they are not its own.
ELSEWHERE = {
    "test_celery.py": "celery_shop.py",
    "test_xdist.py": "xdist_shop/conftest.py",
}
# By its instrumentation, which has the version that matters.
PARTS = {"opentelemetry-instrumentation-sqlalchemy", "opentelemetry-sdk"}
NAMES = {"opentelemetry-instrumentation-flask": "opentelemetry", "sentry-sdk": "sentry"}


def test_the_table_has_the_versions_of_the_environments() -> None:
    rows = re.findall(r"^\| \[?([\w-]+).*? +\| (\d\S*) +\|", TEXT, re.MULTILINE)
    pinned = {
        (NAMES.get(name, name), version)
        for file in HERE.glob("requirements*.txt")
        for name, version in re.findall(
            r"^([a-z-]+)(?:\[\w+\])?==(\S+)$",
            file.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
        if name not in PARTS
    }
    assert {
        (package.lower().replace("_", "-"), version) for package, version in rows
    } == pinned


def test_each_package_of_the_table_has_a_section() -> None:
    linked = re.findall(r"^\| \[(.+?)\]", TEXT, re.MULTILINE)
    assert linked == re.findall(r"^### (.+)$", TEXT, re.MULTILINE)


@pytest.mark.parametrize(
    ("info", "code"),
    [(block.info, block.content) for block in BLOCKS],
    ids=[f"{block.info.split()[3]}-{block.map[0]}" for block in BLOCKS if block.map],
)
def test_what_the_page_shows_is_what_a_test_runs(info: str, code: str) -> None:
    _, _, _, test, *_ = info.split()
    assert (HERE / test).exists()
    lines = (HERE / ELSEWHERE.get(test, test)).read_text(encoding="utf-8")
    at = [lines.find(part.strip("\n")) for part in re.split(r"\n\n+", code)]
    assert -1 not in at
    assert all(before < after for before, after in pairwise(at))
