"""droptune/kinds/pattern.py: grids of tiles, turned, sheared and moved at random."""

from math import cos, radians, sin

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from droptune.errors import PlanError
from droptune.kinds import Pattern
from tests.kinds.making import batch, started


def pattern(rate: float = 0.5, seed: int = 0, **settings) -> Pattern:
    """Return a pattern; its arithmetic holds beyond the settings that a plan may name."""
    kind = started(Pattern("conv", rate), seed)
    for name, value in settings.items():
        kind.get_buffer(name).fill_(value)
    return kind


def canvas(side: int, **settings) -> Tensor:
    """Return where tiles lie on the canvas of a square map."""
    return pattern(**settings).canvas(side, side, torch.device("cpu"))


def grid(side: int, tile: int, gap: int, repeat: int) -> Tensor:
    """Return the straight grid in the middle of a canvas, painted tile by tile."""
    painted = torch.zeros(2 * side, 2 * side)
    first = side - (repeat * (tile + gap) - gap + 1) // 2
    starts = [first + i * (tile + gap) for i in range(repeat)]
    for y in starts:
        for x in starts:
            painted[max(y, 0) : max(y + tile, 0), max(x, 0) : max(x + tile, 0)] = 1
    return painted


def warped(
    straight: Tensor, rotate: float, shear_x: float, shear_y: float, shift: tuple[float, float]
) -> Tensor:
    """Shear and turn a canvas by torch's own sampling; `shift` moves what is sampled, in pixels."""
    a = radians(rotate)
    turn = torch.tensor([[cos(a), -sin(a)], [sin(a), cos(a)]], dtype=torch.float64)
    down = torch.tensor([[1, 0], [shear_y, 1]], dtype=torch.float64)
    aside = torch.tensor([[1, shear_x], [0, 1]], dtype=torch.float64)
    back = torch.linalg.inv(turn @ down @ aside)
    theta = torch.cat([back, torch.tensor(shift).view(2, 1) * 2 / len(straight)], 1)[None]
    image = straight.double()[None, None]
    points = F.affine_grid(theta, list(image.shape), align_corners=False)
    return F.grid_sample(image, points, "nearest", "zeros", align_corners=False)[0, 0]


@given(
    tile=st.integers(1, 6), gap=st.integers(0, 6), repeat=st.integers(1, 5), side=st.integers(4, 20)
)
def test_the_straight_grid_is_the_painted_one(tile, gap, repeat, side):
    found = canvas(side, size=tile / side, stride=gap / side, repeat=repeat)
    assert torch.equal(found, grid(side, tile, gap, repeat))


@given(
    rotate=st.floats(-180, 180),
    shear_x=st.floats(-0.5, 0.5),
    shear_y=st.floats(-0.5, 0.5),
    tile=st.sampled_from([4, 6, 8]),
)
def test_a_grid_is_sheared_and_turned_as_torch_samples_it(rotate, shear_x, shear_y, tile):
    settings = {"size": tile / 24, "stride": 6 / 24, "repeat": 3}
    found = canvas(24, **settings, rotate=rotate, shear_x=shear_x, shear_y=shear_y)
    straight, near = grid(24, tile, 6, 3), 0.01
    moved = [(near, near), (near, -near), (-near, near), (-near, -near)]
    seen = torch.stack([warped(straight, rotate, shear_x, shear_y, shift) for shift in moved])
    # Pixels whose middle falls on a line may go either way.
    assert ((seen.amin(0) <= found) & (found <= seen.amax(0))).all()
    assert found.any()


def test_rotate_turns_clockwise_and_shears_push_right_and_down():
    bar = {"size": 0.5, "stride": 0.0, "repeat": 1}
    straight = canvas(16, **bar).nonzero() - 15.5  # rows of (down, side) from the middle
    down, side = straight.T
    sheared_down, sheared_side = (canvas(16, **bar, shear_x=1.0).nonzero() - 15.5).T
    assert (down * side).sum() == 0 < (sheared_down * sheared_side).sum()
    assert sheared_down.max() == down.max() and sheared_side.max() > side.max()
    lower, aside = (canvas(16, **bar, shear_y=1.0).nonzero() - 15.5).T
    assert lower.max() > down.max() and aside.max() == side.max()
    # Sheared right, the long diagonal falls to the right; turned by 90 degrees it rises.
    turned_down, turned_side = (canvas(16, **bar, shear_x=1.0, rotate=90).nonzero() - 15.5).T
    assert (turned_down * turned_side).sum() < 0
    turned = canvas(16, **bar, shear_x=1.0, rotate=20).nonzero() - 15.5
    assert turned[:, 0].max() > sheared_down.max()


