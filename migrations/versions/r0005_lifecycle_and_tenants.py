"""Checkpoints, retention, fingerprints, tenants and the audit log"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

Json = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")

_INDEXES = {"ix_jobs_tenant_fingerprint": ["tenant", "fingerprint"], "ix_jobs_expires_at": ["expires_at"]}


def _columns() -> list["sa.Column[object]"]:
    return [
        sa.Column("checkpoint", Json, nullable=True),
        sa.Column("batch_divisor", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("cloned_from", sa.String(length=40), nullable=True),
        sa.Column("fingerprint", sa.String(length=64), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expired_at", sa.DateTime(timezone=True), nullable=True),
    ]


def upgrade() -> None:
    """Forward."""
    for column in _columns():
        op.add_column("jobs", column)
    for name, columns in _INDEXES.items():
        op.create_index(name, "jobs", columns)
    op.create_index("ix_models_parent_model_id", "models", ["parent_model_id"])
    op.create_table(
        "tenants",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("limits", Json, nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_tenants"),
    )
    op.create_table(
        "audit_entries",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant", sa.String(length=100), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("key_id", sa.String(length=40), nullable=False),
        sa.Column("action", sa.String(length=60), nullable=False),
        sa.Column("target", sa.String(length=40), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("data", Json, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_entries"),
    )
    op.create_index("ix_audit_entries_tenant_id", "audit_entries", ["tenant", "id"])


def downgrade() -> None:
    """Back."""
    op.drop_table("audit_entries")
    op.drop_table("tenants")
    op.drop_index("ix_models_parent_model_id", "models")
    for name in _INDEXES:
        op.drop_index(name, "jobs")
    for column in reversed(_columns()):
        op.drop_column("jobs", column.name)
