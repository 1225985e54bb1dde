"""A release is one command and one push away."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOBODY = {
    f"GIT_{who}_{what}": "nobody@example.org"
    for who in ("AUTHOR", "COMMITTER")
    for what in ("NAME", "EMAIL")
}

pytestmark = pytest.mark.skipif(
    find_spec("bumpversion") is None, reason="runs in tox's environment 'package'"
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a version that is not released."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    head, mark, tail = changelog.partition("\n## ")
    unreleased = f"{head}\n## 9.8.7 (unreleased)\n\n### Fixed\n\n- All.\n{mark}{tail}"
    (tmp_path / "CHANGELOG.md").write_text(unreleased, encoding="utf-8")
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(settings, encoding="utf-8")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "Begin")
    return tmp_path


def git(checkout: Path, *arguments: str) -> str:
    return run(checkout, "git", *arguments).stdout


def run(checkout: Path, *command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(  # noqa: S603  # our own words
        command,
        capture_output=True,
        check=False,
        cwd=checkout,
        env={**os.environ, **NOBODY},
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def cut(checkout: Path, version: str) -> None:
    bump = ("-m", "bumpversion", "bump", "--new-version", version)
    run(checkout, sys.executable, *bump)


def test_a_release_dates_the_changelog_and_is_committed_and_tagged(
    checkout: Path,
) -> None:
    cut(checkout, "9.8.7")
    changelog = (checkout / "CHANGELOG.md").read_text(encoding="utf-8")
    today = git(checkout, "log", "-1", "--format=%ad", "--date=format-local:%Y-%m-%d")
    assert f"\n## 9.8.7 ({today.strip()})\n" in changelog
    assert git(checkout, "describe", "--tags").strip() == "9.8.7"
    assert not git(checkout, "status", "--porcelain")


def test_only_the_version_of_the_changelog_can_be_released(checkout: Path) -> None:
    with pytest.raises(AssertionError, match=r"## 9\.9\.9 \(unreleased\)"):
        cut(checkout, "9.9.9")
    assert not git(checkout, "tag")
    assert not git(checkout, "status", "--porcelain")
