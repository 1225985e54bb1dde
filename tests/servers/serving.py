"""A server of the run's own, on a port that the system picks."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[2]
SECONDS_TO_STOP = 100  # on a machine that is busy with other things


class Server:
    """A running server.

    :param port: where it listens.
    :param log: what it and the application wrote.
    """

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self.log = log

    def said(self, message: str) -> int:
        """Return how often the application logged a message."""
        return self.log.read_text().count(f" in ledger: {message}\n")

    def wrote(self, pattern: str) -> list[str]:
        """Return what a pattern finds in the log."""
        return re.findall(pattern, self.log.read_text(), re.MULTILINE)


@contextmanager
def serving(
    log: Path, environment: Mapping[str, str], *command: str
) -> Iterator[Server]:
    """Run a server for a block, and stop it gracefully where the block ends.

    The log is printed when the block fails, or the server does not stop.

    :param command: a module that Python runs, and its arguments. "{fd}" in them is the
        socket that it serves.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        # Clients that come before the server is up wait in the backlog.
        fd = listener.fileno()
        with log.open("w") as output:
            process = subprocess.Popen(  # noqa: S603  # our own words
                [sys.executable, "-m", *(word.format(fd=fd) for word in command)],
                cwd=ROOT,
                env={**os.environ, **environment},
                pass_fds=[fd],
                stdout=output,
                stderr=output,
            )
        try:
            try:
                yield Server(listener.getsockname()[1], log)
            finally:
                process.terminate()
                process.wait(SECONDS_TO_STOP)
        except BaseException:
            process.kill()
            process.wait()
            sys.stderr.write(log.read_text())
            raise
