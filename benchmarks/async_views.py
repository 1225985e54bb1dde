"""`python -m benchmarks.async_views`: load async views, and write it into a page.

Every driver, number of threads and library has a gunicorn of its own.
"""

from __future__ import annotations

import argparse
import platform
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from importlib.metadata import version
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from flask import Flask, got_request_exception
from flask_sqlalchemy_lite import SQLAlchemy
from sqlalchemy import URL, Pool, event, make_url, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from flask_sqlalchemy_session.asyncio import (
    FlaskAsyncScopedSession,
    current_async_session,
    use_one_event_loop,
)

from .postgresql import postgresql_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
PACKAGES = [
    *("flask", "asgiref", "sqlalchemy", "asyncpg", "psycopg", "aiosqlite"),
    *("flask-sqlalchemy-lite", "gunicorn"),
]
QUERY, ANSWER = text("SELECT 1"), "1"
OPENED = "opened"
SERVED, FAILED, UNANSWERED, NOT_SENT = "served", "failed", "unanswered", "not sent"
SECONDS_TO_START = 60
SECONDS_TO_ANSWER = 10
SECONDS_TO_SEND = 30
"""After which no more requests are sent to one server."""


def this_library(app: Flask, url: str) -> None:
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


def application(library: str, url: str) -> WSGIApplication:
    """Make what gunicorn serves. It writes connections and errors to its output."""
    app = Flask(__name__)
    LIBRARIES[library](app, url)

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    def failed(_: Flask, exception: BaseException) -> None:
        while exception.__cause__ is not None:  # the driver's own is the plainest
            exception = exception.__cause__
        # Without what stands in representations, which are long.
        message = re.sub(r"<.*>", "…", " ".join(str(exception).split()))
        say(f"{type(exception).__name__}: {message}")

    def watched(
        environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        try:
            return app(environ, start_response)
        except Exception as error:  # a teardown function's
            failed(app, error)
            raise

    event.listen(Pool, "connect", lambda *_: say(OPENED))
    got_request_exception.connect(failed, app, weak=False)
    return watched


@contextmanager
def _served(library: str, url: URL, threads: int, directory: Path) -> Iterator[int]:
    """Serve an application, and give the port."""
    arguments = (library, url.render_as_string(hide_password=False))
    with (
        socket.create_server(("127.0.0.1", 0), backlog=128) as listener,
        (directory / "output").open("w") as output,
        (directory / "log").open("w") as log,
        subprocess.Popen(  # noqa: S603  # our own words
            [
                *(sys.executable, "-m", "gunicorn", "--worker-class", "gthread"),
                *("--threads", str(threads), "--graceful-timeout", "2"),
                *("--bind", f"fd://{listener.fileno()}"),
                f"benchmarks.async_views:application{arguments}",
            ],
            pass_fds=[listener.fileno()],
            stdout=output,
            stderr=log,
        ) as process,
    ):
        port: int = listener.getsockname()[1]
        try:
            # There is no such page, but it waits until the server is up.
            assert _get(port, "/up", SECONDS_TO_START)[0] == 404
            yield port
        except BaseException:
            sys.stderr.write((directory / "log").read_text())
            raise
        finally:
            process.terminate()


def _get(port: int, path: str, timeout: float) -> tuple[int, str]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=timeout)) as client:
        client.request("GET", path, headers={"Connection": "close"})
        answer = client.getresponse()
        return answer.status, answer.read().decode()


def _row(library: str, url: URL, threads: int, requests: int, directory: Path) -> str:
    def request(_: int) -> str:
        if time.perf_counter() > begin + SECONDS_TO_SEND:
            return NOT_SENT
        try:
            right = _get(port, "/", SECONDS_TO_ANSWER) == (200, ANSWER)
        except TimeoutError:
            return UNANSWERED
        return SERVED if right else FAILED

    with _served(library, url, threads, directory) as port:
        begin = time.perf_counter()
        with ThreadPoolExecutor(threads) as clients:
            outcomes = Counter(clients.map(request, range(requests)))
        seconds = time.perf_counter() - begin
    output = (directory / "output").read_text().splitlines()
    errors = [line for line in output if line != OPENED]
    sent = requests - outcomes[NOT_SENT]
    error = f"`{errors[0]}`".replace("|", r"\|") if errors else ""
    return (
        f"| {url.get_driver_name()} | {threads} | {library} "
        f"| {outcomes[SERVED]} of {sent} | {outcomes[UNANSWERED]} "
        f"| {output.count(OPENED)} | {seconds / sent * 1e3:.1f} | {error} |\n"
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.async_views", description=__doc__
    )
    parser.add_argument(
        "--quick", action="store_true", help="see that it runs; the figures say nothing"
    )
    parser.add_argument(
        "--page", type=Path, default=Path("docs/async.md"), metavar="FILE"
    )
    arguments = parser.parse_args()
    page: Path = arguments.page
    table = (
        "| driver | threads | library | served | hung | opened | ms a request "
        "| first error |\n| --- | --: | --- | --: | --: | --: | --: | --- |\n"
    )
    with TemporaryDirectory() as directory, postgresql_url(directory) as postgresql:
        server = make_url(postgresql)
        urls = [
            server.set(drivername="postgresql+asyncpg"),
            server.set(drivername="postgresql+psycopg"),
            make_url(f"sqlite+aiosqlite:///{directory}/async_views.sqlite3"),
        ]
        for url, threads, library in product(
            urls, (1,) if arguments.quick else (1, 8), LIBRARIES
        ):
            requests = 6 if arguments.quick else 400
            row = _row(library, url, threads, requests, Path(directory))
            print(row, end="", flush=True)  # noqa: T201  # a command's output
            table += row
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(
        f"{before}{BEGIN}\n{table}\nMeasured with {versions} and Python "
        f"{platform.python_version()}.\n\n{END}{after}",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
