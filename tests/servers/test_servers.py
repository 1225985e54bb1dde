"""The promises under real servers, a real database and real faults.

`SOAK=600 pytest -m servers` runs each test's traffic for ten minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import NullPool, create_engine, select, text
from sqlalchemy.orm import Session

from .entries import HUNG_UP, PLANNED, STRANGER, Base, Entry
from .serving import ROOT, serving
from .traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from sqlalchemy import Engine, Row

    from .serving import Server

SOAK = float(os.environ.get("SOAK", "0"))
POOL_SIZE = 8
WORKERS = 2

pytestmark = [pytest.mark.servers, pytest.mark.timeout(120 + SOAK)]

GUNICORN = [
    *("gunicorn", "tests.servers.ledger:app", "--bind", "fd://{fd}"),
    *("--config", str(Path(__file__).with_name("gunicorn_conf.py"))),
    *(f"--workers={WORKERS}", "--graceful-timeout", "15"),
]
GTHREAD = ["--worker-class=gthread", f"--threads={POOL_SIZE}"]
GEVENT = ["--worker-class=gevent", f"--worker-connections={POOL_SIZE}"]

worker_kinds = pytest.mark.parametrize(
    "worker", [GTHREAD, GEVENT], ids=["gthread", "gevent"]
)


@pytest.fixture
def database(postgresql_url: str) -> Iterator[Engine]:
    """An engine of the test's own, with the application's table."""
    engine = create_engine(
        postgresql_url, poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    yield engine
    Base.metadata.drop_all(engine)


@dataclass
class Run:
    """A server under traffic, and what was counted when it was over."""

    server: Server
    traffic: Traffic
    backends: Sequence[Row[tuple[str, str, datetime, datetime]]]
    #: What the promises rule out, by what it would be, where it was counted.
    broken: dict[str, object]

    def summary(self) -> str:
        """Return the counts, for the output of a soak."""
        counts = {
            **self.traffic.counts,
            "hooks that raised": self.server.said(PLANNED),
            "streams that the server saw cut": self.server.said(HUNG_UP),
        }
        lines = [f"{n:>8}  {what}" for what, n in sorted(counts.items())]
        return "\n".join([*lines, f"broken promises: {self.broken}"])


def run(
    tmp_path: Path,
    database: Engine,
    worker: list[str],
    *,
    kill_every: int | None = 20,
    operations: int = 400,
    **environment: str,
) -> Run:
    """Drive a server, then count."""
    environment["LEDGER_POOL_SIZE"] = str(POOL_SIZE)
    environment["LEDGER_URL"] = database.url.render_as_string(hide_password=False)
    environment["PYTHONWARNINGS"] = "always::ResourceWarning"
    with serving(tmp_path / "log", environment, *GUNICORN, *worker) as server:
        traffic = Traffic(
            server.port,
            database,
            operations=operations,
            seconds=SOAK,
            kill_every=kill_every,
            seed=2,
        )
        traffic.run()
        at_rest = wait_until_quiet(database)
        with database.connect() as connection:
            backends = connection.execute(
                text(
                    "SELECT application_name, state, backend_start, state_change"
                    " FROM pg_stat_activity"
                    " WHERE application_name LIKE 'ledger-%' ORDER BY backend_start"
                )
            ).all()
    with Session(database) as session:
        written = {entry.key: entry.author for entry in session.scalars(select(Entry))}
    held = map(int, server.wrote(r"checked out at exit: (\d+)"))
    broken: dict[str, object] = {
        "acknowledged writes lost": traffic.acknowledged.items() - written.items(),
        "failed writes kept": traffic.failed & written.keys(),
        "reads of something else": traffic.counts["read: other than acknowledged"],
        "sessions marked by another": server.said(STRANGER),
        "backends left in a transaction": Counter(
            state for _, state, *_ in backends if not at_rest and state != "idle"
        ),
        "pool exhausted": len(server.wrote("QueuePool limit .* reached")),
        "pools outgrown": {
            name: n
            for name, n in Counter(name for name, *_ in backends).items()
            if n > POOL_SIZE
        },
        "connections held by workers at rest": sum(held),
        "sessions left to the safety net": len(server.wrote("by the safety net")),
    }
    return Run(server, traffic, backends, {what: n for what, n in broken.items() if n})


def wait_until_quiet(database: Engine) -> bool:
    """Wait for the requests whose clients hung up.

    :return: whether every backend came to rest outside a transaction.
    """
    busy = text(
        "SELECT count(*), pg_sleep(0.1) FROM pg_stat_activity"
        " WHERE application_name LIKE 'ledger-%' AND state <> 'idle'"
    )
    with database.connect() as connection:
        return any(connection.execute(busy).one()[0] == 0 for _ in range(20))


@worker_kinds
def test_the_promises_hold_under_faults(
    tmp_path: Path, database: Engine, worker: list[str]
) -> None:
    result = run(tmp_path, database, worker)
    sys.stdout.write(result.summary())
    assert result.broken == {}
    # It was no quiet run.
    assert result.traffic.counts["write: acknowledged"] > 100
    assert result.traffic.counts["fail: 500"] > 20
    assert result.traffic.counts["read: same"] > 50
    assert result.traffic.counts["stream: 200"] > 20
    assert result.traffic.counts["backends terminated"] > 10
    assert result.server.said(PLANNED) > 1
    assert result.server.said(HUNG_UP) > 5


@pytest.mark.parametrize(
    ("worker", "release"),
    [
        # By a teardown hook, from a registry that tells contexts apart by `id()`.
        pytest.param(GTHREAD, "hook", id="gthread-hook"),
        # By the library's safety net alone.
        pytest.param(GTHREAD, "finaliser", id="gthread-finaliser"),
    ],
)
def test_the_counts_tell_when_sessions_are_released_in_another_way(
    tmp_path: Path, database: Engine, worker: list[str], release: str
) -> None:
    result = run(tmp_path, database, worker, LEDGER_RELEASE=release, operations=150)
    sys.stdout.write(result.summary())
    assert result.broken


def test_the_driver_lets_other_greenlets_run_while_it_waits(
    postgresql_url: str,
) -> None:
    """In a process of its own, since it is patched whole."""
    command = [sys.executable, "-m", "tests.servers.two_greenlets", postgresql_url]
    output = subprocess.check_output(command, cwd=ROOT, text=True, timeout=30)  # noqa: S603  # our own words
    assert output == "waited\nreleased\nacquired\n"


@worker_kinds
def test_forked_workers_leave_the_connections_of_their_parent_alone(
    tmp_path: Path, database: Engine, worker: list[str]
) -> None:
    """With `--preload`, an engine that was used before the fork, and the hook."""
    result = run(
        tmp_path, database, worker, LEDGER_PRELOAD="1", kill_every=None, operations=300
    )
    sys.stdout.write(result.summary())
    assert result.broken == {}
    unexpected = {
        outcome: n
        for outcome, n in result.traffic.counts.items()
        if outcome.endswith((": cut", ": 500")) and not outcome.startswith("fail")
    }
    assert sum(unexpected.values()) <= result.server.said(PLANNED)
    parent, *children = result.backends
    assert {child.application_name for child in children} != set()
    assert parent.application_name not in {c.application_name for c in children}
    # Nothing was sent over the parent's connection since the children had theirs.
    assert parent.state_change < min(child.backend_start for child in children)
