"""Clients that read, write, fail, stream and hang up, and terminated backends."""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from itertools import count
from random import Random
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

CLIENTS = 16


@dataclass
class Traffic:
    """What clients do to the application, and what came of it."""

    #: Where the application listens.
    port: int
    #: An engine of the test's own.
    database: Engine
    #: How many operations to do, at least.
    operations: int
    #: How long to go on, at least.
    seconds: float
    #: Terminate a backend after each so many operations, or never.
    kill_every: int | None
    #: Makes the clients' choices.
    seed: int

    #: The keys of acknowledged writes, with what the application answered.
    acknowledged: dict[str, str] = field(default_factory=dict)
    #: The keys of writes that failed inside a transaction.
    failed: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._end = time.monotonic() + self.seconds
        self._done = count(1)

    def run(self) -> None:
        """Drive the application from concurrent clients until all are done."""
        with ThreadPoolExecutor(CLIENTS) as pool:
            for client in [pool.submit(self._client, n) for n in range(CLIENTS)]:
                client.result()

    def _client(self, number: int) -> None:
        random = Random(f"{self.seed}/{number}")  # noqa: S311  # no secret
        actions: list[Callable[[Random], str]] = [
            self._write,
            self._write,
            self._write,
            self._read,
            self._read,
            self._fail,
            self._stream,
            self._hang_up,
        ]
        done = 0
        while done < self.operations or time.monotonic() < self._end:
            action = random.choice(actions)
            try:
                outcome = action(random)
            except (OSError, HTTPException):
                outcome = f"{action.__name__.strip('_')}: cut"
            self.counts[outcome] += 1
            done = next(self._done)
            if self.kill_every and done % self.kill_every == 0:
                self._terminate_a_backend(random)

    def _request(self, method: str, path: str) -> tuple[int, str]:
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=60)) as client:
            client.request(method, path, headers={"Connection": "close"})
            response = client.getresponse()
            return response.status, response.read().decode()

    def _write(self, random: Random) -> str:
        key = UUID(int=random.getrandbits(128)).hex
        status, author = self._request("POST", f"/entries/{key}")
        if status != 201:
            return f"write: {status}"
        self.acknowledged[key] = author
        return "write: acknowledged"

    def _fail(self, random: Random) -> str:
        key = UUID(int=random.getrandbits(128)).hex
        self.failed.add(key)
        status, _ = self._request("POST", f"/entries/{key}/fail")
        return f"fail: {status}"

    def _read(self, random: Random) -> str:
        if not self.acknowledged:
            return "read: nothing to read"
        key = random.choice(list(self.acknowledged))
        status, author = self._request("GET", f"/entries/{key}")
        if status == 500:
            return "read: 500"
        own = status == 200 and author == self.acknowledged[key]
        return "read: same" if own else "read: other than acknowledged"

    def _stream(self, random: Random) -> str:
        status, body = self._request("GET", "/stream")
        if status == 200:
            assert body.endswith("end\n")
        return f"stream: {status}"

    def _hang_up(self, random: Random) -> str:
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as client:
            client.sendall(b"GET /stream HTTP/1.1\r\nHost: ledger\r\n\r\n")
            client.recv(1 + random.randrange(30_000))
            # Without lingering, so that the server's next write fails.
            linger = struct.pack("ii", 1, 0)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return "stream: hung up"

    def _terminate_a_backend(self, random: Random) -> None:
        with self.database.connect() as connection:
            backends = connection.execute(
                text(
                    "SELECT pid, xact_start IS NOT NULL FROM pg_stat_activity"
                    " WHERE application_name LIKE 'ledger-%' ORDER BY pid"
                )
            ).all()
            busy = [pid for pid, in_transaction in backends if in_transaction]
            pids = busy if busy and random.random() < 0.5 else [b[0] for b in backends]
            if pids:
                terminate = text("SELECT pg_terminate_backend(:pid)")
                connection.execute(terminate, {"pid": random.choice(pids)})
                self.counts["backends terminated"] += 1
