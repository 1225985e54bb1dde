"""What is installed: the files, the metadata and the names."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email import message_from_string
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import flask_sqlalchemy_session.asyncio

if TYPE_CHECKING:
    from email.message import Message

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "flask_sqlalchemy_session"
DISTRIBUTION = "flask-sqlalchemy-session"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """The wheel that the checkout makes."""
    if not SOURCE.is_dir():
        pytest.skip("the package is tested as installed, without its source")
    directory = tmp_path_factory.mktemp("wheel")
    subprocess.run(  # noqa: S603  # this interpreter
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            f"--outdir={directory}",
            str(ROOT),
        ],
        check=True,
        capture_output=True,
    )
    (file,) = directory.glob("*.whl")
    return zipfile.Path(file)


@pytest.fixture(scope="module")
def described(request: pytest.FixtureRequest) -> Message:
    """What the wheel, or else the installed package, says of itself."""
    if not SOURCE.is_dir():
        text = distribution(DISTRIBUTION).read_text("METADATA")
    else:
        wheel: zipfile.Path = request.getfixturevalue("wheel")
        (info,) = (path for path in wheel.iterdir() if path.name.endswith(".dist-info"))
        text = (info / "METADATA").read_text(encoding="utf-8")
    assert text is not None
    return message_from_string(text)


def test_the_public_names_are_these() -> None:
    assert set(flask_sqlalchemy_session.__all__) == {
        "FlaskScopedSession",
        "SessionFactory",
        "current_session",
        "flask_scoped_session",
    }
    assert set(flask_sqlalchemy_session.asyncio.__all__) == {
        "AsyncSessionFactory",
        "FlaskAsyncScopedSession",
        "current_async_session",
        "flask_async_scoped_session",
        "use_one_event_loop",
    }


def test_the_version_is_the_changelogs_newest(described: Message) -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = next(line for line in changelog.splitlines() if line.startswith("## "))
    assert newest.split()[1] == described["Version"]


def test_the_licence_is_named_and_included(described: Message) -> None:
    assert described["License-Expression"] == "MIT"
    assert described["License-File"] == "LICENSE"


def test_four_packages_are_required(described: Message) -> None:
    names = {
        requirement.split(">=")[0]
        for requirement in described.get_all("Requires-Dist", [])
        if "extra ==" not in requirement
    }
    assert names == {"flask", "sqlalchemy", "typing-extensions", "werkzeug"}


def test_the_interpreter_is_one_of_those_named(described: Message) -> None:
    versions = [
        classifier.rpartition(" ")[2]
        for classifier in described.get_all("Classifier", [])
        if ":: Python :: 3." in classifier
    ]
    assert "{}.{}".format(*sys.version_info) in versions
    assert described["Requires-Python"] == f">={versions[0]}"


def test_importing_the_package_imports_none_that_is_not_required() -> None:
    program = (
        "import sys; before = set(sys.modules); import flask_sqlalchemy_session; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    ran = subprocess.run(  # noqa: S603  # this interpreter
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    imported = set(ran.stdout.split())
    assert {"flask", "flask_sqlalchemy_session"} <= imported
    assert not imported & {"asyncpg", "psycopg", "pytest", "_pytest"}


def test_the_wheel_ships_its_types(wheel: zipfile.Path) -> None:
    assert (wheel / "flask_sqlalchemy_session" / "py.typed").is_file()


def test_the_wheel_has_all_of_the_package_and_nothing_else(wheel: zipfile.Path) -> None:
    names = {
        name
        for name in wheel.root.namelist()
        if ".dist-info/" not in name and not name.endswith("/")
    }
    assert names == {
        file.relative_to(ROOT).as_posix()
        for file in SOURCE.rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }


def test_the_wheel_has_the_licence(wheel: zipfile.Path) -> None:
    (licence,) = (
        name for name in wheel.root.namelist() if name.endswith("/licenses/LICENSE")
    )
    assert wheel.root.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_the_installed_package_has_its_types() -> None:
    assert (Path(flask_sqlalchemy_session.__file__).parent / "py.typed").is_file()
