"""The site builds without a warning, its links lead somewhere, and its word is kept."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest
from sqlalchemy import create_engine, text

from .test_documents import program_with, python_blocks_in

pytestmark = pytest.mark.documents

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Site

DOCS = Path(__file__).parents[2] / "docs"
MEASURE = DOCS / "measure_faults.py"


class Page(HTMLParser):
    """Collects what can be linked to in a page, and what it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.links.add(value)


def broken_links(site: Path) -> dict[str, list[str]]:
    """Return the links of each page that lead nowhere on the site."""
    pages = {
        file: Page(file.read_text(encoding="utf-8")) for file in site.rglob("*.html")
    }
    broken = defaultdict(list)
    for file, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme:
                continue
            target = (file.parent / unquote(url.path)).resolve() if url.path else file
            if not target.is_file() or (
                url.fragment
                and target in pages
                and unquote(url.fragment) not in pages[target].ids
            ):
                broken[file.name].append(link)
    return dict(broken)


def test_the_site_builds_and_its_links_lead_somewhere(site: Site) -> None:
    assert not site.said
    assert site.returncode == 0
    pages = {page.stem for page in DOCS.glob("*.md")}
    assert {page.stem for page in site.directory.glob("*.html")} >= pages
    assert not broken_links(site.directory)


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<p id="x"><a href="#x"><a href="#y"><a href="b.html#z"><a href="c.html">',
        encoding="utf-8",
    )
    (tmp_path / "b.html").write_text('<p id="z"><a href="a.html#x">', encoding="utf-8")
    assert {page: sorted(links) for page, links in broken_links(tmp_path).items()} == {
        "a.html": ["#y", "c.html"]
    }


def test_the_lines_for_alembic_make_it_find_the_models(tmp_path: Path) -> None:
    page = DOCS / "migrating-from-flask-sqlalchemy.md"
    (lines,) = (
        block
        for block in python_blocks_in(page.read_text(encoding="utf-8"))
        if "target_metadata" in block
    )
    shop = program_with("def answer_not_found").code
    (tmp_path / "shop.py").write_text(shop.partition("def create_app")[0])

    def alembic(*arguments: str) -> str:
        done = subprocess.run(  # noqa: S603  # our own words
            [sys.executable, "-m", "alembic", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    alembic("init", "migrations")
    env = tmp_path / "migrations" / "env.py"
    made = env.read_text()
    assert made.count("target_metadata = None") == 1
    env.write_text(made.replace("target_metadata = None", lines))
    made = alembic("revision", "--autogenerate", "-m", "users")
    assert "Detected added table 'users'" in made
    assert "Running upgrade" in alembic("upgrade", "head")


MEASURING = runpy.run_path(str(MEASURE))
FAULTS: list[Callable[[object, str], str]] = MEASURING["FAULTS"]
ASYNC_FAULTS: list[Callable[[object, str], str]] = MEASURING["ASYNC_FAULTS"]
marked: Callable[[str], str] = MEASURING["marked"]


@pytest.mark.parametrize(
    "fault", FAULTS + ASYNC_FAULTS, ids=lambda fault: fault.__name__
)
def test_a_fault_leaves_what_the_table_says(
    fault: Callable[[object, str], str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    title = str(fault.__doc__).removesuffix(".")
    page = (DOCS / "faults.md").read_text(encoding="utf-8")
    of_sync, _, of_async = page.partition("<!-- async: begin -->")
    table = of_async if fault in ASYNC_FAULTS else of_sync
    (row,) = (line for line in table.splitlines() if line.startswith(f"| {title} |"))
    if fault in ASYNC_FAULTS:
        url = request.getfixturevalue("postgresql_url").replace("psycopg", "asyncpg")
    elif "PostgreSQL" in title:
        url = request.getfixturevalue("postgresql_url")
    else:
        url = f"sqlite:///{tmp_path}/faults.sqlite3"
    measured = subprocess.run(  # noqa: S603  # the script that made the table
        [sys.executable, str(MEASURE), fault.__name__, "this library", url],
        capture_output=True,
        text=True,
        check=False,
    )
    if fault not in ASYNC_FAULTS:
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE IF EXISTS users"))
        engine.dispose()
    assert not measured.stderr
    assert marked(measured.stdout.strip()) == row.split(" | ")[1]


def measured(title: str) -> dict[str, str]:
    """Return a row of the faults' table: what each way of having a session left."""
    table = (DOCS / "faults.md").read_text(encoding="utf-8").splitlines()
    heads, row = (
        next(line for line in table if line.startswith(f"| {first} |"))
        for first in ("What happens", title)
    )
    cells = (
        [re.sub("<.*> ", "", cell.strip()) for cell in line.split("|")[2:-1]]
        for line in (heads, row)
    )
    return dict(zip(*cells, strict=True))


@pytest.mark.parametrize("page", ["docs/index.md", "README.md"])
def test_the_first_screen_quotes_the_table_of_faults(page: str) -> None:
    text = " ".join((DOCS.parent / page).read_text(encoding="utf-8").split())
    hook = measured("A teardown function that runs before the library's raises")
    fork = measured(
        "A child forked in a view exits, and then the view commits (PostgreSQL)"
    )

    def count(way: str, what: str) -> str:
        found = re.search(rf"(\d+) {what}", hook[way])
        return found[1] if found else "none"

    assert (
        f"Left open: {count('Flask-SQLAlchemy', 'held')} connections with "
        f"Flask-SQLAlchemy, {count('Flask-SQLAlchemy-Lite', 'held')} with "
        f"Flask-SQLAlchemy-Lite, {count('this library', 'held')} here." in text
    )
    assert (
        f"handed on to {count('`scoped_session` and a hook', 'handed on')} of 20 "
        "requests with `scoped_session` and a hook, to "
        f"{count('Flask-SQLAlchemy', 'handed on')} with Flask-SQLAlchemy, to "
        f"{count('this library', 'handed on')} here." in text
    )
    (peers,) = {each for way, each in fork.items() if way != "this library"}
    assert f"{peers} with all three of them," in text
    assert f"{fork['this library'].removesuffix(' row stored')} here." in text


TRUST = runpy.run_path(str(DOCS / "write_trust.py"))


def test_the_run_of_the_tests_is_counted_by_folder(tmp_path: Path) -> None:
    run = tmp_path / "run.xml"
    run.write_text(
        """<testsuites><testsuite>
        <testcase classname="tests.scope.test_scope" time="1" />
        <testcase classname="tests.scope.test_fork" time="2"><skipped/></testcase>
        <testcase classname="examples.users.test_users"><failure/></testcase>
        </testsuite></testsuites>""",
        encoding="utf-8",
    )
    counts = TRUST["count"](run)
    assert tuple(counts["tests/scope"]) == (1, 0, 1, 3.0)
    assert tuple(counts["examples"]) == (0, 1, 0, 0.0)
    rows = TRUST["table_of"](counts).splitlines()
    assert "| sessions and contexts | `tests/scope` | 1 | 0 | 1 |" in rows
    assert "| **together** | | **1** | **1** | **1** |" in rows


def test_each_folder_of_tests_is_on_the_page_of_trust() -> None:
    folders = {
        f"tests/{file.parent.name}" for file in DOCS.parent.glob("tests/*/test_*.py")
    }
    assert folders | {"examples"} == set(TRUST["SUBJECTS"])
