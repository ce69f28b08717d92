"""The verdict: what may be claimed from paired blocks, and how often it is wrong."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from droptune import sequential
from droptune.errors import StudyError
from droptune.pairs import paired_difference
from droptune.verdict import Rules, decide

CONTROL = [0.50, 0.52, 0.49, 0.51, 0.53, 0.50, 0.48, 0.52]
NOISE = [0.001, -0.002, 0.003, 0.0, -0.001, 0.002, -0.003, 0.001]


def arms(shift, given=None):
    """Return a finalist that lies `shift` from the control, with some noise."""
    values = {"no dropout": CONTROL}
    values["finalist 1"] = [c + shift + e for c, e in zip(CONTROL, NOISE, strict=True)]
    if given is not None:
        values["as given"] = [c + given - e for c, e in zip(CONTROL, NOISE, strict=True)]
    return values


def judged(values, direction="minimize", chosen="finalist 1", unit=None, **rules):
    rules = {"objective": "val_loss", "planned": len(CONTROL)} | rules
    return decide(values, Rules(direction=direction, **rules), chosen, unit=unit)


# The paired difference


@given(
    st.lists(
        st.tuples(*[st.floats(-100, 100).map(lambda x: round(x, 3))] * 2), min_size=3, max_size=20
    ),
    st.sampled_from([0.8, 0.95, 0.99]),
)
def test_the_paired_difference_is_that_of_scipy(pairs, level):
    arm, control = (np.array(side) for side in zip(*pairs, strict=True))
    if np.std(arm - control) < 1e-6:
        return
    ours = paired_difference(arm, control, level)
    theirs = stats.ttest_rel(arm, control)
    interval = theirs.confidence_interval(level)
    assert ours.mean == pytest.approx(np.mean(arm - control), abs=1e-12)
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-6)
    assert ours.low == pytest.approx(interval.low, rel=1e-6, abs=1e-9)
    assert ours.high == pytest.approx(interval.high, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_pairs_have_no_interval(n):
    difference = paired_difference([1.5] * n, [1.0] * n)
    assert (difference.low, difference.high, difference.p_value) == (None, None, None)
    assert difference.n == n
    assert difference.mean == 0.5 if n else math.isnan(difference.mean)


def test_equal_arms_do_not_differ():
    difference = paired_difference(CONTROL, CONTROL)
    assert (difference.mean, difference.low, difference.high) == (0.0, 0.0, 0.0)
    assert difference.p_value == 1.0


@pytest.mark.parametrize("shift", [0.25, 0.1])  # 0.1 differs from itself by rounding
def test_differences_without_spread_are_judged_by_their_signs(shift):
    control = [0.5, 1.75, 3.0, 0.25, 7.5, 0.75, 2.25, 0.125]
    arm = [c + shift for c in control]
    assert (np.std(np.subtract(arm, control)) > 0) == (shift == 0.1)
    difference = paired_difference(arm, control)
    assert difference.mean == pytest.approx(shift)
    assert (difference.low, difference.high) == (None, None)
    assert difference.p_value == pytest.approx(2 / 2**8)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_block_that_is_not_finite_leaves_the_pair_out(bad):
    arm = [0.1, 0.2, 0.35, 0.4]
    control = [0.2, 0.25, 0.3, 0.45]
    whole = paired_difference(arm, control)
    assert paired_difference([*arm, bad], [*control, 1.0]) == whole
    assert paired_difference([*arm, 1.0], [*control, bad]) == whole


def test_arms_of_different_length_are_refused():
    with pytest.raises(StudyError, match="3 blocks and its control 2"):
        paired_difference([1, 2, 3], [1, 2])


# The four verdicts


@pytest.mark.parametrize(("direction", "sign"), [("minimize", -1), ("maximize", 1)])
def test_a_finalist_that_is_better_helps(direction, sign):
    verdict = judged(arms(0.03 * sign), direction)
    assert (verdict.verdict, verdict.arm, verdict.settled) == ("helps", "finalist 1", True)
    assert verdict.difference.mean == pytest.approx(0.03 * sign, abs=1e-3)
    assert verdict.difference.low < verdict.difference.mean < verdict.difference.high
    assert verdict.difference.low * verdict.difference.high > 0
    assert verdict.difference.p_value <= 0.05
    assert verdict.details["relative"] == pytest.approx(0.03 * sign / np.mean(CONTROL), rel=0.02)


@pytest.mark.parametrize(("direction", "sign"), [("minimize", -1), ("maximize", 1)])
def test_dropout_that_is_worse_hurts_only_if_none_helps(direction, sign):
    hurts = judged(arms(-0.001 * sign, given=-0.03 * sign), direction)
    assert (hurts.verdict, hurts.arm, hurts.settled) == ("hurts", "no dropout", True)
    assert hurts.difference.mean == pytest.approx(-0.03 * sign, abs=1e-3)
    assert judged(arms(0.03 * sign, given=-0.03 * sign), direction).verdict == "helps"


@pytest.mark.parametrize(("direction", "sign"), [("minimize", -1), ("maximize", 1)])
def test_no_benefit_needs_an_interval_that_excludes_a_relevant_one(direction, sign):
    values = arms(-0.002 * sign, given=0.0)
    verdict = judged(values, direction, margin=0.01)
    assert (verdict.verdict, verdict.arm, verdict.settled) == ("no benefit", "no dropout", True)
    narrow = judged(arms(0.0), direction, margin=0.0001)
    assert (narrow.verdict, narrow.settled) == ("undecided", False)


def test_no_benefit_waits_until_the_cost_of_the_model_as_given_is_known():
    values = arms(0.0)
    values["as given"] = [c + 0.003 + 4 * e for c, e in zip(CONTROL, NOISE, strict=True)]
    verdict = judged(values, margin=0.008)
    assert (verdict.verdict, verdict.settled) == ("no benefit", False)
    assert judged(values, margin=0.02).settled


def test_the_margin_is_one_percent_of_the_control_where_none_is_given():
    assert judged(arms(0.0)).details["margin"] == pytest.approx(0.01 * np.mean(CONTROL))


def test_earlier_confirmations_raise_the_bar():
    values = {"no dropout": CONTROL, "finalist 1": np.array(CONTROL) - 0.0115 + 5 * np.array(NOISE)}
    first, second = judged(values), judged(values, earlier=1)
    assert first.verdict == "helps"
    assert second.verdict == "undecided"
    assert second.difference.p_value == pytest.approx(2 * first.difference.p_value)
    assert second.difference.low < first.difference.low
    assert "confirmation 2" in str(second)
    assert "confirmation" not in str(first)


def test_a_finalist_that_diverged_in_a_block_cannot_help():
    values = arms(-0.03)
    values["finalist 1"][3] = math.nan
    verdict = judged(values)
    assert (verdict.verdict, verdict.arm) == ("no benefit", "no dropout")
    assert verdict.details["lacking"] == 1
    assert "the finalist failed in 1 of 8 blocks, so it cannot help" in str(verdict)
    values["no dropout"] = [*CONTROL[:3], math.nan, *CONTROL[4:]]  # then it is nobody's fault
    assert judged(values).verdict == "helps"
    assert judged(values).difference.n == 7


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_too_few_blocks_are_undecided(blocks):
    values = {name: value[:blocks] for name, value in arms(-0.5, given=0.5).items()}
    verdict = judged(values)
    assert (verdict.verdict, verdict.arm, verdict.settled) == ("undecided", "no dropout", False)
    assert "at least 3 are needed; confirm with more blocks" in str(verdict)


def test_a_control_without_a_value_is_undecided():
    verdict = judged({"no dropout": [math.nan] * 8, "finalist 1": CONTROL})
    assert (verdict.verdict, verdict.difference) == ("undecided", None)


def test_the_model_as_given_may_be_chosen_and_help_or_hurt():
    for shift, said, arm in ((-0.03, "helps", "as given"), (0.03, "hurts", "no dropout")):
        verdict = judged(arms(0.0, given=shift), chosen="as given")
        assert (verdict.verdict, verdict.arm) == (said, arm)


def test_an_arm_without_values_is_named():
    with pytest.raises(StudyError, match="no values for arm 'finalist 9'; there are 'no dropout'"):
        judged({"no dropout": CONTROL}, chosen="finalist 9")


# What is open


def noisy(shift, scale):
    """Return the control and a finalist with the noise scaled."""
    return {
        "no dropout": CONTROL,
        "finalist 1": [c + shift + scale * e for c, e in zip(CONTROL, NOISE, strict=True)],
    }


def test_undecided_says_how_many_blocks_would_decide_and_what_could_be_seen():
    verdict = judged(noisy(-0.012, 10))
    assert verdict.verdict == "undecided"
    more = verdict.details["more_blocks"]
    assert f"about {more} more blocks would decide" in str(verdict)
    spread = np.std(np.array(NOISE) * 10, ddof=1)
    bars = sequential.boundary(8 + more, 8, 0.95)
    mean = 0.012 - 10 * np.mean(NOISE)
    assert mean > bars[8 + more] * spread / math.sqrt(8 + more)
    assert mean < bars[7 + more] * spread / math.sqrt(7 + more)
    visible = verdict.details["visible"]
    assert visible == pytest.approx(spread * sequential.visible_effect(8, 8, 0.95))
    assert f"{visible:.2g}" in str(verdict)


def test_a_validation_set_too_small_for_the_effect_is_told_so():
    verdict = judged(noisy(-0.005, 60))  # 1 % of the control, in noise of 20 times that
    assert verdict.details["more_blocks"] is None
    assert "more than 192 more blocks would decide" in str(verdict)
    assert verdict.details["visible"] > 0.1


def test_what_is_decided_names_no_more_blocks():
    for values in (arms(-0.03), arms(0.0), arms(0.0, given=0.03)):
        verdict = judged(values)
        assert verdict.details["more_blocks"] is None
        assert "more blocks" not in str(verdict)


def test_a_constant_objective_is_undecided_and_says_what_to_do():
    constant = {"no dropout": [0.97] * 8, "finalist 1": [0.97] * 8}
    verdict = judged(constant, "maximize", objective="val_accuracy")
    assert (verdict.verdict, verdict.settled) == ("undecided", False)
    assert str(verdict) == (
        "undecided: val_accuracy is 0.97 in every run, it cannot tell plans apart; "
        "choose another objective, such as val_loss"
    )


def test_equal_arms_bring_no_benefit_but_are_never_enough_blocks():
    verdict = judged({"no dropout": CONTROL, "finalist 1": CONTROL})
    assert (verdict.verdict, verdict.settled) == ("no benefit", False)


# What is printed and stored


def test_the_text_is_one_line_with_unit_interval_p_value_and_seeds():
    verdict = judged(arms(-0.021), objective="val_cross_entropy")
    start, interval, rest = str(verdict).replace("[", "|[").replace("]", "]|").split("|")
    low, high = verdict.difference.low, verdict.difference.high
    assert start == "helps: -0.0209 nats "
    assert interval == f"[{low:.4f}, {high:.4f}]"
    assert rest == f" (-4.1 %), p = {verdict.difference.p_value:.2g}, 8 paired seeds"
    assert "nats" not in str(judged(arms(-0.021), objective="val_accuracy"))
    assert "W" in str(judged(arms(-0.021), unit="W"))


def test_a_difference_without_spread_is_printed_without_an_interval():
    values = {"no dropout": CONTROL, "finalist 1": [c - 0.25 for c in CONTROL]}
    verdict = judged(values)
    assert str(verdict).startswith("helps: -0.25 (-49 %), p = 0.0")
    assert verdict.difference.low is None
    assert judged({name: value[:5] for name, value in values.items()}).verdict == "undecided"


def test_the_details_are_json():
    for values in (arms(-0.02), arms(0.0, given=0.0), noisy(-0.01, 10)):
        details = judged(values).details
        assert json.loads(json.dumps(details, allow_nan=False)) == details
