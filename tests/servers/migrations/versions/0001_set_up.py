"""Make a table of the application's."""

# ruff: noqa: INP001  # a folder of scripts, as Alembic has them

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table("async_set_up", sa.Column("key", sa.Text, primary_key=True))
