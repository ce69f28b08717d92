"""droptune/kinds/zoneout.py: shares of updates."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from droptune.kinds.standard import kept
from tests.kinds.making import batch, make, suited


@given(rate=st.floats(0, 0.99), seed=st.integers(0, 1000))
def test_an_update_takes_place_as_it_is_or_not_at_all(rate, seed):
    x = suited("zoneout")
    uniform = make("zoneout", seed=seed).stream.uniform(x.shape, x.device)
    assert torch.equal(make("zoneout", rate, seed)(x), x * kept(uniform, torch.tensor(rate)))


def test_each_step_and_each_unit_of_each_sample_is_drawn_by_itself():
    stayed = make("zoneout", 0.5)(torch.ones(30, 40, 50)) == 0
    for axis, size in enumerate((30, 40, 50)):
        assert stayed.transpose(0, axis).flatten(1).unique(dim=0).shape[0] == size


@given(rate=st.floats(0, 0.99))
def test_eval_is_the_mean_over_masks_and_draws_nothing(rate):
    x = batch(2, 3, 4)
    kind, fresh = make("zoneout", rate).eval(), make("zoneout")
    torch.testing.assert_close(kind(x), x * (1 - rate))
    assert torch.equal(kind.stream.uniform((3,), x.device), fresh.stream.uniform((3,), x.device))


def test_eval_at_rate_0_is_exactly_the_identity():
    assert torch.equal(make("zoneout", 0.0).eval()(suited("zoneout")), suited("zoneout"))
