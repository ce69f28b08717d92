"""Confirmation: the design of each confirmation, stored before its first block.

Defines what it needs itself and imports nothing from droptune, which will have changed.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "droptune_confirmation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("design", sa.JSON(none_as_null=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"],
            ["droptune_study.id"],
            "fk_droptune_confirmation_study_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_droptune_confirmation"),
        sa.UniqueConstraint("study_id", "round", name="uq_droptune_confirmation_study_id_round"),
    )


def downgrade() -> None:
    op.drop_table("droptune_confirmation")