@given(
    rate=st.floats(0, 0.99),
    seed=st.integers(0, 1000),
    share=st.booleans(),
    rotate=st.sampled_from([0.0, 30.0, 75.0]),
    sides=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_a_sample_keeps_its_mean_or_is_left_as_it_is(rate, seed, share, rotate, sides):
    x = torch.ones(8, 3, *sides)
    y = pattern(rate, seed, share_c=share, rotate=rotate)(x)
    torch.testing.assert_close(y.mean((2, 3)), torch.ones(8, 3))
    for sample in y:
        if share:
            assert torch.equal(sample, sample[:1].expand_as(sample))
        for plane in sample:
            values = plane.unique()
            assert len(values) == 1 or (len(values) == 2 and values[0] == 0)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("share", [True, False])
def test_the_rate_is_the_part_of_the_samples_with_a_pattern(rate, share):
    y = pattern(rate, share_c=share)(torch.ones(5000, 2, 8, 8))
    assert (y == 0).flatten(1).any(1).float().mean().item() == pytest.approx(rate, abs=0.02)


@pytest.mark.parametrize("side", [4, 8, 16, 28, 32])
def test_by_default_a_pattern_takes_about_a_quarter_everywhere(side):
    y = pattern(0.999)(torch.ones(4000, 1, side, side))
    where = (y == 0).float().mean((0, 1))
    assert where.mean().item() == pytest.approx(0.25, abs=0.04)
    assert 0.14 < where.min() and where.max() < 0.38


def test_windows_lie_at_every_place_of_the_canvas_alike():
    # One tile in the middle of the canvas: where it shows tells the window.
    y = pattern(0.999, size=1 / 4, stride=0, repeat=1)(torch.ones(20_000, 1, 4, 9))
    seen = (y == 0).float().mean((0, 1))
    assert seen.sum() > 0.3
    torch.testing.assert_close(seen, torch.full((4, 9), seen.mean()), rtol=0.15, atol=0)


def test_channels_share_a_window_or_have_their_own():
    x = torch.ones(50, 6, 8, 8)
    shared, own = ((pattern(0.9, share_c=share)(x) == 0).flatten(2) for share in (True, False))
    assert torch.equal(shared, shared[:, :1].expand_as(shared))
    hit = own.any(2)
    assert torch.equal(hit.all(1), hit.any(1))  # the choice is the sample's
    assert all(len(sample.unique(dim=0)) > 1 for sample in own[hit.all(1)])


@pytest.mark.parametrize(
    "settings",
    [{"size": 0}, {"size": 0, "stride": 0}, {"repeat": 0}, {"size": 1.0, "stride": 0, "repeat": 4}],
)
def test_a_pattern_of_nothing_or_of_everything_is_the_identity(settings):
    x = batch(20, 3, 6, 6)
    assert torch.equal(pattern(0.9, **settings)(x), x)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"size": 0.6}, "^size 0.6 of kind 'pattern' is not allowed; 0.05 to 0.5 is$"),
        ({"repeat": 2.5}, "^repeat 2.5 of kind 'pattern' is not allowed; whole, 1 to 8 is$"),
        ({"strid": 0.1}, "^unknown setting 'strid' of kind 'pattern'; nearest: stride"),
    ],
)
def test_settings_that_are_none_are_refused(wrong, said):
    with pytest.raises(PlanError, match=said):
        Pattern("conv", 0.5, **wrong)


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 1000),
    rotate=st.sampled_from([0.0, 30.0]),
)
def test_each_channel_sees_the_canvas_through_the_window_that_was_drawn(
    height, width, seed, rotate
):
    kind = pattern(0.999, seed, share_c=0, rotate=rotate)
    y = kind(torch.ones(3, 4, height, width))
    again = pattern(0.999, seed).stream
    again.uniform((3, 1, 1, 1), y.device)
    down, side = again.uniform((2, 3, 4), y.device)
    painted = kind.canvas(height, width, y.device)
    for n in range(3):
        for c in range(4):
            top, left = int(down[n, c] * (height + 1)), int(side[n, c] * (width + 1))
            window = painted[top : top + height, left : left + width]
            lost = bool(window.all()) or bool((y[n] == 1).all())
            assert lost or torch.equal(y[n, c] == 0, window == 1)
