"""The order in which queued jobs go"""

from collections.abc import Sequence

from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_INDEXES = {
    "ix_jobs_status_tenant_priority_id": ["status", "tenant", "priority", "id"],
    "ix_jobs_tenant_started_at": ["tenant", "started_at"],
}


def upgrade() -> None:
    """Forward."""
    for name, columns in _INDEXES.items():
        op.create_index(name, "jobs", columns)


def downgrade() -> None:
    """Back."""
    for name in _INDEXES:
        op.drop_index(name, "jobs")
