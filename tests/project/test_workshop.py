"""What decides about a change agrees with what the package says of itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import metadata, requires, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DISTRIBUTION = "flask-sqlalchemy-session"
FLOORS = dict(
    line.split("==")
    for line in (ROOT / "tests" / "floors.txt").read_text().splitlines()
    if not line.startswith("#")
)


def environments() -> set[str]:
    """Tox's environments, those that run by themselves and those that do not."""
    tox = ConfigParser()
    tox.read(ROOT / "tox.ini")
    return {
        *re.split(r"[,\s]+", tox["tox"]["env_list"].strip()),
        *(section.removeprefix("testenv:") for section in tox.sections()),
    }


def test_the_oldest_environment_has_the_floors_of_the_package() -> None:
    required = [each for each in requires(DISTRIBUTION) or () if "extra ==" not in each]
    assert {each.partition(">=")[0] for each in required} == set(FLOORS)
    for each in required:
        name, _, floor = each.partition(">=")
        assert re.fullmatch(re.escape(floor) + r"(\.0)*", FLOORS[name]), each


@pytest.mark.skipif(
    os.environ.get("TOX_ENV_NAME") != "tests-min", reason="holds in tests-min alone"
)
@pytest.mark.parametrize("name", FLOORS)
def test_the_floors_are_what_is_installed(name: str) -> None:
    assert version(name) == FLOORS[name]


def test_each_interpreter_that_the_package_names_has_an_environment_and_a_job() -> None:
    named = [
        classifier.rpartition(" ")[2]
        for classifier in metadata(DISTRIBUTION).get_all("Classifier") or ()
        if ":: Python :: 3." in classifier
    ]
    jobs = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert {f"py{each}" for each in named} <= environments()
    for each in named:
        assert f'{{env: py{each}, python: "{each}"}}' in jobs


@pytest.mark.parametrize("workflow", ["ci.yml", "next.yml"])
def test_each_job_has_an_environment(workflow: str) -> None:
    text = (ROOT / ".github" / "workflows" / workflow).read_text()
    matrix = text.partition("steps:")[0]
    lines = re.findall(r"\benv: (.+?)(?:, python.*)?$", matrix, re.MULTILINE)
    names = {name for line in lines for name in re.findall(r"[\w.-]+", line)}
    assert names
    assert names <= environments()


def test_the_readme_has_one_line_that_runs_the_tests() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    (line,) = (line for line in lines if re.match("python3 -m venv .*pytest", line))
    assert line in (ROOT / "docs" / "contributing.md").read_text().splitlines()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_run_in_which_no_test_passed_has_failed(tmp_path: Path, workers: str) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    skipped = "import pytest\n\ndef test_one():\n    pytest.skip('not here')\n"
    (tmp_path / "test_one.py").write_text(skipped)
    plugins = ["-p", "xdist", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-n", workers, *plugins]
    done = subprocess.run(  # noqa: S603  # our own words
        [*command, str(tmp_path)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        check=False,
        cwd=tmp_path,
        text=True,
    )
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "No test passed." in done.stdout
