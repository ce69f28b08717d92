"""Studies over outcomes that are looked up; shared by the tests of the loop and of promise 6."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn

from droptune.plan import Plan
from droptune.study import Study
from droptune.trainers import TableTrainer

RATES = (0.0, 0.3, 0.6)
SITES = ("2", "5")
CELLS = tuple(product(RATES, RATES))


def build() -> nn.Module:
    """Return a network with a dropout, at rate 0, after each of two hidden layers."""
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.0),
        nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 1),
    )  # fmt: skip


def cell_of(plan: Plan) -> tuple[float, ...]:
    """Return the rates of the two sites."""
    return tuple(plan[site].rate if site in plan else 0.0 for site in SITES)


def noisy(effect: float = 0.0, better: tuple[float, ...] | None = None) -> Callable[..., Any]:
    """Return outcomes with heavy-tailed noise, part of it common to the plans of a seed.

    Args:
        effect: of plans with dropout, in standard deviations of a paired difference; below 0
            is better.
        better: the only cell that has it; None: all with dropout.
    """

    def outcome(plan: Plan, seed: int, epoch: int) -> dict[str, float]:
        cell = cell_of(plan)
        alone = np.random.default_rng([seed, CELLS.index(cell)]).standard_t(5)
        helped = any(cell) if better is None else cell == better
        shared = np.random.default_rng(seed).standard_normal()
        # A paired difference of two plans has variance 2 * 5 / 3.
        return {"val_loss": 20 + shared + alone + helped * effect * (10 / 3) ** 0.5}

    return outcome


def table_study(url: str, outcome: Callable[..., Any], **changes: Any) -> Study:
    """Return a study of the nine cells, an epoch long."""
    settings = {
        "model": build,
        "example": torch.zeros(2, 4),
        "rates": dict.fromkeys(SITES, RATES),
        "trainer": TableTrainer.of(outcome),
        "epochs": 1,
        "sampler": "grid",
        "trials": len(CELLS) + 1,  # no dropout comes first, and is a cell, too
        "confirm_blocks": 4,
        "store": url,
    }
    return Study(changes.pop("name", "table"), **settings | changes)
