"""Each page is seen in a real browser, in four widths, light and dark, and by axe."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import which
from threading import Thread
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import Site

pytestmark = pytest.mark.documents

BROWSER = Path(__file__).parent / "browser"
CHROMIUM = which("chromium")
NODE = which("node")
SEARCHES = {
    "QueuePool limit": "operations",
    "DetachedInstanceError": "operations",
    "no session named": "errors",
    "no-context": "errors",
}
# Where a page is wrong, this one has each mistake that is looked for.
WRONG = """<!DOCTYPE html><html lang="en"><title>Wrong</title><body><article>
<table style="width: 3000px"><tr><td>wide</td></tr></table>
<table style="width: 20px"><tr><td style="width: 20px; overflow-wrap: anywhere">
RuntimeError</td></tr></table>
<svg viewBox="0 0 10 10" width="10"><text x="8" y="8">outside</text></svg>
<img src="none.png"><div style="width: 3000px"></div></article></body></html>
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """Serve a directory, on this machine alone, and give its address."""
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(directory))
    )
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def look(
    directory: Path, pages: list[str], searches: dict[str, str]
) -> tuple[int, list[str]]:
    """Return how often pages were looked at, and what is wrong with them."""
    if CHROMIUM is None or NODE is None:
        pytest.skip("chromium and node are not installed")
    if not (BROWSER / "node_modules").is_dir():
        pytest.skip(f"'npm install' was not run in {BROWSER}")
    with served(directory) as address:
        done = subprocess.run(  # noqa: S603  # our own script
            [
                *(NODE, BROWSER / "look.cjs", CHROMIUM, address),
                *(json.dumps(pages), json.dumps(searches)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout)
    return found["looks"], found["wrong"]


@pytest.mark.timeout(1200)
def test_every_page_is_whole_in_each_width_light_and_dark_and_accessible(
    site: Site,
) -> None:
    pages = sorted(
        page.relative_to(site.directory).with_suffix("").as_posix()
        for page in site.directory.rglob("*.html")
        if "_static" not in page.parts
    )
    looks, wrong = look(site.directory, pages, SEARCHES)
    assert not wrong, "\n".join(wrong)
    assert looks == len(pages) * 8


@pytest.mark.timeout(300)
def test_what_is_wrong_with_a_page_is_found(tmp_path: Path) -> None:
    (tmp_path / "wrong.html").write_text(WRONG, encoding="utf-8")
    (tmp_path / "search.html").write_text("nothing", encoding="utf-8")
    looks, wrong = look(tmp_path, ["wrong"], {"words": "page"})
    assert looks == 8
    found = {one.removeprefix("wrong, 1280, dark: ") for one in wrong}
    assert any(one.startswith("the page is ") for one in found)
    assert found >= {
        "a table is cut: wide",
        "a text leaves its figure: outside",
        "a word is broken: RuntimeError",
        "image-alt: img",
        "the search for 'words' does not find page",
    }
