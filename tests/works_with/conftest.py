"""A database in a file for each test: what a package does depends on no server."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine

from tests.support import Base

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """An engine with a pool, and an empty `users` table."""
    engine = create_engine(f"sqlite:///{tmp_path}/shop.sqlite3")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def logging_restored() -> Iterator[None]:
    """Take back how a tool has configured the logs of the whole process."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    names = list(root.manager.loggerDict)
    enabled = [name for name in names if not logging.getLogger(name).disabled]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    for name in enabled:
        logging.getLogger(name).disabled = False
