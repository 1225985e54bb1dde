"""Async sessions under real servers, on PostgreSQL, with faults.

`SOAK=600 pytest -m servers` runs every server with every driver, each for ten minutes.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from itertools import count, product
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from .serving import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENTS = 12
ROUNDS = 2
SOAK = float(os.environ.get("SOAK", "0"))
SECONDS_TO_ANSWER = 100  # on a machine that is busy with other things

SERVERS = {
    "sync": ["--worker-class", "sync"],
    "threads": ["--worker-class", "gthread", "--threads", "8"],
    "gevent": ["--worker-class", "gevent"],
}
SET_UPS = ["engine", "session", "alembic"]

# With which server, with which driver, what connected before the fork, and whether
# backends are terminated.
RUNS: list[tuple[str, str, str, bool]] = [
    ("threads", "asyncpg", "", True),
    ("threads", "psycopg", "", False),
    ("gevent", "asyncpg", "", False),
    ("threads", "asyncpg", "engine", False),
    ("sync", "asyncpg", "session", False),
    ("threads", "asyncpg", "alembic", False),
    ("sync", "psycopg", "engine", False),
    ("threads", "psycopg", "session", False),
    ("sync", "psycopg", "alembic", False),
    ("gevent", "asyncpg", "engine", False),
    ("gevent", "psycopg", "engine", False),
]
if SOAK:
    RUNS = list(product(SERVERS, ["asyncpg", "psycopg"], ["", *SET_UPS], [False, True]))

pytestmark = [pytest.mark.servers, pytest.mark.timeout(300 + SOAK)]


@pytest.fixture
def database(postgresql_url: str) -> Iterator[Engine]:
    """An engine of the test's own, with the application's table."""
    engine = create_engine(postgresql_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE async_ledger (key text PRIMARY KEY)"))
    yield engine
    with engine.begin() as connection:
        for table in ("async_ledger", "async_set_up", "alembic_version"):
            connection.execute(text(f"DROP TABLE IF EXISTS {table}"))
    engine.dispose()


GUNICORN = [
    *("gunicorn", "tests.servers.async_ledger:app", "--bind", "fd://{fd}"),
    *("--config", str(Path(__file__).with_name("async_gunicorn_conf.py"))),
]
# Which server is called how. The names of the others are an adapter's, too.
ASGI = {
    "uvicorn": ["uvicorn", "--log-level", "warning", "--fd", "{fd}"],
    "hypercorn": ["hypercorn", "--bind", "fd://{fd}"],
}


def request(port: int, method: str, path: str) -> tuple[int, str]:
    with closing(
        HTTPConnection("127.0.0.1", port, timeout=SECONDS_TO_ANSWER)
    ) as client:
        client.request(method, path, headers={"Connection": "close"})
        response = client.getresponse()
        return response.status, response.read().decode()


class Traffic:
    """What clients ask of the application at the same time, and what came of it."""

    def __init__(
        self, port: int, database: Engine, *, clients: int, terminates: bool
    ) -> None:
        self.port = port
        self.clients = clients
        self.database = database
        self.terminates = terminates
        self.acknowledged: set[str] = set()
        self.failed: set[str] = set()
        self.outcomes: Counter[str] = Counter()
        self.numbers = count()
        self.rounds = 0

    def run(self) -> None:
        end = time.monotonic() + SOAK
        with ThreadPoolExecutor(self.clients) as pool:
            while self.rounds < ROUNDS or time.monotonic() < end:
                self.rounds += 1
                for client in [pool.submit(self._client) for _ in range(self.clients)]:
                    client.result()

    def _client(self) -> None:
        actions = [self._write, self._fail, self._write, self._stream]
        actions += [self._hang_up, self._hang_up_early]
        if self.terminates:
            actions.append(self._terminate)
        for action in actions:
            try:
                outcome = action(f"k{next(self.numbers)}")
            except (OSError, HTTPException):
                outcome = f"{action.__name__} cut"
            self.outcomes[outcome] += 1

    def _write(self, key: str) -> str:
        status, _ = request(self.port, "POST", f"/entries/{key}")
        if status == 201:
            self.acknowledged.add(key)
        return f"write {status}"

    def _fail(self, key: str) -> str:
        self.failed.add(key)
        status, _ = request(self.port, "POST", f"/failures/{key}")
        return f"fail {status}"

    def _stream(self, key: str) -> str:
        status, body = request(self.port, "GET", "/stream")
        whole = "whole" if body.endswith("end\n") else "cut"
        return f"stream {status} {whole}"

    def _hang_up(self, key: str) -> str:
        """Ask for a long answer, and reset the connection when it begins."""
        with socket.create_connection(
            ("127.0.0.1", self.port), timeout=SECONDS_TO_ANSWER
        ) as client:
            client.sendall(b"GET /stream HTTP/1.1\r\nHost: ledger\r\n\r\n")
            client.recv(1000)
            linger = struct.pack("ii", 1, 0)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return "hang up"

    def _hang_up_early(self, key: str) -> str:
        """Reset the connection in the middle of what is sent."""
        with socket.create_connection(
            ("127.0.0.1", self.port), timeout=SECONDS_TO_ANSWER
        ) as client:
            head = f"POST /entries/{key} HTTP/1.1\r\nHost: ledger\r\n"
            client.sendall(f"{head}Content-Length: 1000\r\n\r\nhalf".encode())
            linger = struct.pack("ii", 1, 0)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return "hang up early"

    def _terminate(self, key: str) -> str:
        with self.database.connect() as connection:
            ended = connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
                    "application_name LIKE 'ledger-%' ORDER BY random() LIMIT 1"
                )
            ).all()
        return "terminated" if ended else "none to terminate"


@pytest.mark.parametrize(("server", "driver", "preload", "terminates"), RUNS)
def test_nothing_is_lost_shared_or_left_behind(  # noqa: PLR0913, PLR0917  # one for each dimension
    postgresql_url: str,
    database: Engine,
    tmp_path: Path,
    server: str,
    driver: str,
    preload: str,
    terminates: bool,
) -> None:
    url = make_url(postgresql_url).set(drivername=f"postgresql+{driver}")
    environment = {"LEDGER_URL": url.render_as_string(hide_password=False)}
    environment["LEDGER_PRELOAD"] = preload
    workers = ["--workers", "2" if preload else "1"]
    served_by(
        [*GUNICORN, *SERVERS[server], *workers],
        *(environment, database, tmp_path / "log"),
        terminates=terminates,
    )
    assert ("master its own" in (tmp_path / "log").read_text()) == bool(preload)


@pytest.mark.parametrize("adapter", ["by_asgiref", "by_a2wsgi"])
@pytest.mark.parametrize("server", ASGI)
def test_nothing_is_lost_shared_or_left_behind_under_an_asgi_server(
    postgresql_url: str, database: Engine, tmp_path: Path, server: str, adapter: str
) -> None:
    url = make_url(postgresql_url).set(drivername="postgresql+asyncpg")
    served_by(
        [*ASGI[server], f"tests.servers.asgi:{adapter}"],
        {"LEDGER_URL": url.render_as_string(hide_password=False)},
        database,
        tmp_path / "log",
        clients=8,
    )


def served_by(  # noqa: PLR0913  # one for each dimension
    command: list[str],
    environment: dict[str, str],
    database: Engine,
    log: Path,
    *,
    clients: int = CLIENTS,
    terminates: bool = False,
) -> None:
    """Drive a server, and see that the application kept its promises."""
    with serving(log, environment, *command) as server:
        port = server.port
        traffic = Traffic(port, database, clients=clients, terminates=terminates)
        traffic.run()
        wait_until_idle(database)
        wait_until_returned(port)
        backends = processes(database)
    sys.stdout.write(f"{dict(traffic.outcomes)}, backends: {backends}\n")
    if terminates:
        assert traffic.outcomes["terminated"]
    else:
        requests = clients * traffic.rounds
        assert traffic.outcomes == {
            "write 201": 2 * requests,
            "fail 500": requests,
            "stream 200 whole": requests,
            "hang up": requests,
            "hang up early": requests,
        }
    with database.connect() as connection:
        stored = set(connection.scalars(text("SELECT key FROM async_ledger")))
    assert traffic.acknowledged <= stored
    assert not traffic.failed & stored
    output = log.read_text()
    assert "another request's session" not in output
    assert "another process's connection" not in output
    assert "garbage collector" not in output
    assert "safety net" not in output
    assert "QueuePool limit" not in output


def processes(database: Engine) -> dict[str, int]:
    """Return how many connections each process has."""
    query = text(
        "SELECT application_name, count(*) FROM pg_stat_activity WHERE "
        "application_name LIKE 'ledger-%' GROUP BY 1"
    )
    with database.connect() as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


def wait_until_idle(database: Engine) -> None:
    """Return when the application holds no transaction; the time limit ends it."""
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'ledger-%' "
        "AND xact_start IS NOT NULL"
    )
    while True:
        with database.connect() as connection:
            if not connection.scalar(query):
                return
        time.sleep(0.05)  # there is no event to wait for: the server tells nobody


def wait_until_returned(port: int) -> None:
    """Return when each worker, as far as asked, has all connections in its pool."""
    idle = 0
    while idle < 5:
        status, pool = request(port, "GET", "/pool")
        # A connection that was terminated in the pool fails one request.
        idle += status == 200 and "out connections: 0" in pool
