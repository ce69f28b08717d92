"""Does the network without dropout over- or underfit? What dropout can do depends on it.

Dropout in all of training costs an underfitting network accuracy, where dropout in its early
epochs helps it; an overfitting one is what regularisation is for (Liu, Xu, Jin, Shen, Darrell
2023, https://arxiv.org/abs/2303.01500). Both losses are taken in eval mode: with dropout on, a
training loss holds its noise, and during an epoch it is that of weights that still move.

The numbers stand among the metrics of the control's last epoch, under the names below.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

TRAIN, LOW, HIGH, CONSTANT = "fit_train_loss", "fit_gap_low", "fit_gap_high", "fit_constant_loss"

#: Parts that samples are dealt to; the spread of their mean losses is the noise.
PARTS = 20
#: A gap below this share of the validation loss is near 0 however sure it is: closing it
#: gains less than a verdict calls a benefit (verdict.RELEVANT).
SMALL = 0.01
#: Where the gap may be above this share of the validation loss, there are too few samples to
#: call it near 0; a convention of ours.
WIDE = 0.25
#: A training loss above this share of a constant prediction's is high: nine tenths of the
#: loss are not explained away. That share is R2 for squares, and that of McFadden (1974) for
#: likelihoods; the threshold is a convention of ours.
HIGH_SHARE = 0.1

OVERFITS, UNDERFITS, FITS, NO_GAP = "overfits", "underfits", "fits", "no gap"
UNCLEAR = "unclear"
IMPLIES = {
    OVERFITS: "regularisation can help",
    UNDERFITS: "expect no dropout, or an early schedule (schedules=['constant', 'early'])",
    FITS: "little is left for dropout to gain",
    NO_GAP: "expect no dropout, or an early schedule (schedules=['constant', 'early'])",
    UNCLEAR: "too few samples to tell over- from underfitting",
}


def measured(
    train: Sequence[float], val: Sequence[float], constant: float | None
) -> dict[str, float]:
    """Return what is kept of both losses, as metrics by name.

    The interval of the gap is Welch's for two means (1947, as `scipy.stats.ttest_ind` with
    unequal variances), at 95 %, over the parts' means (the method of batch means, which asks
    nothing of a loss but that it takes batches).

    Args:
        train: mean losses of equal parts of training samples, in eval mode; two at least.
        val: the same of validation samples.
        constant: loss of the best constant prediction, or None if it is not known.
    """
    from scipy.stats import ttest_ind

    numbers = {TRAIN: sum(train) / len(train)}
    if constant is not None:
        numbers[CONSTANT] = constant
    if len(train) > 1 and len(val) > 1:
        ends = ttest_ind(val, train, equal_var=False).confidence_interval(0.95)
        numbers |= {LOW: float(ends.low), HIGH: float(ends.high)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def fit(metrics: Mapping[str, float] | None) -> dict[str, Any] | None:
    """Return how the control fits, from the metrics of its last epoch; None: not measured.

    - overfits: the gap's interval lies above 0, and the gap is 1 % or more of the
      validation loss.
    - unclear: else, and the interval reaches above a quarter of the validation loss.
    - underfits: else, and the training loss is above a tenth of a constant prediction's.
    - fits: else.
    - no gap: as underfits or fits, where no constant prediction's loss is known.

    Returns:
        train_loss, val_loss, gap (their difference), low and high (of its 95 % interval, or
        None) and reading.
    """
    numbers = metrics or {}
    train, val = numbers.get(TRAIN), numbers.get("val_loss")
    if train is None or val is None:
        return None
    low, high, constant = (numbers.get(name) for name in (LOW, HIGH, CONSTANT))
    gap = val - train
    if low is not None and low > 0 and gap >= SMALL * abs(val):
        reading = OVERFITS
    elif high is None or high > WIDE * abs(val):
        reading = UNCLEAR
    elif constant is None:
        reading = NO_GAP
    else:
        reading = UNDERFITS if train > HIGH_SHARE * constant else FITS
    numbers = {"train_loss": train, "val_loss": val, "gap": gap, "low": low, "high": high}
    return numbers | {"reading": reading}


def sentence(fit: Mapping[str, Any]) -> str:
    """Return how the control fits, and what it implies, as one line."""
    ends = "" if fit["low"] is None else f" [{fit['low']:.3g}, {fit['high']:.3g}]"
    return (
        f"without dropout: {fit['reading']}, training loss {fit['train_loss']:.3g}, validation "
        f"loss {fit['val_loss']:.3g}, gap {fit['gap']:.2g}{ends}: {IMPLIES[fit['reading']]}"
    )
