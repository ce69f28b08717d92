"""Rows with gaps: what a normal distribution of them says of the last variable."""

import numpy as np
import pytest
from scipy import stats

from droptune.multinormal import fitted

NAN = float("nan")


def drawn(seed, count, names=4):
    """Return rows of a normal distribution whose variables vary together, and it."""
    draws = np.random.default_rng(seed)
    mixing = draws.normal(0, 1, (names, names))
    centre = draws.normal(5, 3, names)
    return stats.multivariate_normal(centre, mixing @ mixing.T).rvs(count, random_state=draws)


def test_with_many_whole_rows_it_is_regression():
    rows = drawn(0, 3000)
    facts = np.c_[np.ones(len(rows) - 1), rows[1:, :-1]]
    slopes, left, *_ = np.linalg.lstsq(facts, rows[1:, -1], rcond=None)
    normal = fitted(rows[1:], np.eye(4), 1e-6)
    place, scale, freedom = normal.predicted(np.array([*rows[0, :-1], NAN]), len(rows) - 1)
    assert place == pytest.approx([1, *rows[0, :-1]] @ slopes, rel=1e-4)
    assert scale == pytest.approx(np.sqrt(left[0] / len(facts)), rel=0.01)
    assert freedom == pytest.approx(len(rows) - 1)


def test_rows_that_are_cut_short_by_what_is_seen_do_not_mislead():
    rows = drawn(1, 4000, 3)
    cut = rows.copy()
    cut[rows[:, 0] > np.median(rows[:, 0]), 1:] = NAN  # missing for what is there
    normal = fitted(cut, np.eye(3), 1e-6)
    mean = (normal.centre + normal.scale * normal.mean)[2]
    naive = abs(np.nanmean(cut[:, 2]) - rows[:, 2].mean())
    assert naive > 0.3 * rows[:, 2].std(), "it matters"
    assert abs(mean - rows[:, 2].mean()) < naive / 4
    spread = normal.scale[2] * np.sqrt(normal.covariance[2, 2])
    assert spread == pytest.approx(rows[:, 2].std(), rel=0.05)


def test_the_prior_counts_as_so_many_rows_and_less_the_more_there_are():
    prior = np.array([[1.0, 0.9], [0.9, 1.0]])
    draws = np.random.default_rng(0)
    slopes = []
    for count in (6, 60, 6000):
        normal = fitted(draws.normal(0, 1, (count, 2)), prior, 6.0)
        slopes.append(normal.covariance[0, 1] / normal.covariance[0, 0])
    assert slopes[0] > slopes[1] > slopes[2]
    assert slopes[2] == pytest.approx(0, abs=0.05)


def test_its_spread_is_honest_with_few_rows():
    inside, draws = [], np.random.default_rng(2)
    for _ in range(400):
        facts = draws.normal(0, 1, (13, 3))
        rows = np.c_[facts, facts @ draws.normal(0, 0.5, 3) + draws.normal(0, 1, 13)]
        normal = fitted(rows[1:], np.eye(4), 2.0)
        place, scale, freedom = normal.predicted(np.array([*rows[0, :-1], NAN]), 12)
        inside.append(abs(rows[0, -1] - place) < scale * stats.t.ppf(0.9, freedom))
    assert 0.74 < np.mean(inside) < 0.86


def test_a_row_unlike_the_others_is_predicted_with_less_certainty():
    rows = drawn(3, 20)
    normal, near, far = fitted(rows, np.eye(4), 2.0), rows.mean(0), rows.mean(0) + 20
    near[-1] = far[-1] = NAN
    assert normal.predicted(far, 20)[1] > 2 * normal.predicted(near, 20)[1]


@pytest.mark.parametrize("value", [0.0, 1e-9, -3e9])
def test_variables_that_are_constant_or_unknown_are_no_trouble(value):
    rows = np.array([[value, NAN, 1.0], [value, NAN, 2.0], [value, NAN, NAN], [value, NAN, 1.5]])
    place, scale, _ = fitted(rows, np.eye(3), 2.0).predicted(np.array([value, NAN, NAN]), 3)
    assert place == pytest.approx(1.5)
    assert 0 < scale < 5
