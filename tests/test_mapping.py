"""A plan carried over to another model: by role and relative depth, and what is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from droptune import Plan, Term
from droptune.mapping import move, site_of
from droptune.plan import Entry
from droptune.sites import Site


def sites(role, count, layout="NF", prefix="fc", **more):
    return [
        Site(f"{prefix}{i}", f"{prefix}{i}", "output", role, layout, i, (9,), **more)
        for i in range(count)
    ]


def rates(moved):
    return {name: entry.rate for name, entry in moved.plan.items()}


@given(st.integers(1, 7), st.data())
def test_on_the_same_sites_a_plan_is_the_same(count, data):
    there = sites("hidden", count) + sites("conv", count, "NCHW", "conv")
    rate = st.sampled_from([0.0, 0.1, 0.5])
    plan = Plan(
        {s.name: Entry(s.default_kind, data.draw(rate), "early") for s in there},
        "r_drop",
        {"lr": 0.01},
    )
    moved = move(plan, there, there, terms=["r_drop"], tune=["lr"])
    assert moved.plan == plan and not moved.left


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [0.3]),
        (2, [0.1, 0.5]),
        (3, [0.1, 0.3, 0.5]),
        (9, [0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5]),
    ],
)
def test_a_rate_stands_at_the_nearest_relative_depth(count, expected):
    there = sites("hidden", 5)
    plan = Plan({f"fc{i}": ("standard", 0.1 + i / 10) for i in range(5)})
    moved = move(plan, there, sites("hidden", count, prefix="layer"))
    assert list(rates(moved).values()) == pytest.approx(expected)
    lost = 5 - len(set(expected))
    assert moved.left == ((f"{lost} of its hidden sites",) if lost else ())


def test_a_place_without_dropout_hands_on_that_it_has_none():
    there = sites("hidden", 3)
    moved = move(Plan({"fc2": ("standard", 0.4)}), there, sites("hidden", 6))
    assert list(moved.plan) == ["fc4", "fc5"]


def test_roles_are_not_mixed_and_what_has_no_counterpart_is_named():
    there = sites("hidden", 2) + sites("conv", 3, "NCHW", "conv")
    plan = Plan({s.name: (s.default_kind, 0.2) for s in there})
    moved = move(plan, there, sites("hidden", 2) + sites("head", 1, prefix="head"))
    assert list(moved.plan) == ["fc0", "fc1"]
    assert moved.left == ("3 of its conv sites",)


def test_a_kind_that_does_not_fit_gives_way_to_the_sites_own():
    there = sites("hidden", 1, "NCHW")
    plan = Plan({"fc0": Entry("drop_block", 0.3, "late", 0.5, {"size": 3})})
    assert plan["fc0"].settings, "this kind has settings"
    moved = move(plan, there, sites("hidden", 1))
    assert moved.plan == Plan({"fc0": Entry("standard", 0.3, "late", 0.5)})
    assert moved.left == ("drop_block at fc0, which takes standard",)


def test_places_inside_layers_keep_to_their_own():
    inside = [
        Site(f"rnn@{place}", "rnn", "inside", "recurrent", layout, 0, (9,))
        for place, layout in (("between", "NLS"), ("weights", "GS"))
    ]
    plan = Plan({"rnn@weights": ("weight_drop", 0.5)})
    assert move(plan, inside, inside[::-1]).plan == plan
    assert not move(plan, inside, inside[:1]).plan


def test_terms_and_training_come_along_where_they_are_wanted():
    there, here = sites("hidden", 2), sites("hidden", 3, prefix="layer")
    entries = {"fc0": ("standard", 0.2), "fc1": ("standard", 0.2)}
    plan = Plan(entries, Term("adversarial", site="fc0"), {"lr": 0.01, "weight_decay": 0.1})
    left = move(plan, there, here, tune=["lr"])
    assert left.plan.term is None and left.plan.training == {"lr": 0.01}
    assert left.left == ("adversarial, which is not among the terms here", "weight_decay 0.1")
    moved = move(plan, there, here, terms=["adversarial"], tune=["lr", "weight_decay"])
    assert moved.plan.term.site == "layer2" and not moved.left
    nowhere = sites("hidden", 2, "?")
    assert "no place" in str(move(plan, there, nowhere, terms=["adversarial"]).left)


def test_a_site_comes_back_from_its_row():
    site = Site("a.b", "a.b", "module", "conv", "NCHW", 4, (3, 5, 5), "standard", 0.1)
    assert site_of(site.to_json() | {"position": 4}) == site
