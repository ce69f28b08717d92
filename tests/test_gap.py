"""Over- or underfitting of the control, from its losses on both splits."""

import numpy as np
import pytest
from scipy import stats

from droptune import gap

RNG = np.random.default_rng(2)


def found(train, val, constant=1.0, noise=0.01):
    """Return the fit of losses with such means, in twenty parts each."""
    parts = [mean + noise * RNG.normal(size=20) for mean in (train, val)]
    parts = [part - part.mean() + mean for part, mean in zip(parts, (train, val), strict=True)]
    return gap.fit({**gap.measured(*map(list, parts), constant), "val_loss": val})


@pytest.mark.parametrize(
    ("train", "val", "constant", "reading"),
    [
        (0.02, 0.30, 1.0, "overfits"),
        (0.60, 0.90, 1.0, "overfits"),
        (0.60, 0.601, 1.0, "underfits"),  # a gap within the noise
        (0.60, 0.50, 1.0, "underfits"),  # validation samples that are easier
        (0.05, 0.051, 1.0, "fits"),
        (0.05, 0.051, 0.1, "underfits"),
        (0.02, 0.30, None, "overfits"),
        (0.60, 0.601, None, "no gap"),
    ],
)
def test_readings(train, val, constant, reading):
    fit = found(train, val, constant)
    assert fit["reading"] == reading
    assert fit["gap"] == pytest.approx(val - train)
    assert gap.IMPLIES[reading] in gap.sentence(fit) and "\n" not in gap.sentence(fit)


def test_a_gap_that_is_sure_but_of_no_account_is_near_0():
    fit = found(1.0, 1.005, 2.0, noise=1e-5)
    assert fit["low"] > 0 and fit["reading"] == "underfits"


def test_a_gap_within_a_wide_interval_is_unclear():
    fit = found(1.0, 1.2, 2.0, noise=1.0)
    assert fit["low"] < 0 < fit["gap"] and fit["reading"] == "unclear"
    assert "too few samples" in gap.sentence(fit)


def test_the_interval_is_welchs():
    train, val = RNG.normal(1, 0.1, 20), RNG.normal(1.3, 0.5, 20)
    numbers = gap.measured(list(train), list(val), None)
    a, b = train.var(ddof=1) / 20, val.var(ddof=1) / 20
    freedom = (a + b) ** 2 / (a**2 / 19 + b**2 / 19)
    reach = stats.t.ppf(0.975, freedom) * np.sqrt(a + b)
    ends = [numbers[gap.LOW], numbers[gap.HIGH]]
    assert ends == pytest.approx([val.mean() - train.mean() + s * reach for s in (-1, 1)])


def test_without_a_gap_overfits_is_said_seldom():
    said = [
        gap.fit({**gap.measured(*RNG.exponential(1, (2, 20)).tolist(), 1.0), "val_loss": 1.1})
        for _ in range(400)
    ]
    assert sum(fit["low"] > 0 for fit in said) <= 400 * 0.05


def test_what_was_not_measured_is_none():
    assert gap.fit(None) is gap.fit({}) is gap.fit({"val_loss": 1.0}) is None
    one = gap.fit({**gap.measured([1.0], [2.0], None), "val_loss": 2.0})  # one sample a split
    assert one["low"] is None and one["reading"] == "unclear"
    assert gap.measured([float("nan")] * 2, [1.0] * 2, None) == {}
