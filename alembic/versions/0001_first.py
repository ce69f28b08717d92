"""First: studies, sites, runs, curves, verdicts.

Defines what it needs itself and imports nothing from droptune, which will have changed.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "droptune_study",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("definition", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("environment", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_droptune_study"),
        sa.UniqueConstraint("name", name="uq_droptune_study_name"),
    )
    op.create_table(
        "droptune_site",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("layout", sa.String(), nullable=False),
        sa.Column("reach", sa.String(), nullable=False),
        sa.Column("shape", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("kind", sa.String(), nullable=True),
        sa.Column("rate", sa.Double(), nullable=True),
        study_key("site"),
        sa.PrimaryKeyConstraint("study_id", "position", name="pk_droptune_site"),
        sa.UniqueConstraint("study_id", "name", name="uq_droptune_site_study_id_name"),
    )
    create_run()
    op.create_table(
        "droptune_curve",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("train_loss", sa.Double(), nullable=True),
        sa.Column("metrics", sa.JSON(none_as_null=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["droptune_run.id"], "fk_droptune_curve_run_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "epoch", name="pk_droptune_curve"),
    )
    create_verdict()


def downgrade() -> None:
    for table in ("verdict", "curve", "run", "site", "study"):
        op.drop_table(f"droptune_{table}")  # its indices go with it


def study_key(table: str) -> sa.ForeignKeyConstraint:
    name = f"fk_droptune_{table}_study_id"
    return sa.ForeignKeyConstraint(["study_id"], ["droptune_study.id"], name, ondelete="CASCADE")


def create_run() -> None:
    op.create_table(
        "droptune_run",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("arm", sa.String(), nullable=False),
        sa.Column("trial_number", sa.Integer(), nullable=True),
        sa.Column("block", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("clock", sa.Integer(), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("trainer", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("plan", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("epochs", sa.Integer(), nullable=True),
        sa.Column("test", sa.JSON(none_as_null=True), nullable=True),
        sa.CheckConstraint("phase IN ('search', 'confirm')", name="ck_droptune_run_phase"),
        sa.CheckConstraint(
            "state IN ('running', 'complete', 'pruned', 'failed', 'interrupted')",
            name="ck_droptune_run_state",
        ),
        study_key("run"),
        sa.PrimaryKeyConstraint("id", name="pk_droptune_run"),
    )
    op.create_index(
        "ix_droptune_run_study_id_phase_trial_number",
        "droptune_run",
        ["study_id", "phase", "trial_number"],
    )


def create_verdict() -> None:
    op.create_table(
        "droptune_verdict",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("verdict", sa.String(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("plan", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("objective", sa.String(), nullable=False),
        sa.Column("direction", sa.String(), nullable=False),
        sa.Column("difference", sa.Double(), nullable=True),
        sa.Column("low", sa.Double(), nullable=True),
        sa.Column("high", sa.Double(), nullable=True),
        sa.Column("p_value", sa.Double(), nullable=True),
        sa.Column("blocks", sa.Integer(), nullable=True),
        sa.Column("level", sa.Double(), nullable=True),
        sa.Column("best", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("control", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("test", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("details", sa.JSON(none_as_null=True), nullable=True),
        study_key("verdict"),
        sa.PrimaryKeyConstraint("id", name="pk_droptune_verdict"),
    )
    op.create_index("ix_droptune_verdict_study_id", "droptune_verdict", ["study_id"])
