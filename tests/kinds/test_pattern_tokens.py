"""droptune/kinds/pattern_tokens.py: groups of tokens that are hit together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from droptune.kinds import PatternTokens
from droptune.kinds.standard import mask
from tests.kinds.making import batch, started

flags = st.integers(0, 1)


def tokens(rate: float = 0.5, seed: int = 0, **settings) -> PatternTokens:
    return started(PatternTokens("layer", rate, **settings), seed)


def by_hand(x: Tensor, rate: float, seed: int, size, stride, share_t, share_c) -> Tensor:
    """Do what the docstring says, element by element, from the same noise."""
    stream, period = tokens(seed=seed).stream, size + stride
    places = stream.uniform((len(x), 1), x.device) * period
    noise = mask(stream.uniform(x.shape, x.device), torch.tensor(rate))
    y = x.clone()
    for n in range(x.shape[0]):
        for token in range(x.shape[1]):
            group, within = divmod(token + int(places[n, 0]), period)
            for channel in range(x.shape[2]):
                if within < size:
                    source = noise[n, group if share_t else token]
                    y[n, token, channel] *= source[0 if share_c else channel]
    return y


@given(
    rate=st.floats(0, 0.99),
    seed=st.integers(0, 1000),
    size=st.integers(1, 5),
    stride=st.integers(0, 4),
    share_t=flags,
    share_c=flags,
    length=st.integers(1, 12),
)
def test_it_is_the_formula_element_by_element(rate, seed, size, stride, share_t, share_c, length):
    settings = {"size": size, "stride": stride, "share_t": share_t, "share_c": share_c}
    x = batch(2, length, 3)
    torch.testing.assert_close(
        tokens(rate, seed, **settings)(x), by_hand(x, rate, seed, **settings)
    )


@pytest.mark.parametrize("share_t", [0, 1])
@pytest.mark.parametrize("share_c", [0, 1])
@pytest.mark.parametrize(("size", "stride"), [(1, 0), (3, 0), (2, 6), (16, 16)])
def test_the_mean_of_each_element_stays_and_groups_are_dropped_at_the_rate(
    size, stride, share_t, share_c
):
    kind = tokens(0.3, size=size, stride=stride, share_t=share_t, share_c=share_c)
    y = kind(torch.ones(20_000, 7, 2))
    torch.testing.assert_close(y.mean(0), torch.ones(7, 2), rtol=0, atol=0.03)
    hit = size / (size + stride)
    torch.testing.assert_close(
        (y == 0).float().mean(0), torch.full((7, 2), 0.3 * hit), rtol=0, atol=0.02
    )
    torch.testing.assert_close((y != 1).float().mean(0), torch.full((7, 2), hit), rtol=0, atol=0.02)


def test_what_is_shared_goes_as_a_whole_and_what_is_not_does_not():
    def drawn(**settings):
        y = tokens(0.5, size=4, stride=0, **settings)(torch.ones(200, 16, 6))
        same_t = (y[:, 1:] == y[:, :-1]).float().mean().item()
        return same_t, (y == y[..., :1]).all(2).float().mean().item()

    shared_t, shared_c = drawn(share_t=1, share_c=1)
    # Three of four neighbours are of one group, the fourth pair agrees by chance.
    assert shared_t == pytest.approx(0.875, abs=0.02) and shared_c == 1
    own_t, own_c = drawn(share_t=0, share_c=0)
    assert own_t == pytest.approx(0.5, abs=0.02) and own_c == pytest.approx(2**-5, abs=0.02)
    assert drawn(share_t=1, share_c=0)[1] < 0.1 and drawn(share_t=0, share_c=1)[0] < 0.6


@given(size=st.integers(1, 16), stride=st.integers(0, 16), length=st.integers(1, 60))
def test_a_sequence_of_any_length_has_groups_of_the_size_with_the_gap_between(size, stride, length):
    y = tokens(0.999, size=size, stride=stride)(torch.ones(3, length, 1))[..., 0]
    for sample in (y != 1).tolist():
        runs = "".join("x" if hit else "." for hit in sample)
        inner = runs.strip(".").split("." * stride) if stride else [runs]
        assert all(len(run) == size for run in inner[1:-1]) or not stride
        assert stride or "." not in runs
        assert "x" in runs or length <= stride
