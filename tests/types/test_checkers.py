"""Promise 5: the types are true, and six type checkers agree on them.

`tests/types/usage` says how its files are read and how to add to them.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tokenize
from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "flask_sqlalchemy_session"
TYPED = ROOT / "tests" / "types" / "usage"
FILES = [
    str(path.relative_to(ROOT))
    for folder in (PACKAGE, TYPED)
    for path in sorted(folder.rglob("*.py"))
]
MARKER = re.compile(r"# rejected: \S")
# pyright looks for Python where the shell does, and online for a newer version of
# itself.
ENVIRONMENT = {
    **os.environ,
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
}

Report = tuple[str, int, str]
"""A file, a line and what a checker says of it."""


def _read_lines(output: str) -> Iterator[Report]:
    for line in output.splitlines():
        error = json.loads(line)
        if error["severity"] == "error":
            yield error["file"], error["line"], error["message"]


def _read_pyright(output: str) -> Iterator[Report]:
    for error in json.loads(output)["generalDiagnostics"]:
        line: int = error["range"]["start"]["line"]
        yield error["file"], line + 1, error["message"]


def _read_pyrefly(output: str) -> Iterator[Report]:
    for error in json.loads(output)["errors"]:
        yield error["path"], error["line"], error["description"]


def _read_gitlab(output: str) -> Iterator[Report]:
    for error in json.loads(output):
        place = error["location"]
        yield place["path"], place["positions"]["begin"]["line"], error["description"]


def _read_zuban(output: str) -> Iterator[Report]:
    for line in output.splitlines():
        if found := re.fullmatch(r"(.+?):(\d+): error: (.+)", line):
            yield found[1], int(found[2]), found[3]


PYTHON = sys.executable
CHECKERS: dict[str, tuple[list[str], Callable[[str], Iterable[Report]]]] = {
    "mypy": (
        # Named, because mypy.ini excludes those that are full of errors.
        ["--output=json", f"--python-executable={PYTHON}", *FILES],
        _read_lines,
    ),
    "pyright": (["--outputjson", f"--pythonpath={PYTHON}"], _read_pyright),
    "basedpyright": (
        ["--project=basedpyright.json", "--outputjson", f"--pythonpath={PYTHON}"],
        _read_pyright,
    ),
    "pyrefly": (
        ["check", "--output-format=json", f"--python-interpreter-path={PYTHON}"],
        _read_pyrefly,
    ),
    "ty": (["check", "--output-format=gitlab", f"--python={PYTHON}"], _read_gitlab),
    # Named, because it reads mypy.ini as well.
    "zuban": (
        ["check", "--hide-column-numbers", f"--python-executable={PYTHON}", *FILES],
        _read_zuban,
    ),
}


def command(checker: str) -> list[str]:
    """Return what starts a checker. zuban is a program and no module."""
    if checker == "zuban":
        return [str(Path(sysconfig.get_path("scripts"), checker))]
    return [PYTHON, "-m", checker]


@dataclass(frozen=True)
class Exemption:
    """A line on which a checker falls short.

    It reports the line though it is right, or does not though it is marked.
    """

    checker: str
    version: str
    """The checker's version that was seen to fall short."""
    file: str
    test: str
    """The test that the line is in."""
    line: str
    """How the line begins."""
    why: str

    def find(self) -> int:
        """Return the line's number."""
        lines = (ROOT / self.file).read_text().splitlines()
        test = next(n for n, line in enumerate(lines) if f"def {self.test}(" in line)
        return 1 + next(
            n
            for n, line in enumerate(lines)
            if n > test and line.strip().startswith(self.line)
        )


