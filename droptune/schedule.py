"""How a rate moves over training: the factor on it, by schedule.

Rates move between epochs, so that the fused, the serial and the user's own training loop
mean the same by a schedule.

Sources: early and late, Liu, Xu, Jin, Shen, Darrell, "Dropout Reduces Underfitting",
https://arxiv.org/abs/2303.01500; ramp, the linear schedule of DropBlock, Ghiasi, Lin, Le,
https://arxiv.org/abs/1810.12890; curriculum, Morerio, Cavazza, Volpi, Vidal, Murino,
"Curriculum Dropout", https://arxiv.org/abs/1703.06229.
"""

import math
from collections.abc import Sequence

#: Schedule -> the fraction of training it takes where a plan does not say. A sixth is that
#: of Liu et al.: 50 of 300 epochs.
SCHEDULES: dict[str, float | None] = {
    "constant": None,
    "ramp": 1.0,
    "early": 1 / 6,
    "late": 1 / 6,
    "curriculum": 1.0,
}

#: The schedule of a rate that a plan spells out, step by step; it is found and not suggested.
STEPS = "steps"


def factor(schedule: str, fraction: float | None, progress: float) -> float:
    """Return what a rate is multiplied by at some point of training, in [0, 1].

    - constant: 1.
    - ramp: from 0 up to 1 along a line over the fraction, then 1.
    - early: from 1 down to 0 along a line over the fraction, then 0.
    - late: 0 during the fraction, then 1.
    - curriculum: `1 - exp(-10 t)`, t the part of the fraction that is over.

    Args:
        schedule: a name in `SCHEDULES`.
        fraction: of training, in (0, 1]; None for constant.
        progress: from 0, in the first epoch, to 1, in the last.
    """
    if fraction is None:
        return 1.0
    part = progress / fraction
    return {
        "ramp": min(part, 1.0),
        "early": max(1.0 - part, 0.0),
        "late": float(part >= 1.0),
        "curriculum": -math.expm1(-10.0 * part),
    }[schedule]


def step_at(steps: Sequence[tuple[float, float]], progress: float) -> float:
    """Return the rate of the last of the steps that has begun.

    Args:
        steps: (progress at which it begins, rate); the first begins at 0.
        progress: of training, from 0 to 1.
    """
    return [rate for start, rate in steps if start <= progress][-1]


def settled(schedule: str, fraction: float | None) -> float:
    """Return the progress from which on the factor stands still, in [0, 1].

    Of curriculum, at which it is within 1 % of 1: `log(100) / 10` of the fraction.
    """
    if fraction is None:
        return 0.0
    return fraction * (math.log(100) / 10 if schedule == "curriculum" else 1.0)


def progress(epoch: int, epochs: int) -> float:
    """Return how far training is in an epoch: 0 in the first (epoch 0), 1 in the last."""
    return min(epoch / (epochs - 1), 1.0) if epochs > 1 else 0.0
