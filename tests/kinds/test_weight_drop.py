"""droptune/kinds/weight_drop.py: single weights of a matrix."""

import torch

from droptune.kinds.coarse import kept_share
from tests.kinds.making import make, many


def test_weights_are_dropped_one_by_one_and_the_others_scaled():
    weights = many("weight_drop")
    y = make("weight_drop", 0.3)(weights)
    gone = y == 0
    assert not gone.all(0).any() and not gone.all(1).any() and gone.any()
    keep = kept_share(torch.tensor(0.3))
    torch.testing.assert_close(y[~gone], (weights / keep)[~gone])


def test_a_weight_that_is_dropped_has_no_gradient():
    weights = many("weight_drop").requires_grad_()
    y = make("weight_drop", 0.3)(weights)
    (gradient,) = torch.autograd.grad(y.sum(), weights)
    assert torch.equal(gradient == 0, y == 0)
