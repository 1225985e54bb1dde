"""A PgBouncer of the test's own, in transaction mode, on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import URL, make_url

if TYPE_CHECKING:
    from collections.abc import Iterator

# Debian has it where a user's PATH does not lead.
PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
POOL_SIZE = 4


@contextmanager
def pgbouncer(directory: Path, postgresql_url: str) -> Iterator[URL]:
    """Run PgBouncer before a server for a block, and give its URL."""
    if PROGRAM is None:
        pytest.skip("pgbouncer is not installed: Debian's package of that name has it")
    server = make_url(postgresql_url)
    host = server.host or server.query.get("host") or "127.0.0.1"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    password = f" password={server.password}" if server.password else ""
    ini = directory / "pgbouncer.ini"
    ini.write_text(
        "[databases]\n"
        f"* = host={host} port={server.port or 5432} user={server.username}{password}\n"
        "[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        "auth_type = any\npool_mode = transaction\n"
        f"default_pool_size = {POOL_SIZE}\n"
        # Each transaction gets another server connection than the last.
        "server_round_robin = 1\n"
    )
    log = directory / "pgbouncer.log"
    as_user: list[str] = []
    if os.geteuid() == 0:  # it refuses to run as root
        socket_directory = Path(str(host))
        user = socket_directory.owner() if socket_directory.is_dir() else "nobody"
        as_user = ["-u", user]
    with log.open("w") as output:
        process = subprocess.Popen(  # noqa: S603  # our own words
            [PROGRAM, *as_user, str(ini)], stdout=output, stderr=output
        )
    try:
        wait_until_up(port, process, log)
        yield server.set(host="127.0.0.1", port=port, query={})
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_until_up(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when it listens; the test's time limit ends it."""
    while True:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.05)  # it tells nobody
        else:
            return
