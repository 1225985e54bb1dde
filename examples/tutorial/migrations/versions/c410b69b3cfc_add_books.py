"""Add books.

Revision ID: c410b69b3cfc
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "c410b69b3cfc"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "books",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("title", sa.String(length=200), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("title"),
    )


def downgrade() -> None:
    op.drop_table("books")
