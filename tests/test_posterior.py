"""droptune/posterior.py: what results say of plans not tried."""

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor

from droptune.posterior import Posterior


def some(count=40, seed=0):
    """Return points, and results around a bowl."""
    draw = np.random.default_rng(seed)
    points = draw.random((count, 2))
    return points, ((points - 0.4) ** 2).sum(1) + 0.05 * draw.standard_normal(count)


def test_what_was_learnt_serves_for_more_results_without_a_look_at_the_likelihood(monkeypatch):
    points, values = some()
    first = Posterior(points, values)
    monkeypatch.setattr(GaussianProcessRegressor, "log_marginal_likelihood", _refuse)
    again = Posterior(points, values, learnt=first.learnt)
    assert again.mean(points) == pytest.approx(first.mean(points))
    assert again.noise == pytest.approx(first.noise)
    fewer = Posterior(points[:20], values[:20], learnt=first.learnt)
    assert fewer.learnt.kernel == first.learnt.kernel
    assert fewer.mean(points) != pytest.approx(first.mean(points))


_LIKELIHOOD = GaussianProcessRegressor.log_marginal_likelihood


def _refuse(self, theta=None, eval_gradient=False, clone_kernel=True):
    assert not eval_gradient, "that is a step of a search"
    return _LIKELIHOOD(self, theta, clone_kernel=clone_kernel)


def test_draws_are_around_the_mean_and_without_noise():
    points, values = some()
    model = Posterior(points, values)
    drawn = model.paths(points, 4000, np.random.default_rng(0))
    assert drawn.mean(0) == pytest.approx(model.mean(points), abs=0.01)
    assert drawn.std(0).max() < model.noise
    twice = model.paths(np.vstack([points, points]), 1, np.random.default_rng(0))[0]
    assert twice[:40] == pytest.approx(twice[40:], abs=0.02), "a plan twice is one plan"


def test_the_bound_is_the_mean_where_much_is_known_and_high_where_little_is():
    points, values = some(80)
    near, far = points[:1], np.array([[3.0, 3.0]])
    model = Posterior(points, values)
    drawn = model.paths(near, 4000, np.random.default_rng(0))
    gap = model.bound(near) - model.mean(near)
    assert gap[0] == pytest.approx(drawn.std(), rel=0.1)
    assert (model.bound(far) - model.mean(far))[0] > 5 * gap[0]
    assert model.bound(near, 0.0) == pytest.approx(model.mean(near))
