"""gunicorn's configuration, with the hook that an engine made before a fork needs."""

from __future__ import annotations

import os
import sys

from sqlalchemy import QueuePool

control_socket_disable = True

if os.environ.get("LEDGER_PRELOAD"):
    preload_app = True

    def when_ready(server: object) -> None:
        """Leave a connection in the pool, for the workers to inherit."""
        from tests.servers.ledger import engine  # noqa: PLC0415  # preloaded

        with engine.connect():
            pass

    def post_fork(server: object, worker: object) -> None:
        """Forget the parent's connections, and leave them open: they are its own."""
        from tests.servers.ledger import engine  # noqa: PLC0415  # preloaded

        engine.dispose(close=False)


def worker_exit(server: object, worker: object) -> None:
    """Tell how many connections a worker held when all its requests were done."""
    from tests.servers.ledger import engine  # noqa: PLC0415  # the worker's

    assert isinstance(engine.pool, QueuePool)
    sys.stderr.write(f"checked out at exit: {engine.pool.checkedout()}\n")
