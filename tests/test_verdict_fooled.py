"""Whole confirmations built to fool the verdict: promise 6 by simulation, with fixed seeds.

Each simulated study has seeds that shift all arms of a block, noise of each run, a selection
stage and blocks that stop by the rules. In 1,500 studies a true rate of 2.5 % stays below 4.1 %
in 99.9 of 100 repetitions.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from droptune.verdict import Rules, judge

RULES = Rules("val_loss", "minimize", planned=10)
STUDIES = 1500


def draw(rng, kind, size):
    """Return noise of one run each; the difference of two has a standard deviation of 1."""
    if kind == "heavy":  # t with 2.5 degrees of freedom
        return rng.standard_t(2.5, size=size) / math.sqrt(2 * 5)
    if kind == "one bad seed":  # one run in 20 goes astray
        return rng.normal(size=size) / math.sqrt(2) + 8 * (rng.random(size) < 0.05)
    if kind == "coarse":  # an accuracy on few samples
        return np.round(rng.normal(size=size) / math.sqrt(2))
    return rng.normal(size=size) / math.sqrt(2)


def confirm(rng, finalists=3, effect=0.0, kind="normal", budgets=(10,), rules=RULES, given=False):
    """Return the verdict, the number of blocks judged, and the naive and the honest mean.

    Args:
        rng: numpy's.
        finalists: their number; all have the same effect.
        effect: in standard deviations of a paired difference.
        kind: of noise.
        budgets: in blocks; raised to the next one while the verdict is not settled.
        rules: of the verdict.
        given: whether there is a model as given, without an effect.
    """
    names = [f"finalist {i}" for i in range(finalists)]
    selection = draw(rng, kind, (finalists, 2)).mean(1)
    chosen = names[int(np.argmin(selection))]
    arms = ["no dropout", chosen] + ["as given"] * given
    values = {name: [] for name in arms}
    for budget in budgets:
        while len(values["no dropout"]) < budget:
            seed = 50 + 5 * rng.normal()  # what the seed does to every arm
            for name in arms:
                own = float(draw(rng, kind, ()))
                values[name].append(seed + own - effect * (name == chosen))
            found = judge(values, rules, chosen)
            if found.settled:
                break
        if found.settled:
            break
    naive = float(selection.min() - draw(rng, kind, 2).mean()) - effect
    return found.verdict, len(values["no dropout"]), naive, found.chosen.mean


def rates(studies=STUDIES, **options):
    rng = np.random.default_rng(sum(map(ord, str(sorted(options.items())))))
    found = [confirm(rng, **options) for _ in range(studies)]
    return {
        "helps": np.mean([verdict == "helps" for verdict, *_ in found]),
        "hurts": np.mean([verdict == "hurts" for verdict, *_ in found]),
        "blocks": np.mean([blocks for _, blocks, *_ in found]),
        "naive": np.mean([naive for *_, naive, _ in found]),
        "honest": np.mean([honest for *_, honest in found]),
    }


@pytest.mark.parametrize("kind", ["normal", "heavy", "one bad seed", "coarse"])
def test_without_an_effect_helps_comes_out_in_at_most_2_and_a_half_percent(kind):
    found = rates(kind=kind, given=True)
    assert found["helps"] <= 0.041
    assert found["hurts"] <= 0.041


def test_a_budget_raised_many_times_over_fools_nobody():
    budgets = (3, 4, 6, 8, 10, 12, 15, 20, 30, 40)
    rules = Rules("val_loss", "minimize", planned=3, margin=1e-9)
    assert rates(budgets=budgets, rules=rules, studies=1000)["helps"] <= 0.045


def test_the_luckiest_of_many_finalists_that_are_noise_is_not_believed():
    found = rates(finalists=20)
    assert found["helps"] <= 0.041
    assert found["naive"] < -0.7, "the search sees a winner"
    assert abs(found["honest"]) < 0.1, "the blocks do not"


def test_an_effect_of_one_standard_deviation_is_found_by_most_and_of_two_by_nearly_all():
    one, two = rates(effect=1.0, studies=400), rates(effect=2.0, studies=400)
    assert one["helps"] > 0.68
    assert two["helps"] > 0.99
    assert two["blocks"] < 7 < one["blocks"] < 10


def test_a_tiny_effect_is_not_claimed_for_the_number_of_looks():
    budgets = tuple(range(10, 60, 5))
    assert rates(effect=0.02, budgets=budgets, studies=300)["helps"] <= 0.065


def test_what_is_the_same_for_all_arms_and_what_it_is_measured_in_change_nothing():
    values = {"no dropout": [5.0, 7.0, 6.0, 9.0], "finalist 1": [4.0, 6.5, 5.2, 8.1]}
    plain = judge(values, RULES, "finalist 1")
    moved = {
        name: [v + s for v, s in zip(vs, (0, 3, 1, 8), strict=True)] for name, vs in values.items()
    }
    assert judge(moved, RULES, "finalist 1").chosen.t == pytest.approx(plain.chosen.t)


@given(st.lists(st.tuples(*[st.floats(0.5, 2.0)] * 3), min_size=3, max_size=12), st.floats(0.1, 50))
@settings(deadline=None, max_examples=60)
def test_symmetry_scale_and_order(blocks, scale):
    columns = dict(
        zip(("no dropout", "finalist 1", "as given"), zip(*blocks, strict=True), strict=True)
    )
    found = judge(columns, RULES, "finalist 1")
    upside_down = {name: [-v for v in vs] for name, vs in columns.items()}
    mirrored = judge(upside_down, Rules("x", "maximize", 10), "finalist 1")
    assert (mirrored.verdict, mirrored.settled) == (found.verdict, found.settled)
    backwards = dict(reversed(columns.items()))
    assert judge(backwards, RULES, "finalist 1") == found
    grown = {name: [scale * v for v in vs] for name, vs in columns.items()}
    other = judge(grown, RULES, "finalist 1")
    if found.chosen.error:
        assert other.chosen.t == pytest.approx(found.chosen.t, rel=1e-6, abs=1e-6)
        swapped = {
            **columns,
            "no dropout": columns["finalist 1"],
            "finalist 1": columns["no dropout"],
        }
        assert judge(swapped, RULES, "finalist 1").chosen.mean == pytest.approx(-found.chosen.mean)