EXEMPTIONS: list[Exemption] = [
    Exemption(
        "mypy",
        "2.4.1",
        "tests/types/usage/rejected/test_factories.py",
        "test_a_partial_that_leaves_a_parameter",
        "Scoped(partial(",
        "takes a partial that is passed on to accept any arguments",
    ),
    Exemption(
        "ty",
        "0.0.105",
        "tests/types/usage/accepted/test_factories.py",
        "test_a_partial_of_a_subclass",
        "check(assert_type(session(), ShopSession)",
        "does not know what a partial of a class returns",
    ),
    Exemption(
        "zuban",
        "0.10.2",
        "tests/types/usage/__init__.py",
        "check",
        "return value",
        "forgets the type variable where `isinstance` has narrowed it",
    ),
    Exemption(
        "zuban",
        "0.10.2",
        "tests/types/usage/rejected/test_factories.py",
        "test_a_partial_that_leaves_a_parameter",
        "Scoped(partial(",
        "takes a partial that is passed on to accept any arguments",
    ),
]


def exempt_lines(checker: str, file: str) -> dict[int, Exemption]:
    """Return a checker's exemptions in a file by their lines."""
    return {
        exemption.find(): exemption
        for exemption in EXEMPTIONS
        if (exemption.checker, exemption.file) == (checker, file)
    }


def comments(path: Path) -> Iterator[tuple[int, str]]:
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string


def marked_lines(file: str) -> set[int]:
    return {line for line, text in comments(ROOT / file) if MARKER.match(text)}


@pytest.fixture(scope="session")
def reports() -> Callable[[str], dict[str, dict[int, str]]]:
    """What a checker says of each line of each file. Each checker runs but once."""
    found: dict[str, dict[str, dict[int, str]]] = {}

    def run(checker: str) -> dict[str, dict[int, str]]:
        if checker not in found:
            arguments, read = CHECKERS[checker]
            done = subprocess.run(  # noqa: S603  # our own words
                [*command(checker), *arguments],
                cwd=ROOT,
                env=ENVIRONMENT,
                capture_output=True,
                text=True,
                check=False,
            )
            # 1 says that there are errors; more, that it could not look.
            assert done.returncode in (0, 1), f"{checker}: {done.stdout}{done.stderr}"
            lines: dict[str, dict[int, str]] = defaultdict(dict)
            for path, line, message in read(done.stdout):
                file = str((ROOT / path).relative_to(ROOT))
                lines[file].setdefault(line, message)
            found[checker] = lines
        return found[checker]

    return run


@pytest.mark.checkers
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("checker", CHECKERS)
def test_a_checker_reports_the_marked_lines_and_no_other(
    checker: str, file: str, reports: Callable[[str], dict[str, dict[int, str]]]
) -> None:
    reported = reports(checker).get(file, {})
    marked = marked_lines(file)
    exempt = exempt_lines(checker, file)
    wrong: list[str] = []
    for line in sorted({*reported, *marked, *exempt}):
        if (line in reported) == ((line in marked) != (line in exempt)):
            continue
        if line in exempt:
            problem = f"no longer needs the exemption of {exempt[line].version}"
        elif line in marked:
            problem = "does not report a line that is marked as rejected"
        else:
            problem = f"reports {reported[line]!r}"
        wrong.append(f"{file}:{line}: {checker} {version(checker)} {problem}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.checkers
def test_a_checker_reports_nothing_elsewhere(
    reports: Callable[[str], dict[str, dict[int, str]]],
) -> None:
    elsewhere = {
        f"{checker}: {file}"
        for checker in CHECKERS
        for file in reports(checker)
        if file not in FILES
    }
    assert not elsewhere


@pytest.mark.checkers
def test_every_exemption_is_of_a_checker_and_a_file() -> None:
    for exemption in EXEMPTIONS:
        assert exemption.checker in CHECKERS
        assert exemption.file in FILES
        assert exemption.find()


def test_every_marker_is_one_that_is_read() -> None:
    unread: list[str] = []
    folders = [ROOT / name for name in ("tests", "examples", "benchmarks", "docs")]
    for folder in (PACKAGE, *folders):
        for path in folder.rglob("*.py"):
            read = TYPED / "rejected" in path.parents
            for line, text in comments(path):
                marker = re.search(r"#\s*reject\w*\s*:?", text, re.IGNORECASE)
                if marker and not (read and MARKER.match(text)):
                    unread.append(f"{path.relative_to(ROOT)}:{line}: {text}")
    assert not unread, "\n".join(unread)


def test_every_rejected_file_has_markers() -> None:
    for path in (TYPED / "rejected").glob("test_*.py"):
        assert marked_lines(str(path)), path


def test_no_usage_file_silences_a_checker() -> None:
    silenced = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in TYPED.rglob("*.py")
        for line, text in comments(path)
        if re.search(r"ignore|pyright|pyrefly|mypy|\bty\b", text)
    ]
    assert not silenced, "\n".join(silenced)


