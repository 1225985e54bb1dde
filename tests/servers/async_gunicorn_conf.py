"""gunicorn's configuration: no hook for what is forked, one to see the master by."""

from __future__ import annotations

import os
import sys

control_socket_disable = True
timeout = 100  # on a machine that is busy with other things
preload_app = bool(os.environ.get("LEDGER_PRELOAD"))


def on_exit(server: object) -> None:
    """Tell whether the master still has its connections, after its workers' time."""
    if preload_app:
        from tests.servers.async_ledger import app, whose_backend  # noqa: PLC0415  # preloaded

        sys.stderr.write(f"master {app.ensure_sync(whose_backend)()}\n")
