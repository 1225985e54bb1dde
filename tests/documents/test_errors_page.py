"""Every message that the package can raise has its cause and its mend on one page."""

from __future__ import annotations

import ast
import inspect
import re
from operator import itemgetter
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


IN_OTHERS_WORDS = {"… object has no attribute …"}
"""What is said as Python says it has no name of ours at its end."""

ENTRY = re.compile(r"^`(.+?)`(?: `\[(.+)\]`\{#(.+)\})?\n: ", re.MULTILINE)


def entries() -> list[tuple[str, str, str]]:
    """Return the terms of the page: how a message begins, its name, and its address."""
    return ENTRY.findall(PAGE.read_text(encoding="utf-8"))


def is_of(entry: tuple[str, str, str], message: str) -> bool:
    begin, name, address = entry
    # A message may begin with a sentence that is put together elsewhere.
    begins = message.removeprefix("… ").startswith((begin, begin.removeprefix("… ")))
    leads_there = name == address and message.endswith(f" [{name}]")
    return begins and (leads_there or message in IN_OTHERS_WORDS)


@pytest.mark.parametrize("message", messages(), ids=lambda message: message[:40])
def test_a_message_leads_to_its_cause_and_its_mend(message: str) -> None:
    assert len([entry for entry in entries() if is_of(entry, message)]) == 1


def test_a_message_that_leads_nowhere_is_found() -> None:
    begin, name, _ = entry = entries()[0]
    assert is_of(entry, f"{begin}. [{name}]")
    assert not is_of(entry, f"Something else was wrong. [{name}]")
    assert not is_of(entry, f"{begin}. [another]")
    assert not is_of(entry, begin)
    assert not is_of((begin, name, "elsewhere"), f"{begin}. [{name}]")


@pytest.mark.parametrize("entry", entries(), ids=itemgetter(0))
def test_an_entry_is_of_a_message_that_there_is(entry: tuple[str, str, str]) -> None:
    assert any(is_of(entry, message) for message in messages())