@pytest.fixture(scope="session")
def completeness() -> dict[str, Any]:
    """What pyright says of the package's public interface."""
    done = subprocess.run(  # noqa: S603  # our own words
        [
            *(PYTHON, "-m", "pyright", "--outputjson"),
            *("--ignoreexternal", "--verifytypes", PACKAGE.name),
        ],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)["typeCompleteness"]
    return report


@pytest.mark.checkers
def test_every_public_type_is_known(completeness: dict[str, Any]) -> None:
    vague = [
        f"{symbol['name']}: {diagnostic['message']}"
        for symbol in completeness["symbols"]
        for diagnostic in symbol["diagnostics"]
        if not (symbol["isTypeKnown"] and not symbol["isTypeAmbiguous"])
    ]
    assert not vague, "\n".join(vague)
    for count in ("exportedSymbolCounts", "otherSymbolCounts"):
        assert completeness[count]["withUnknownType"] == 0
        assert completeness[count]["withAmbiguousType"] == 0
    assert completeness["completenessScore"] == 1


@pytest.mark.checkers
def test_every_public_symbol_has_a_docstring(completeness: dict[str, Any]) -> None:
    undocumented = [
        f"{symbol['name']}: {diagnostic['message']}"
        for symbol in completeness["symbols"]
        for diagnostic in symbol["diagnostics"]
        if "docstring" in diagnostic["message"].lower()
    ]
    assert not undocumented, "\n".join(undocumented)
    assert completeness["missingFunctionDocStringCount"] == 0
    assert completeness["missingClassDocStringCount"] == 0


@pytest.mark.checkers
def test_a_checker_sees_the_names_that_are_there(completeness: dict[str, Any]) -> None:
    modules = [module["name"] for module in completeness["modules"]]
    assert PACKAGE.name in modules
    exported = {
        symbol["name"] for symbol in completeness["symbols"] if symbol["isExported"]
    }
    for name in modules:
        module = importlib.import_module(name)
        seen = {each for each in exported if each.rpartition(".")[0] == name}
        assert seen == {f"{name}.{each}" for each in module.__all__}
        assert all(hasattr(module, each) for each in module.__all__)


@pytest.mark.parametrize("module", ["", ".asyncio", ".testing"])
def test_every_public_member_has_a_docstring(module: str) -> None:
    """What pyright does not count: properties."""
    public = importlib.import_module(PACKAGE.name + module)
    undocumented = [
        f"{owner.__qualname__}.{name}"
        for exported in public.__all__
        if isinstance(class_ := getattr(public, exported), type)
        for owner in class_.__mro__
        if owner.__module__.startswith(PACKAGE.name)
        for name, member in vars(owner).items()
        if not name.startswith("_") and not (member.__doc__ or "").strip()
    ]
    assert not undocumented, "\n".join(undocumented)


@pytest.mark.parametrize("module", ["", ".asyncio"])
def test_a_package_has_the_names_that_it_says_and_no_other(module: str) -> None:
    package = importlib.import_module(PACKAGE.name + module)
    there = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert there == set(package.__all__)
