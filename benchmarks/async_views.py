"""`python -m benchmarks.async_views`: load async views, and write it into a page.

How many requests are served, every driver, number of threads and library shows with a
gunicorn of its own. What a request takes shows without one: a server and its clients
would take a third of the time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import re
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.request import urlopen

from flask import Flask
from flask_sqlalchemy_lite import SQLAlchemy
from sqlalchemy import URL, Pool, event, make_url, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from werkzeug.test import EnvironBuilder, run_wsgi_app

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
MEASURED = ["driver", "clients", "library", "ms a request", "of `async with`"]
QUERY = text("SELECT 1")
OPENED = "opened"
SERVED, FAILED, HUNG, NOT_SENT = "served", "failed", "hung", "not sent"
MOST_CLIENTS = 8
REQUESTS_A_TURN = 40
SECONDS_TO_START, SECONDS_TO_ANSWER, SECONDS_TO_SEND = 60, 10, 30


def this_library(app: Flask, url: str) -> None:
    from flask_sqlalchemy_session.asyncio import (  # noqa: PLC0415  # it holds every async engine of a process to what its own need
        FlaskAsyncScopedSession,
        current_async_session,
        use_one_event_loop,
    )

    engine = create_async_engine(url, pool_size=MOST_CLIENTS)
    maker = async_sessionmaker(engine, expire_on_commit=False)
    use_one_event_loop(app)
    FlaskAsyncScopedSession(maker, app)

    @app.get("/")
    async def view() -> str:
        return str(await current_async_session.scalar(QUERY))


def flask_sqlalchemy_lite(app: Flask, url: str) -> None:
    engine = {"url": url, "pool_size": MOST_CLIENTS}
    app.config["SQLALCHEMY_ASYNC_ENGINES"] = {"default": engine}
    db = SQLAlchemy(app)

    @app.get("/")
    async def view() -> str:
        return str(await db.async_session.scalar(QUERY))


def by_hand(app: Flask, url: str) -> None:
    engine = create_async_engine(url, pool_size=MOST_CLIENTS)
    maker = async_sessionmaker(engine, expire_on_commit=False)

    @app.get("/")
    async def view() -> str:
        async with maker() as session:
            return str(await session.scalar(QUERY))


OURS, BY_HAND = "this library", "`async with`"
LIBRARIES: dict[str, Callable[[Flask, str], None]] = {
    OURS: this_library,
    "Flask-SQLAlchemy-Lite": flask_sqlalchemy_lite,
    BY_HAND: by_hand,
}


@cache
def _application(library: str, url: str) -> Flask:
    app = Flask(__name__)
    LIBRARIES[library](app, url)
    return app


def application(library: str, url: str) -> Flask:
    """Make what gunicorn serves. It writes a line for each new connection."""
    app = _application(library, url)
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


def _requests(library: str, url: str, clients: int) -> float:
    """Return the milliseconds that a request takes, without a server."""
    app, environ = _application(library, url), EnvironBuilder().get_environ()

    def request(_: int) -> None:
        assert run_wsgi_app(app, {**environ}, buffered=True)[1] == "200 OK"

    with ThreadPoolExecutor(clients) as executor:
        begin = time.perf_counter()
        list(executor.map(request, range(REQUESTS_A_TURN)))
        return (time.perf_counter() - begin) / REQUESTS_A_TURN * 1e3


def _measure(urls: list[URL], turns: int) -> list[list[str]]:
    """Measure requests, and return the rows of a table.

    Each row has a process of its own, and they take turns, so that what slows the
    machine slows all of them.
    """
    spawn = multiprocessing.get_context("spawn")
    times: dict[tuple[str, int, str], list[float]] = {}
    with ExitStack() as stack:
        processes = {}
        for url, clients, library in product(urls, (1, MOST_CLIENTS), LIBRARIES):
            driver = url.get_driver_name()
            # Some requests of the others would never be answered.
            if library == OURS or (clients == 1 and driver != "asyncpg"):
                process = stack.enter_context(ProcessPoolExecutor(1, spawn))
                address = url.render_as_string(hide_password=False)
                processes[driver, clients, library] = process, address
        for row, (process, address) in [*processes.items()] * turns:
            _, clients, library = row
            taken = process.submit(_requests, library, address, clients).result()
            times.setdefault(row, []).append(taken)
    # Without the first turn, whose requests connect.
    medians = {row: median(each[1:]) for row, each in times.items()}
    lines = []
    for (driver, clients, library), taken in medians.items():
        by_hand = medians.get((driver, clients, BY_HAND))
        share = f"{taken / by_hand:.2f}" if by_hand else ""
        lines.append([driver, str(clients), library, f"{taken:.2f}", share])
    return lines


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="see that it runs")
    parser.add_argument("--page", type=Path, default=Path("docs/async.md"))
    arguments = parser.parse_args()
    all_threads, requests = ((1,), 6) if arguments.quick else ((1, MOST_CLIENTS), 400)
    turns = 3 if arguments.quick else 30
    rows = []
    with TemporaryDirectory() as directory, postgresql_url(directory) as postgresql:
        server = make_url(postgresql)
        drivers = ("postgresql+asyncpg", "postgresql+psycopg")
        urls = [server.set(drivername=each) for each in drivers]
        urls.append(make_url(f"sqlite+aiosqlite:///{directory}/async_views.sqlite3"))
        measured = table(MEASURED, _measure(urls, turns), "library")
        print(measured, flush=True)  # noqa: T201  # a command's output
        for url, threads, library in product(urls, all_threads, LIBRARIES):
            rows.append(_load(library, url, threads, requests, directory))
            print(*rows[-1], sep=", ", flush=True)  # noqa: T201  # a command's output
    served = table(HEADER, rows, "library", "first error")
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    ran = f"Measured with {versions} and Python {platform.python_version()}.\n"
    write(arguments.page, f"{served}\n{measured}\n{ran}")


if __name__ == "__main__":
    main()
