"""The site, which takes long to build, is built once for all tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

DOCS = Path(__file__).parents[2] / "docs"


class Site(NamedTuple):
    """The documentation as it is published, and what Sphinx said while it built it."""

    directory: Path
    returncode: int
    said: str


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    directory = tmp_path_factory.mktemp("site")
    built = subprocess.run(  # noqa: S603  # Sphinx, on our own pages
        [
            *(sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going"),
            *("-d", tmp_path_factory.mktemp("doctrees"), DOCS, directory),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return Site(directory, built.returncode, built.stderr)
