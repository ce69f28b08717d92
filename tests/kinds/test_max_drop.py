"""droptune/kinds/max_drop.py: what is highest goes first."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kinds.making import batch, make

shapes = st.lists(st.integers(1, 5), min_size=3, max_size=5)
rates = st.floats(0, 0.99)
seeds = st.integers(0, 1000)


def signed(shape, seed: int, relu: bool = False) -> Tensor:
    x = batch(*shape, seed=seed)
    return x.relu() if relu else x


@given(shape=shapes, rate=rates, seed=seeds)
def test_max_drop_takes_the_maximum_of_a_map_and_nothing_else(shape, rate, seed):
    x = signed(shape, seed)
    uniform = make("max_drop", seed=seed).stream.uniform((*shape[:2], 1), x.device)
    y = make("max_drop", rate, seed)(x)
    for sample in range(shape[0]):
        for channel in range(shape[1]):
            expected = x[sample, channel].clone()
            if uniform[sample, channel, 0] >= 1 - torch.tensor(rate):
                expected[expected == expected.max()] = 0
            assert torch.equal(y[sample, channel], expected)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_max_drop_hits_that_part_of_the_maps_and_lowers_their_mean(rate):
    x = batch(100, 200, 3, 3).abs() + 1
    y = make("max_drop", rate)(x)
    assert (y == 0).flatten(2).any(2).float().mean().item() == pytest.approx(rate, abs=0.01)
    lower = (x.mean() - rate * x.amax((2, 3)).mean() / 9).item()
    assert y.mean().item() == pytest.approx(lower, rel=0.005)


@given(shape=shapes, rate=rates, seed=seeds, relu=st.booleans())
def test_max_drop_channel_takes_the_highest_channel_and_scales_the_sample(shape, rate, seed, relu):
    x = signed(shape, seed, relu)
    uniform = make("max_drop_channel", seed=seed).stream.uniform((shape[0], 1, *shape[2:]), "cpu")
    y = make("max_drop_channel", rate, seed)(x)
    for before, after, u in zip(x, y, uniform, strict=True):
        highest = before == before.amax(0)
        total = before.abs().sum().item()
        share = before.amax(0).abs().sum().item() / total if total else 0.0
        scale = 1 / (1 - rate * share)
        gone = highest & (u >= 1 - torch.tensor(rate))
        torch.testing.assert_close(after, (before * scale).masked_fill(gone, 0.0))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_max_drop_channel_keeps_the_mean_of_each_sample_behind_a_relu(rate):
    x = batch(4, 3, 6).relu()
    draws = make("max_drop_channel", rate)(x.repeat(20_000, 1, 1)).view(20_000, 4, 3, 6)
    torch.testing.assert_close(draws.mean((0, 2, 3)), x.mean((1, 2)), rtol=0.02, atol=0)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_max_drop_channel_keeps_the_mean_size_of_mixed_signs(rate):
    x = batch(4, 3, 6)
    draws = make("max_drop_channel", rate)(x.repeat(20_000, 1, 1)).view(20_000, 4, 3, 6)
    torch.testing.assert_close(draws.abs().mean((0, 2, 3)), x.abs().mean((1, 2)), rtol=0.02, atol=0)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(3, 4, 5),
        torch.ones(3, 1, 5),
        -torch.ones(3, 4, 5),
        torch.tensor([1.0, 1e-30, -1.0]).view(1, 3, 1).repeat(3, 1, 5),
        torch.full((3, 4, 5), 1e-45),
        torch.full((3, 4, 5), 1e38),
    ],
    ids=["zeros", "one channel", "negative", "cancelling", "smallest", "sum overflows"],
)
@pytest.mark.parametrize("rate", [0.5, 0.99])
def test_max_drop_channel_scales_by_1_to_1_over_keep_whatever_the_values(x, rate):
    y = make("max_drop_channel", rate)(x)
    assert not y.isnan().any()
    size = y.double().abs()
    assert (size <= x.double().abs() / (1 - rate) * 1.001 + 1e-44).all()
    assert ((size >= x.double().abs() * 0.999) | (y == 0)).all()


@pytest.mark.parametrize("seed", range(20))
def test_rounding_does_not_lift_the_share_of_maxima_above_1(seed):
    x = torch.zeros(50, 3, 997)  # all in one channel: two sums of the same, in another order
    x[:, 1] = batch(50, 997, seed=seed).abs()
    y = make("max_drop_channel", 1 - 2**-24)(x)
    assert y.isfinite().all() and (y >= 0).all()


def test_the_gradient_of_max_drop_channel_is_its_mask_for_the_scale_has_none():
    x = batch(3, 4, 5).requires_grad_()
    y = make("max_drop_channel")(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, (y / x).detach())


@pytest.mark.parametrize("name", ["max_drop", "max_drop_channel"])
def test_of_equal_maxima_the_first_is_dropped(name):
    y = make(name, 0.99)(torch.ones(50, 3, 4))
    gone = y == 0
    assert gone.any()
    later = gone[:, :, 1:] if name == "max_drop" else gone[:, 1:]
    assert not later.any()
