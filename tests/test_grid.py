"""droptune/grid.py: a few values that stand for a parameter."""

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from droptune.grid import grid_points

bounds = st.tuples(st.integers(1, 200), st.integers(1, 50), st.integers(-50, 50))


@given(bounds=bounds, most=st.integers(2, 30))
def test_values_of_a_stepped_float_lie_on_its_steps(bounds, most):
    steps, step, low = bounds[0], bounds[1] / 100, bounds[2] / 100
    high = round(low + steps * step, 6)
    points = grid_points(FloatDistribution(low, high, step=step), most)
    assert len(points) == min(most, steps + 1) == len(set(points))
    assert points[0] == low and points[-1] == pytest.approx(high)
    for point in points:
        trial = optuna.trial.FixedTrial({"x": point})  # warns, and fails here, outside of them
        assert trial.suggest_float("x", low, high, step=step) == point and type(point) is float


def test_few_values_are_all_there_and_many_are_thinned_out_with_both_ends():
    assert grid_points(CategoricalDistribution(list("abcdef")), 3) == list("abcdef")
    assert grid_points(IntDistribution(1, 9, step=2), 20) == [1, 3, 5, 7, 9]
    assert grid_points(IntDistribution(0, 100), 3) == [0, 50, 100]
    assert grid_points(IntDistribution(4, 4), 3) == [4]
    assert grid_points(FloatDistribution(0, 1), 5) == [0, 0.25, 0.5, 0.75, 1]
    assert grid_points(FloatDistribution(1e-4, 1, log=True), 3) == pytest.approx([1e-4, 1e-2, 1])
