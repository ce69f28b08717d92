"""droptune/kinds/stochastic.py: a rate that each call draws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kinds.making import make


def drawn(rate: float, calls: int = 4000, seed: int = 0) -> torch.Tensor:
    """Return the rates that calls drew, read off the scale of what they kept."""
    kind = make("stochastic", rate, seed)
    highest = torch.stack([kind(torch.ones(200)).max() for _ in range(calls)])
    return 1 - 1 / highest


@given(rate=st.floats(0.01, 0.9), seed=st.integers(0, 1000))
def test_each_call_drops_at_the_one_rate_that_its_scale_tells(rate, seed):
    y = make("stochastic", rate, seed)(torch.ones(200, 500))
    scale = y.max().item()
    p = 1 - 1 / scale
    both = torch.tensor([0.0, scale])
    assert torch.equal(y.unique(), both if p > 1e-3 else both[-len(y.unique()) :])
    assert 0 <= p <= min(2 * rate, 0.95) + 1e-6
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.01)


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.4, 0.475])
def test_rates_are_uniform_from_0_to_twice_the_rate(rate):
    p = drawn(rate)
    assert p.mean().item() == pytest.approx(rate, rel=0.04)
    assert p.std().item() == pytest.approx(2 * rate / 12**0.5, rel=0.04)
    assert p.min() < 0.02 * rate and p.max() > 1.98 * rate


@pytest.mark.parametrize(("rate", "mean"), [(0.6, 0.574), (0.8, 0.668), (0.99, 0.722)])
def test_above_0475_clipping_holds_the_mean_rate_back(rate, mean):
    p = drawn(rate)
    assert 0.95 - 0.95**2 / (4 * rate) == pytest.approx(mean, abs=1e-3)
    assert p.mean().item() == pytest.approx(mean, abs=0.015)
    assert p.max().item() == pytest.approx(0.95, abs=1e-5)
