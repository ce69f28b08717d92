"""Trainers: how members of a block are trained. The pluggable part."""

from droptune.trainers.base import (
    LOSSES,
    LR_SCHEDULES,
    OPTIMIZERS,
    Saved,
    Scores,
    Task,
    Trainer,
    build,
)
from droptune.trainers.choose import TRAINERS, choose, why_not_fused
from droptune.trainers.consistency_loss import ConsistencyLoss
from droptune.trainers.fit import (
    check_fit,
    count_gpus,
    fingerprint,
    pick_device,
)
from droptune.trainers.function import FunctionTrainer
from droptune.trainers.fused import FusedTrainer
from droptune.trainers.memory import gpu_share, is_out_of_memory, release_memory
from droptune.trainers.own import make_own
from droptune.trainers.saving import part_of, restore_into, saved_by
from droptune.trainers.scored import check_metrics, metric_names
from droptune.trainers.serial import SerialTrainer
from droptune.trainers.table import TableTrainer

__all__ = [
    "LOSSES",
    "LR_SCHEDULES",
    "OPTIMIZERS",
    "TRAINERS",
    "ConsistencyLoss",
    "FunctionTrainer",
    "FusedTrainer",
    "Saved",
    "Scores",
    "SerialTrainer",
    "TableTrainer",
    "Task",
    "Trainer",
    "build",
    "check_fit",
    "check_metrics",
    "choose",
    "count_gpus",
    "fingerprint",
    "gpu_share",
    "is_out_of_memory",
    "make_own",
    "metric_names",
    "part_of",
    "pick_device",
    "release_memory",
    "restore_into",
    "saved_by",
    "why_not_fused",
]
