"""Say when a book was finished.

Revision ID: d287d5768bf9
Revises: c410b69b3cfc
"""

import sqlalchemy as sa
from alembic import op

revision = "d287d5768bf9"
down_revision = "c410b69b3cfc"


def upgrade() -> None:
    op.add_column("books", sa.Column("finished", sa.Date(), nullable=True))


def downgrade() -> None:
    op.drop_column("books", "finished")
