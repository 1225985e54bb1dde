"""`python -m benchmarks.async_views`: load async views, and write it into a page.

Every driver, number of threads and library has a gunicorn of its own.
"""

from __future__ import annotations

import argparse
import platform
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.request import urlopen

from flask import Flask
from flask_sqlalchemy_lite import SQLAlchemy
from sqlalchemy import URL, Pool, event, make_url, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from tests.servers.serving import serving

from .shared import postgresql_url, table, write

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGES = [
    *("flask", "asgiref", "sqlalchemy", "asyncpg", "psycopg", "aiosqlite"),
    *("flask-sqlalchemy-lite", "gunicorn"),
]
HEADER = ["driver", "threads", "library", "served", "hung", "opened"]
HEADER += ["ms a request", "first error"]
QUERY = text("SELECT 1")
OPENED = "opened"
SERVED, FAILED, HUNG, NOT_SENT = "served", "failed", "hung", "not sent"
SECONDS_TO_START, SECONDS_TO_ANSWER, SECONDS_TO_SEND = 60, 10, 30


def this_library(app: Flask, url: str) -> None:
    from flask_sqlalchemy_session.asyncio import (  # noqa: PLC0415  # it holds every async engine of a process to what its own need
        FlaskAsyncScopedSession,
        current_async_session,
        use_one_event_loop,
    )

    maker = async_sessionmaker(create_async_engine(url), expire_on_commit=False)
    use_one_event_loop(app)
    FlaskAsyncScopedSession(maker, app)

    @app.get("/")
    async def view() -> str:
        return str(await current_async_session.scalar(QUERY))


def flask_sqlalchemy_lite(app: Flask, url: str) -> None:
    app.config["SQLALCHEMY_ASYNC_ENGINES"] = {"default": url}
    db = SQLAlchemy(app)

    @app.get("/")
    async def view() -> str:
        return str(await db.async_session.scalar(QUERY))


def by_hand(app: Flask, url: str) -> None:
    maker = async_sessionmaker(create_async_engine(url), expire_on_commit=False)

    @app.get("/")
    async def view() -> str:
        async with maker() as session:
            return str(await session.scalar(QUERY))


LIBRARIES: dict[str, Callable[[Flask, str], None]] = {
    "this library": this_library,
    "Flask-SQLAlchemy-Lite": flask_sqlalchemy_lite,
    "`async with`": by_hand,
}


def application(library: str, url: str) -> Flask:
    """Make what gunicorn serves. It writes a line for each new connection."""
    app = Flask(__name__)
    LIBRARIES[library](app, url)
    event.listen(Pool, "connect", lambda *_: print(OPENED, flush=True))  # noqa: T201  # counted below
    return app


def _get(address: str, timeout: float) -> str:
    try:
        with urlopen(address, timeout=timeout) as answer:  # noqa: S310  # our own
            return SERVED if answer.read() == b"1" else FAILED
    except TimeoutError:
        return HUNG
    except OSError:  # an answer that tells of an error is one too
        return FAILED


def _load(
    library: str, url: URL, threads: int, requests: int, directory: str
) -> list[str]:
    """Send requests, and return a row of the table."""

    def request(_: int) -> str:
        if time.perf_counter() > begin + SECONDS_TO_SEND:
            return NOT_SENT
        return _get(address, SECONDS_TO_ANSWER)

    factory = (library, url.render_as_string(hide_password=False))
    command = ["gunicorn", f"benchmarks.async_views:application{factory}"]
    command += ["--bind", "fd://{fd}", "--graceful-timeout", "2"]
    command += ["--worker-class", "gthread", "--threads", str(threads)]
    with serving(Path(directory, "log"), {}, *command) as server:
        address = f"http://127.0.0.1:{server.port}/"
        # There is no such page, but the answer comes when the server is up.
        assert _get(f"{address}up", SECONDS_TO_START) == FAILED
        begin = time.perf_counter()
        with ThreadPoolExecutor(threads) as clients:
            outcomes = Counter(clients.map(request, range(requests)))
        seconds = time.perf_counter() - begin
    sent = requests - outcomes[NOT_SENT]
    opened = len(server.wrote(f"^{OPENED}$"))
    # The first traceback of a chain is that of the driver's own error.
    errors = server.wrote(r"^Traceback .*\n(?: .*\n)+(.*)")
    # Without what stands in representations, which are long.
    message = re.sub(r"<.*>", "…", errors[0]).replace("|", r"\|") if errors else ""
    return [
        *(url.get_driver_name(), str(threads), library),
        *(f"{outcomes[SERVED]} of {sent}", str(outcomes[HUNG]), str(opened)),
        *(f"{seconds / sent * 1e3:.1f}", message and f"`{message}`"),
    ]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="see that it runs")
    parser.add_argument("--page", type=Path, default=Path("docs/async.md"))
    arguments = parser.parse_args()
    all_threads, requests = ((1,), 6) if arguments.quick else ((1, 8), 400)
    rows = []
    with TemporaryDirectory() as directory, postgresql_url(directory) as postgresql:
        server = make_url(postgresql)
        drivers = ("postgresql+asyncpg", "postgresql+psycopg")
        urls = [server.set(drivername=each) for each in drivers]
        urls.append(make_url(f"sqlite+aiosqlite:///{directory}/async_views.sqlite3"))
        for url, threads, library in product(urls, all_threads, LIBRARIES):
            rows.append(_load(library, url, threads, requests, directory))
            print(*rows[-1], sep=", ", flush=True)  # noqa: T201  # a command's output
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    measured = f"Measured with {versions} and Python {platform.python_version()}.\n"
    shown = table(HEADER, rows, "library", "first error")
    write(arguments.page, f"{shown}\n{measured}")


if __name__ == "__main__":
    main()
