"""The recipes themselves, as the pages have them, on databases that need a server."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from tests.documents.test_documents import program_with, room, run

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["room"]  # a directory for each test, and its engines disposed


@pytest.fixture
def recipe() -> Callable[[str], ModuleType]:
    """Runs the program of the documentation that has a line, and returns its names."""

    def run_program(line: str) -> ModuleType:
        program = program_with(line)
        module = ModuleType(program.name)
        vars(module).update(run(program))
        return module

    return run_program
