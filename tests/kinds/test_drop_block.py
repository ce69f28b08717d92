"""droptune/kinds/drop_block.py: contiguous blocks."""

from itertools import product
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from droptune.kinds import DropBlock
from droptune.kinds.drop_block import lost
from tests.kinds.making import batch, make, started

sides = st.lists(st.integers(1, 17), min_size=1, max_size=2)


def frame(space, size: int = 7) -> tuple[list[int], list[int]]:
    """Return the sides of a block, and how many places each side has for it."""
    block = [min(size, side) for side in space]
    return block, [side - b + 1 for side, b in zip(space, block, strict=True)]


def gamma_of(rate: float, space, size: int = 7) -> float:
    block, places = frame(space, size)
    return rate * prod(space) / prod(block) / prod(places)


def covering(space) -> torch.Tensor:
    """Return for each position how many blocks cover it, counted one by one."""
    block, places = frame(space)
    count = torch.zeros(*space)
    for place in product(*map(range, places)):
        count[tuple(slice(p, p + b) for p, b in zip(place, block, strict=True))] += 1
    return count


def blocks(rate: float, seed: int = 0, size: int = 7) -> DropBlock:
    return started(DropBlock("fc", rate, size=size), seed)


def chance(gamma: float, space, block) -> float:
    """Return `lost` of plain numbers."""
    return lost(torch.tensor(gamma), space, [torch.tensor(float(b)) for b in block]).item()


@given(
    space=sides,
    rate=st.floats(0, 0.99),
    seed=st.integers(0, 1000),
    size=st.sampled_from([1, 3, 7, 15]),
)
def test_what_is_dropped_is_the_union_of_the_blocks_that_were_drawn(space, rate, seed, size):
    block, places = frame(space, size)
    gamma = torch.tensor(rate) * (prod(space) / (prod(block) * prod(places)))
    starts = make("drop_block", seed=seed).stream.uniform((3, 1, *space), "cpu") >= 1 - gamma
    x = batch(3, 2, *space).abs() + 1
    y = blocks(rate, seed, size)(x)
    for sample in range(3):
        gone = torch.zeros(*space, dtype=torch.bool)
        for place in product(*map(range, places)):
            if starts[sample, 0][place]:
                gone[tuple(slice(p, p + b) for p, b in zip(place, block, strict=True))] = True
        for channel in range(2):
            assert torch.equal(y[sample, channel] == 0, gone)


@given(space=sides, rate=st.floats(0, 0.99), seed=st.integers(0, 1000))
def test_what_is_kept_is_scaled_by_positions_over_kept_in_each_sample(space, rate, seed):
    y = make("drop_block", rate, seed)(torch.ones(5, 2, *space))
    block, _ = frame(space)
    rest = 1 - chance(gamma_of(rate, space), space, block)
    means = y.flatten(1).mean(1) * rest
    assert ((means - 1).abs() < 1e-3).logical_or(means == 0).all()


@pytest.mark.parametrize("space", [(5,), (8,), (14,), (30,), (5, 5), (9, 8), (16, 16), (28, 28)])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_dropped_part_and_the_mean_are_as_the_formula_says(space, rate):
    y = make("drop_block", rate)(torch.ones(6000, 1, *space))
    expected = 1 - ((1 - gamma_of(rate, space)) ** covering(space)).mean().item()
    assert (y == 0).float().mean().item() == pytest.approx(expected, abs=0.02)
    assert expected <= rate + 1e-6
    assert y.mean().item() == pytest.approx(1, rel=0.1 if len(space) == 1 or rate > 0.8 else 0.03)


@pytest.mark.parametrize("side", [1, 5, 7, 8, 9, 10, 14])
@pytest.mark.parametrize("rate", [0.3, 0.9])
def test_a_short_map_is_lost_as_often_as_counting_all_draws_says(side, rate):
    block, (places,) = frame((side,))
    gamma = gamma_of(rate, (side,))
    whole = 0.0
    for draw in product((0, 1), repeat=places):
        gone = {p + i for p, hit in enumerate(draw) if hit for i in range(block[0])}
        if len(gone) == side:
            whole += gamma ** sum(draw) * (1 - gamma) ** (places - sum(draw))
    assert chance(gamma, (side,), block) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("space", [(15,), (14, 15), (28, 28)])
def test_a_map_of_more_than_two_blocks_a_side_counts_as_never_lost(space):
    assert chance(0.5, space, frame(space)[0]) == 0


@pytest.mark.parametrize(("space", "corners"), [((5, 7), 1), ((9, 4), 2), ((8, 14), 4)])
def test_a_map_is_lost_when_a_block_starts_at_each_corner(space, corners):
    assert chance(0.3, space, frame(space)[0]) == pytest.approx(0.3**corners)


def test_on_a_map_no_larger_than_a_block_it_is_drop_path():
    y = make("drop_block", 0.3)(torch.ones(5000, 3, 7, 4)).flatten(1)
    assert torch.equal(y.amax(1), y.amin(1))
    torch.testing.assert_close(y.unique(), torch.tensor([0, 1 / 0.7]))


def test_a_map_that_is_dropped_whole_is_zero_not_nan():
    x = batch(2000, 2, 8).requires_grad_()
    y = make("drop_block", 0.99)(x)
    gone = (y == 0).flatten(1).all(1)
    assert gone.any() and not gone.all() and y.isfinite().all()
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.isfinite().all() and not gradient[gone].any()


def test_gamma_is_the_papers():
    # 0.1 * 14^2 / 7^2 / (14 - 7 + 1)^2: 0.1 dropped of a 14 x 14 map of ResNet-50.
    assert gamma_of(0.1, (14, 14)) == pytest.approx(0.00625)

    y = blocks(0.3, size=1)(torch.ones(50, 1, 30, 30))
    assert (y == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
