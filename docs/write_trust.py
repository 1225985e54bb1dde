"""Write into ``trust.md`` what a run of the tests found.

``pytest -m '' --junit-xml=run.xml`` keeps what a run of every test found, in the form
that JUnit has made usual, and ``python docs/write_trust.py run.xml`` makes the page's
table of it.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

PAGE = Path(__file__).with_name("trust.md")
BEGIN, END = "<!-- run: begin -->\n", "<!-- run: end -->\n"

# A folder of tests, and what it is about.
SUBJECTS = {
    "tests/scope": "sessions and contexts",
    "tests/asyncio": "async sessions and the event loop",
    "tests/testing": "`isolate`",
    "tests/types": "types, in checkers and at run time",
    "tests/servers": "real servers",
    "tests/works_with": "other packages",
    "tests/recipes": "recipes",
    "tests/documents": "documentation",
    "tests/project": "the project itself",
    "examples": "example applications",
}


class Count(NamedTuple):
    """What the tests of a folder came to."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0

    def with_(self, case: ET.Element) -> Count:
        skipped = case.find("skipped") is not None
        failed = any(case.find(kind) is not None for kind in ("failure", "error"))
        return Count(
            self.passed + (not skipped and not failed),
            self.failed + failed,
            self.skipped + skipped,
            self.seconds + float(case.get("time", 0)),
        )


def folder_of(case: ET.Element) -> str:
    """Return the subject's folder that a test is in.

    :raises LookupError: when it is in none that the page has a word for.
    """
    # A module that is skipped as a whole stands as a test of its name.
    path = str(case.get("classname") or case.get("name")).replace(".", "/")
    for folder in SUBJECTS:
        if path.startswith(f"{folder}/"):
            return folder
    raise LookupError(f"{path} is in none of the folders of {Path(__file__).name}")


def count(run: Path) -> dict[str, Count]:
    counts = dict.fromkeys(SUBJECTS, Count())
    for case in ET.parse(run).iter("testcase"):  # noqa: S314  # a file of our own
        folder = folder_of(case)
        counts[folder] = counts[folder].with_(case)
    return counts


def table_of(counts: dict[str, Count]) -> str:
    rows = ["| What | Folder | Passed | Failed | Skipped |", "|---|---|--:|--:|--:|"]
    rows += [
        f"| {SUBJECTS[folder]} | `{folder}` | {found.passed:,} | {found.failed} "
        f"| {found.skipped} |"
        for folder, found in counts.items()
    ]
    passed, failed, skipped, seconds = map(sum, zip(*counts.values(), strict=True))
    rows.append(f"| **together** | | **{passed:,}** | **{failed}** | **{skipped}** |")
    names = ("Flask", "SQLAlchemy")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    python = ".".join(map(str, sys.version_info[:3]))
    return (
        "\n".join(rows)
        + f"\n\nWith {versions} and Python {python}. One after the other, these tests "
        f"take {seconds / 60:.0f} minutes.\n"
    )


def write(run: Path) -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(
        f"{before}{BEGIN}\n{table_of(count(run))}\n{END}{after}", encoding="utf-8"
    )


if __name__ == "__main__":
    write(Path(sys.argv[1]))
