"""Workers: who trains a run, one run of a trial at a time, and studies that wait in line.

Defines what it needs itself and imports nothing from droptune, which will have changed.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

STATES = "'running', 'complete', 'pruned', 'failed', 'interrupted'"
COLUMNS = (
    "id, study_id, phase, arm, trial_number, block, seed, clock, slot, trainer, device, plan, "
    "state, message, started_at, seconds, epochs, test"
)


def upgrade() -> None:
    create_worker()
    create_submission()
    # Left by processes that died: of what runs twice, one would be in the way of the other.
    op.execute("UPDATE droptune_run SET state = 'interrupted' WHERE state = 'running'")
    key = sa.ForeignKey("droptune_worker.id", name="fk_droptune_run_worker_id", ondelete="SET NULL")
    new = (
        sa.Column("worker_id", sa.Integer(), key, nullable=True),
        sa.Column("checkpoint", sa.JSON(none_as_null=True), nullable=True),
    )
    change_run(f"{STATES}, 'stale'", new)
    op.create_index(
        "ix_droptune_run_study_id_phase_arm", "droptune_run", ["study_id", "phase", "arm"]
    )
    op.create_index("ix_droptune_run_study_id_state", "droptune_run", ["study_id", "state"])
    for name, columns, phase in (
        ("trial", ["trial_number"], "search"),
        ("arm", ["block", "arm"], "confirm"),
    ):
        running = sa.text(f"state = 'running' AND phase = '{phase}'")
        op.create_index(
            f"uq_droptune_run_running_{name}",
            "droptune_run",
            ["study_id", *columns],
            unique=True,
            sqlite_where=running,
            postgresql_where=running,
        )


def downgrade() -> None:
    for name in ("uq_droptune_run_running_arm", "uq_droptune_run_running_trial"):
        op.drop_index(name, "droptune_run")
    for name in ("study_id_state", "study_id_phase_arm"):
        op.drop_index(f"ix_droptune_run_{name}", "droptune_run")
    op.execute("UPDATE droptune_run SET state = 'interrupted' WHERE state = 'stale'")
    change_run(STATES, ())
    op.drop_table("droptune_submission")
    op.drop_table("droptune_worker")


def create_worker() -> None:
    op.create_table(
        "droptune_worker",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=True),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("place", sa.String(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("started_at", sa.DateTime(), nullable=False),
        sa.Column("seen_at", sa.DateTime(), nullable=False),
        sa.Column("ended_at", sa.DateTime(), nullable=True),
        sa.Column("doing", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["study_id"],
            ["droptune_study.id"],
            "fk_droptune_worker_study_id",
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_droptune_worker"),
    )


def create_submission() -> None:
    op.create_table(
        "droptune_submission",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("options", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("submitted_at", sa.DateTime(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("message", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "state IN ('queued', 'done', 'failed', 'withdrawn')",
            name="ck_droptune_submission_state",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_droptune_submission"),
        sa.UniqueConstraint("name", name="uq_droptune_submission_name"),
    )


def change_run(states: str, columns: tuple[sa.Column, ...]) -> None:
    """Allow these states, and have these columns beside the first revision's."""
    check = f"state IN ({states})"
    if op.get_bind().dialect.name != "sqlite":
        op.drop_constraint("ck_droptune_run_state", "droptune_run", type_="check")
        op.create_check_constraint("ck_droptune_run_state", "droptune_run", check)
        for column in columns:
            op.add_column("droptune_run", column)
        if not columns:
            op.drop_column("droptune_run", "checkpoint")
            op.drop_column("droptune_run", "worker_id")
        return
    # SQLite cannot change a check: the table is made anew, https://sqlite.org/lang_altertable.html
    # section 7. References to it are by name, and not followed meanwhile (store/migrate.py).
    op.drop_index("ix_droptune_run_study_id_phase_trial_number", "droptune_run")
    create_run("droptune_run_new", check, columns)
    op.execute(f"INSERT INTO droptune_run_new ({COLUMNS}) SELECT {COLUMNS} FROM droptune_run")
    op.drop_table("droptune_run")
    op.rename_table("droptune_run_new", "droptune_run")
    op.create_index(
        "ix_droptune_run_study_id_phase_trial_number",
        "droptune_run",
        ["study_id", "phase", "trial_number"],
    )


def create_run(name: str, check: str, columns: tuple[sa.Column, ...]) -> None:
    op.create_table(
        name,
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
        *columns,
        sa.CheckConstraint("phase IN ('search', 'confirm')", name="ck_droptune_run_phase"),
        sa.CheckConstraint(check, name="ck_droptune_run_state"),
        sa.ForeignKeyConstraint(
            ["study_id"], ["droptune_study.id"], "fk_droptune_run_study_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_droptune_run"),
    )
