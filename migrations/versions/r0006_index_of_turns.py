"""The order in which queued jobs go"""

from collections.abc import Sequence

from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_INDEX = "ix_jobs_status_tenant_priority_id"


def upgrade() -> None:
    """Forward."""
    op.create_index(_INDEX, "jobs", ["status", "tenant", "priority", "id"])


def downgrade() -> None:
    """Back."""
    op.drop_index(_INDEX, "jobs")
