"""A gunicorn of the test's own, on a port that the system picks."""

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
    from collections.abc import Iterator

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


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
        return re.findall(pattern, self.log.read_text())


@contextmanager
def gunicorn(log: Path, environment: dict[str, str], *options: str) -> Iterator[Server]:
    """Run gunicorn for a block, and stop it gracefully where the block ends.

    The log is printed when the block fails, or the server does not stop.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        port: int = listener.getsockname()[1]
        # Clients that come before the workers are up wait in the backlog.
        command = [
            *(sys.executable, "-m", "gunicorn", "tests.servers.ledger:app"),
            *("--config", str(HERE / "gunicorn_conf.py")),
            *("--bind", f"fd://{listener.fileno()}", "--graceful-timeout", "15"),
            *options,
        ]
        environment = {
            **os.environ,
            **environment,
            "PYTHONWARNINGS": "always::ResourceWarning",
        }
        with log.open("w") as output:
            process = subprocess.Popen(  # noqa: S603  # our own words
                command,
                cwd=ROOT,
                env=environment,
                pass_fds=[listener.fileno()],
                stdout=output,
                stderr=output,
            )
        try:
            try:
                yield Server(port, log)
            finally:
                process.terminate()
                process.wait(timeout=30)
        except BaseException:
            process.kill()
            process.wait()
            sys.stderr.write(log.read_text())
            raise
