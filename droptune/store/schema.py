"""Droptune's tables, beside Optuna's in one database; every name starts with `droptune_`.

Optuna's tables say what trials there are, their states, values and parameters; nothing of
that is stored again. Times are UTC without a zone, as in Optuna's tables. Everything that
is not a number or a word is JSON; nothing is ever pickled. The database is created by the
migrations in `alembic/`, never by `create_all`; a test compares the two.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    MetaData,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}
"""How constraints are named, so that a later migration can address each one."""


def now() -> datetime:
    """Return the time, in UTC without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


class Base(DeclarativeBase):
    """Base of the tables; a `dict` or `list` is a JSON column, None in it is SQL's NULL."""

    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map = {
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
        float: Double,
    }


def _study_key(**options: Any) -> Any:
    return mapped_column(ForeignKey("droptune_study.id", ondelete="CASCADE"), **options)


def _one_running(name: str, columns: str, phase: str) -> Index:
    """Return the index that lets one run of the same thing run at a time."""
    running = text(f"state = 'running' AND phase = '{phase}'")
    return Index(
        f"uq_droptune_run_running_{name}",
        "study_id",
        *columns.split(", "),
        unique=True,
        sqlite_where=running,
        postgresql_where=running,
    )


class StudyRow(Base):
    """A study: what it tunes and where it was made; its trials are in Optuna's tables."""

    __tablename__ = "droptune_study"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    definition: Mapped[dict[str, Any]]
    environment: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)


class SiteRow(Base):
    """A site of the study's model; `position` is its depth in call order."""

    __tablename__ = "droptune_site"
    __table_args__ = (UniqueConstraint("study_id", "name"),)

    study_id: Mapped[int] = _study_key(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]
    role: Mapped[str]
    layout: Mapped[str]
    reach: Mapped[str]
    shape: Mapped[list[Any]]
    kind: Mapped[str | None]
    rate: Mapped[float | None]


class WorkerRow(Base):
    """A process that works on studies; `seen_at` is its last sign of life, by the database's clock.

    `place` names the machine, and the part of it, in which its process id means something.
    """

    __tablename__ = "droptune_worker"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int | None] = mapped_column(
        ForeignKey("droptune_study.id", ondelete="SET NULL")
    )
    host: Mapped[str]
    place: Mapped[str]
    pid: Mapped[int]
    device: Mapped[str]
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    doing: Mapped[dict[str, Any] | None]


class SubmissionRow(Base):
    """A study that waits for workers: where its definition is, and what overrides it."""

    __tablename__ = "droptune_submission"
    __table_args__ = (
        CheckConstraint("state IN ('queued', 'done', 'failed', 'withdrawn')", name="state"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    target: Mapped[str]
    options: Mapped[dict[str, Any]]
    submitted_at: Mapped[datetime] = mapped_column(default=now)
    state: Mapped[str]
    message: Mapped[str | None] = mapped_column(Text)


class RunRow(Base):
    """One training of one plan in one block; `clock` is the block's epoch at its entry.

    A run is also a claim: of a trial, or of a plan in a block of confirmation, one runs at a
    time, and its id is the token without which a worker can write nothing more of it. `stale`
    is one whose worker died, `interrupted` one that its worker handed back.
    """

    __tablename__ = "droptune_run"
    __table_args__ = (
        CheckConstraint("phase IN ('search', 'confirm')", name="phase"),
        CheckConstraint(
            "state IN ('running', 'complete', 'pruned', 'failed', 'interrupted', 'stale')",
            name="state",
        ),
        Index(None, "study_id", "phase", "trial_number"),
        Index(None, "study_id", "phase", "arm"),
        Index(None, "study_id", "state"),
        _one_running("trial", "trial_number", "search"),
        _one_running("arm", "block, arm", "confirm"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = _study_key()
    phase: Mapped[str]
    arm: Mapped[str]
    trial_number: Mapped[int | None]
    block: Mapped[int]
    seed: Mapped[int] = mapped_column(BigInteger)
    clock: Mapped[int]
    slot: Mapped[int]
    trainer: Mapped[str]
    device: Mapped[str]
    plan: Mapped[dict[str, Any]]
    state: Mapped[str]
    message: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(default=now)
    seconds: Mapped[float | None]
    epochs: Mapped[int | None]
    test: Mapped[dict[str, Any] | None]
    worker_id: Mapped[int | None] = mapped_column(
        ForeignKey("droptune_worker.id", ondelete="SET NULL")
    )
    checkpoint: Mapped[dict[str, Any] | None]


class CurveRow(Base):
    """The scores of a run after one epoch; what was NaN or infinite is NULL."""

    __tablename__ = "droptune_curve"

    run_id: Mapped[int] = mapped_column(
        ForeignKey("droptune_run.id", ondelete="CASCADE"), primary_key=True
    )
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    train_loss: Mapped[float | None]
    metrics: Mapped[dict[str, Any]]


class ConfirmationRow(Base):
    """The design of a confirmation, stored before its first block is trained; never changed."""

    __tablename__ = "droptune_confirmation"
    __table_args__ = (UniqueConstraint("study_id", "round"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = _study_key()
    round: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(default=now)
    design: Mapped[dict[str, Any]]


class VerdictRow(Base):
    """A verdict: the winner against no dropout, paired over blocks; of an objective the latest."""

    __tablename__ = "droptune_verdict"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = _study_key(index=True)
    created_at: Mapped[datetime] = mapped_column(default=now)
    verdict: Mapped[str]
    text: Mapped[str] = mapped_column(Text)
    plan: Mapped[dict[str, Any]]
    objective: Mapped[str]
    direction: Mapped[str]
    difference: Mapped[float | None]
    low: Mapped[float | None]
    high: Mapped[float | None]
    p_value: Mapped[float | None]
    blocks: Mapped[int | None]
    level: Mapped[float | None]
    best: Mapped[dict[str, Any] | None]
    control: Mapped[dict[str, Any] | None]
    test: Mapped[dict[str, Any] | None]
    details: Mapped[dict[str, Any] | None]
