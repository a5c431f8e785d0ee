"""Kinds of jobs"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Forward: all jobs so far are compressions."""
    op.add_column("jobs", sa.Column("kind", sa.String(length=20), server_default="compression", nullable=False))


def downgrade() -> None:
    """Back."""
    op.drop_column("jobs", "kind")
