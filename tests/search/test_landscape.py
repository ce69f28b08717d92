"""droptune/landscape.py and droptune/candidates.py: which plans are alike, and which are drawn."""

import numpy as np
import pytest
from optuna.trial import FixedTrial

from droptune import Plan, Space
from droptune.candidates import Candidates
from droptune.landscape import Landscape, amplitude, rate
from droptune.plan import Entry
from tests.search.test_refining import SITES

SPACE = Space(SITES, "auto")


def parameters(space):
    probe = FixedTrial(space.encode(Plan.none()))
    space.suggest(probe)
    return probe.distributions


def at(space, *rates):
    """Return the points of plans, each given by its rates at all sites."""
    plans = [
        Plan({s.name: Entry("standard", r) for s, r in zip(SITES, one, strict=True) if r})
        for one in rates
    ]
    points = Landscape(space, parameters(space)).points([space.encode(plan) for plan in plans])
    return [np.linalg.norm(point - points[0]) for point in points[1:]]


def test_plans_of_another_mean_are_far_and_plans_that_differ_at_a_site_are_near():
    base, count = [0.2] * len(SITES), len(SITES)
    here, there = base.copy(), base.copy()
    here[4] = 0.4
    there[4], there[9] = 0.4, 0.0
    site, traded, everywhere = at(Space(SITES, "site"), base, here, there, [0.4] * count)
    assert site < traded < everywhere
    assert 4 * site < everywhere
    assert at(SPACE, base, [0.4] * count) == pytest.approx([everywhere], rel=0.05)


def test_a_little_dropout_is_further_from_none_than_from_a_little_more():
    none, little, more = [0.0] * len(SITES), [0.05] * len(SITES), [0.1] * len(SITES)
    assert at(SPACE, little, none)[0] > 1.5 * at(SPACE, little, more)[0]
    assert rate(amplitude(np.array([0.0, 0.3, 0.6]))) == pytest.approx([0.0, 0.3, 0.6])
    # The factor of inverted dropout: 0, or 1 / (1 - rate).
    assert amplitude(np.array(0.3)) == pytest.approx(np.std([0] * 3 + [1 / 0.7] * 7))


def test_a_gate_that_is_off_is_a_rate_of_none_and_a_kind_counts():
    space = Space(SITES, "auto", kinds=("standard", "gaussian"))
    on = space.encode(Plan({s.name: Entry("standard", 0.3) for s in SITES}))
    off, other = {**on, "dropout": "off"}, {**on, "kind.hidden": "gaussian"}
    points = Landscape(space, parameters(space)).points([off, space.encode(Plan.none()), on, other])
    assert points[0] == pytest.approx(points[1])
    assert points[2] != pytest.approx(points[3])


def test_candidates_are_coarse_anywhere_or_near_the_best_and_can_be_suggested():
    space = Space(SITES, "auto", kinds=("standard", "gaussian"), tune={"lr": 1e-3})
    known = {name: d for name, d in parameters(space).items() if name != "dropout"}
    finer = [name for names in space.finer.values() for name in names]
    best = space.encode(Plan({s.name: Entry("standard", 0.3) for s in SITES}))
    drawn = Candidates(known, finer).draw(best, np.random.default_rng(0))
    for one in drawn:
        assert one.keys() == known.keys()
        inner = {name: known[name].to_internal_repr(value) for name, value in one.items()}
        assert all(known[name]._contains(value) for name, value in inner.items())
    coarse = [one for one in drawn if not any(one[name] for name in finer)]
    assert len(drawn) / 2 < len(coarse) < len(drawn)
    fine = [one for one in drawn if one not in coarse]  # of those around the best alone
    assert np.median([one["lr"] for one in fine]) == pytest.approx(best["lr"], rel=0.1)
    assert {one["kind.hidden"] for one in fine} == {"standard", "gaussian"}
    highs = [one["rate.hidden"] for one in drawn]
    assert min(highs) < 0.05 and max(highs) > 0.55 and 0.25 < np.median(highs) < 0.35
    single = [one for one in drawn if sum(one[name] != best[name] for name in known) == 1]
    assert single, "one parameter of its own"
