"""What Alembic runs: migrations on the connection that the application hands it."""

# ruff: noqa: INP001  # a folder of scripts, as Alembic has them

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
