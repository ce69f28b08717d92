"""The boundary of the sequential t test, against plain t tests and against simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from droptune.sequential import (
    PLANNED,
    boundary,
    critical,
    first_look,
    p_value,
    spent,
    visible_effect,
)

STUDIES = 40_000


def statistics(draws: np.ndarray) -> np.ndarray:
    """Return the t statistic of the first n columns, n = 2, 3...; shape (studies, most - 1)."""
    n = np.arange(1, draws.shape[1] + 1)
    total, squares = draws.cumsum(1), (draws**2).cumsum(1)
    variance = (squares - total**2 / n)[:, 1:] / (n[1:] - 1)
    return total[:, 1:] / n[1:] / np.sqrt(variance / n[1:])


def crossings(planned: int, last: int, level: float, draws: np.ndarray) -> np.ndarray:
    """Return whether |t| is at its bar; shape (studies, looks)."""
    bars = boundary(last, planned, level)
    first = first_look(planned)
    found = np.abs(statistics(draws))[:, first - 2 :]
    return found >= np.array([bars[n] for n in range(first, last + 1)])


@pytest.mark.parametrize(("planned", "level"), [(2, 0.95), (3, 0.95), (8, 0.95), (10, 0.5)])
def test_the_level_is_spent_as_it_is_said_and_no_more(planned, level):
    last = 3 * planned
    draws = np.random.default_rng(planned).normal(size=(STUDIES, last))
    crossed = crossings(planned, last, level, draws)
    first = first_look(planned)
    for n in {first, planned, last}:
        share = (1 - level) * spent(n, planned)
        rate = crossed[:, : n - first + 1].any(1).mean()
        assert rate == pytest.approx(share, abs=4 * np.sqrt(share / STUDIES))


def test_a_look_too_many_would_be_seen():
    draws = np.random.default_rng(1).normal(size=(STUDIES, 16))
    found = np.abs(statistics(draws))[:, 1:]
    plain = stats.t.ppf(0.975, np.arange(2, 16))
    assert (found >= plain).any(1).mean() > 0.12, "plain t tests after each block"


@pytest.mark.parametrize("planned", [2, 3])
def test_a_single_look_is_a_plain_t_test(planned):
    assert critical(planned, planned, 0.95) == pytest.approx(
        stats.t.ppf(1 - 0.025 * PLANNED, planned - 1), rel=1e-6
    )


@given(st.integers(1, 30))
@settings(deadline=None, max_examples=30)
def test_the_level_is_never_overspent(planned):
    parts = [spent(n, planned) for n in range(1, 20 * planned)]
    assert parts == sorted(parts)
    assert 0 < parts[0] and parts[-1] < 1
    assert spent(planned, planned) == PLANNED


@given(
    st.integers(1, 12),
    st.integers(0, 20),
    st.floats(0.05, 12),
    st.sampled_from([0.8, 0.95, 0.99]),
)
@settings(deadline=None, max_examples=40)
def test_the_p_value_says_the_same_as_the_bar(planned, more, t, level):
    n = first_look(planned) + more
    bar, found = critical(n, planned, level), p_value(t, n, planned)
    if abs(t - bar) > 1e-3 * bar:
        assert (t >= bar) == (found <= 1 - level)
    assert found == p_value(-t, n, planned)
    assert found >= 2 * stats.t.sf(t, n - 1) * 0.99, "looking costs something"


def test_p_values_fall_with_t_and_have_a_floor():
    found = [p_value(t, 8, 8) for t in (0, 1, 2, 3, 5, 10, 1e9)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.9
    assert found[-1] == 1e-9


def test_bars_do_not_depend_on_how_far_one_looks():
    assert boundary(40, 8, 0.95)[9] == boundary(9, 8, 0.95)[9] == critical(9, 8, 0.95)
    assert list(boundary(5, 8, 0.95)) == [3, 4, 5]
    assert first_look(2) == first_look(1) == 2


def test_the_visible_effect_is_seen_in_four_of_five_studies():
    size = visible_effect(10, 10, 0.95)
    draws = size + np.random.default_rng(2).normal(size=(STUDIES, 10))
    last = statistics(draws)[:, -1] >= critical(10, 10, 0.95)
    assert last.mean() == pytest.approx(0.8, abs=0.01)
    assert visible_effect(40, 40, 0.95) < size / 1.9
