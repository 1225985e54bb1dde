"""Every message that the package can raise has its cause and its mend on one page."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import flask_sqlalchemy_session

pytestmark = pytest.mark.documents

PACKAGE = Path(inspect.getfile(flask_sqlalchemy_session)).parent
PAGE = Path(__file__).parents[2] / "docs" / "errors.md"


def messages() -> list[str]:
    """Return each message of an error or a warning, with "…" for what differs."""
    found = []
    for module in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                name = ast.unparse(node.func).rpartition(".")[2]
                if name.endswith("Error") or name == "warn":
                    found.append(message_of(node.args[0]))
    return [message for message in found if message]


def message_of(argument: ast.expr) -> str:
    if isinstance(argument, ast.JoinedStr):
        return "".join(map(message_of, argument.values))
    if isinstance(argument, ast.FormattedValue):
        return "…"
    # A lone word is a name, as `AttributeError(name)` has it.
    return str(argument.value) if isinstance(argument, ast.Constant) else ""


def entries() -> list[str]:
    """Return the terms of the page, which are beginnings of messages."""
    text = PAGE.read_text(encoding="utf-8")
    return [term.strip("`") for term in re.findall(r"^(`.+`)\n: ", text, re.MULTILINE)]


def has_entry(message: str) -> bool:
    # A message may begin with a sentence that is put together elsewhere.
    return any(
        message.removeprefix("… ").startswith((entry, entry.removeprefix("… ")))
        for entry in entries()
    )


@pytest.mark.parametrize("message", messages(), ids=lambda message: message[:40])
def test_a_message_has_its_cause_and_its_mend(message: str) -> None:
    assert has_entry(message)


def test_a_message_without_an_entry_is_found() -> None:
    assert messages()
    assert not has_entry("Something else was wrong")


@pytest.mark.parametrize("entry", entries())
def test_an_entry_is_of_a_message_that_there_is(entry: str) -> None:
    assert any(
        message.removeprefix("… ").startswith((entry, entry.removeprefix("… ")))
        for message in messages()
    )
