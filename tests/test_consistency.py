"""droptune/consistency.py: terms as values and as JSON, their weight over training, their place."""

import json
import math
import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from droptune import Plan, Term
from droptune.consistency import TERMS, Place, masked_place, term_of
from droptune.errors import PlanError
from droptune.sites import Site

ENTRIES = {"fc": ("standard", 0.2)}
terms = st.builds(
    Term,
    st.sampled_from(["r_drop", "fraternal"]),
    st.floats(1e-6, 1e3),
    st.floats(0, 0.3),
) | st.builds(
    Term,
    st.just("adversarial"),
    st.floats(1e-6, 1e3),
    st.floats(0, 0.3),
    st.floats(0.001, 0.999),
    st.none() | st.text(max_size=5),
)


# Values


@given(terms)
def test_a_plan_with_a_term_survives_json_and_pickle(term):
    plan = Plan(ENTRIES, term)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan and plan.term == term
    assert hash(Plan(ENTRIES, term.to_json())) == hash(plan)


@given(terms, terms)
def test_plans_differ_by_their_term(one, other):
    assert (Plan(ENTRIES, one) == Plan(ENTRIES, other)) == (one == other)
    assert Plan(ENTRIES, one) != Plan(ENTRIES)


def test_the_term_of_a_plan_cannot_be_changed():
    plan = Plan(ENTRIES, "r_drop")
    with pytest.raises(AttributeError):
        plan.term = None
    with pytest.raises(AttributeError):
        plan.term.weight = 2.0


def test_a_plan_without_a_term_is_stored_as_it_always_was():
    assert Plan(ENTRIES).to_json().keys() == {"version", "sites"}
    assert Plan(ENTRIES).term is None


def test_without_noise_a_term_has_nothing_to_compare_and_is_left_out():
    assert Plan({}, "r_drop") == Plan({"fc": ("standard", 0.0)}, "adversarial") == Plan.none()
    assert hash(Plan({}, "r_drop")) == hash(Plan.none())


def test_every_term_has_numbers_of_its_own():
    for name, own in TERMS.items():
        term = Term(name)
        assert (term.weight, term.ramp, term.flips) == (own.weight, own.ramp, own.flips)
        assert own.low <= own.weight <= own.high


def test_a_term_reads_well():
    assert str(Plan(ENTRIES, Term("r_drop", 0.5))) == "fc: standard 0.2 + r_drop 0.5"
    adversarial = Term("adversarial", 1, 0.2, 0.05, "fc")
    assert str(adversarial) == "adversarial 1 ramp 0.2 flips 0.05 at fc"
    assert term_of({"name": "fraternal"}) == term_of("fraternal") == Term("fraternal")


# Over training


@given(terms, st.floats(0, 1))
def test_the_weight_rises_over_the_ramp_and_stays(term, progress):
    over = min(progress / term.ramp, 1) if term.ramp else 1
    assert term.at(progress) == pytest.approx(term.weight * math.exp(-5 * (1 - over) ** 2))
    assert term.at(1.0) == term.weight
    assert term.at(progress / 2) <= term.at(progress)


# Where masks act


def site(name, layout, shape, role="hidden"):
    return Site(name, name, "output", role, layout, 0, shape)


def test_masks_act_at_the_last_inner_site_whose_units_are_known():
    image = site("@input", "NCHW", (3, 8, 8), "input")
    hidden, head = site("a", "NF", (5,)), site("b", "NF", (7,), "head")
    weights = site("c@attention", "NHLL", (2, 4, 4), "attention")
    assert masked_place([image, hidden, head, weights]) == Place("b", (7,))
    assert masked_place([image, weights]) == Place("@input", (3, 1, 1))
    assert masked_place([site("rows", "NLF", (9, 4))]) == Place("rows", (1, 4))
    assert masked_place([weights, site("odd", "N???", (2, 3, 4))]) is None
    matrices = replace(site("rnn@weights", "GS", (8, 2), "recurrent"), calls=4)
    assert masked_place([matrices]) == Place("rnn@weights", (4, 8, 2), by_sample=False)


# Errors


@pytest.mark.parametrize(
    ("given_with", "message"),
    [
        (("rdrop",), "^unknown term 'rdrop'; nearest: r_drop"),
        ((["r_drop"],), r"^unknown term \['r_drop'\]"),
        (("r_drop", 0), "^weight 0 of term r_drop: give a number above 0$"),
        (("r_drop", math.inf), "^weight inf of term r_drop"),
        (("fraternal", "1"), "^weight '1' of term fraternal"),
        (("fraternal", True), "^weight True of term fraternal"),
        (("fraternal", 1, 0.31), "^ramp 0.31 of term fraternal: give a number from 0 to 0.3$"),
        (("r_drop", 1, math.nan), "^ramp nan of term r_drop"),
        (("adversarial", 1, 0, 1), "^flips 1 of term adversarial: give a number between 0 and 1$"),
        (("adversarial", 1, 0, 0.1, 3), "^site 3 of term adversarial: give a site's name$"),
        (("r_drop", 1, 0, 0.1), "^term r_drop has no flips and no site; only adversarial does$"),
        (("r_drop", 1, 0, None, "fc"), "^term r_drop has no flips and no site"),
    ],
)
def test_what_is_no_term_is_refused_in_one_line(given_with, message):
    with pytest.raises(PlanError, match=message):
        Term(*given_with)


@pytest.mark.parametrize("value", [3, ["r_drop"], {"weight": 1}, {"name": "r_drop", "alpha": 1}])
def test_a_plan_says_what_a_term_is(value):
    with pytest.raises(PlanError, match=r"is no term; give its name or Term\(name, weight\)"):
        Plan(ENTRIES, value)
