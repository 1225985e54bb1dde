"""How a suite gives each process of pytest-xdist a database of its own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine

from flask_sqlalchemy_session.testing import isolate
from tests.support import Base

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from flask_sqlalchemy_session import FlaskScopedSession


@pytest.fixture(scope="session")
def database_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = os.environ.get("SHOP_DIRECTORY", tmp_path_factory.getbasetemp())
    return f"sqlite:///{directory}/shop"


# The page shows this from here
@pytest.fixture(scope="session")
def engine(database_url: str) -> Iterator[Engine]:
    """The tables, made once in the database of this process."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    engine = create_engine(f"{database_url}_{worker}")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def isolated(session: FlaskScopedSession[Session]) -> Iterator[None]:
    """Roll back what a test commits."""
    with isolate(session):
        yield


# to here.
