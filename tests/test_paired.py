"""The pruner that is fair to dropout: what it stops, what it must not, and after a restart."""

import numpy as np
import pytest

from droptune.paired import Paired
from droptune.plan import Entry, Plan
from droptune.search import PAIRED
from droptune.trainers import SerialTrainer
from tests.small import Notes, fresh, rows, runs, study, trials

EPOCHS = 40
AGE = np.arange(1, EPOCHS + 1)
SITES = ("a", "b", "c", "d")
#: A control that overfits from epoch 12 on.
CONTROL = 0.5 + 1 / AGE + 0.01 * np.maximum(AGE - 12, 0)
NOISE = 0.002
#: How far behind complete trials are, all along.
LAGS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)


def noisy(curve, seed):
    return curve + np.random.default_rng(seed).normal(0, NOISE, len(curve))


def flat(rate):
    return Plan(dict.fromkeys(SITES, Entry("standard", rate)))


def pruner(curves, plans=None, direction="minimize"):
    """Return a pruner that knows whole curves, those of trials 0, 1 and so on."""
    sign = 1 if direction == "minimize" else -1
    plans = plans or {}
    made = Paired(len(curves[0]), direction, SITES, lambda trial: plans.get(trial, Plan.none()))
    for number, curve in enumerate(curves):
        made.learn(number, list(sign * np.asarray(curve)))
    return made


def stopped(pruner, number, curve):
    """Train a trial; return the epoch at which it is stopped, or None."""
    for epoch, value in enumerate(curve[:-1], 1):
        pruner.add(number, epoch, value)
        if pruner.stops(number):
            pruner.end(number)
            return epoch
    pruner.add(number, len(curve), curve[-1])
    pruner.end(number)
    return None


def ranked(direction="minimize", lags=LAGS):
    """Return a pruner of a block whose early ranks hold to the end."""
    return pruner([noisy(CONTROL + lag, n) for n, lag in enumerate(lags)], direction=direction)


# What is stopped


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1), ("maximize", -1)])
def test_where_early_ranks_hold_what_is_behind_is_stopped_early(direction, sign):
    epoch = stopped(ranked(direction), 6, sign * noisy(CONTROL + 0.2, 100))
    assert epoch is not None
    assert epoch <= EPOCHS / 4
    assert stopped(ranked(direction), 6, sign * noisy(CONTROL - 0.1, 100)) is None


def test_where_early_ranks_say_nothing_nothing_is_stopped_early():
    early = np.linspace(1, 0, EPOCHS)  # of a curve's first value, gone at its end
    late = np.maximum(AGE - EPOCHS / 2, 0) / (EPOCHS / 2)
    ends = [(a, b) for a in (-0.1, 0.0, 0.1) for b in (-0.1, 0.0, 0.1)]
    curves = [CONTROL + early * a + late * b for a, b in ends]
    epoch = stopped(pruner(curves), 9, CONTROL + 0.1 * early)
    assert epoch is None or epoch > EPOCHS / 2


def slow(rate, skill):
    """Return a curve that starts behind and ends ahead, the more so the higher its rate."""
    return 1 + skill + rate * (4 * np.exp(-AGE / 10) - 1)


def test_high_rates_that_start_behind_and_pay_at_the_end_are_not_stopped_for_it():
    given, skills = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (0, 0.02, -0.02, 0.01, -0.01, 0.02, 0)
    curves = [noisy(slow(*pair), n) for n, pair in enumerate(zip(given, skills, strict=True))]
    plans = {n: flat(rate) for n, rate in enumerate(given)} | {7: flat(0.7), 8: flat(0.0)}
    high = slow(0.7, 0)
    assert all(high[3] > curve[3] for curve in curves), "behind all"
    assert stopped(pruner(curves, plans), 7, high) is None
    low = high[0] - slow(0.0, 0)[0] + slow(0.0, 0)
    assert stopped(pruner(curves, plans), 8, low) is not None, "as far behind, without the reason"


def test_rates_are_known_by_depth_each_site_in_one_group():
    curves = [1 + np.zeros(EPOCHS) + lag * AGE / EPOCHS for lag in (0.3, 0.3, 0.3, 0.3, 0.3, 0.0)]
    late = Plan({"d": Entry("standard", 0.5)})
    early = Plan({"a": Entry("standard", 0.5)})
    plans = {5: late, 6: late, 7: early, **{n: early for n in range(1, 5)}}
    assert stopped(pruner(curves, plans), 6, curves[5] + 1e-4) is None
    assert stopped(pruner(curves, plans), 7, curves[5] + 1e-4) is not None


def test_the_value_to_beat_is_the_last_one_of_the_best_however_lucky():
    close = noisy(CONTROL - 0.01, 100)
    curves = [noisy(CONTROL + lag, n) for n, lag in enumerate(np.linspace(0, 0.3, 60))]
    assert stopped(pruner(curves), 60, close) is None
    curves[0][-1] -= 0.06
    assert stopped(pruner(curves), 60, close) is not None


def test_the_more_plans_were_seen_the_less_a_fresh_one_promises():
    few, many = ranked(lags=(0.1,) * 6), ranked(lags=(0.1,) * 6)
    behind = noisy(CONTROL + 0.102, 9)
    first, later = stopped(few, 6, behind), stopped(many, 600, behind)
    assert first is not None
    assert later is None or later > first


def test_nothing_is_stopped_before_three_trials_are_complete():
    made = ranked(lags=LAGS[:2])
    made.add(2, 1, float("nan"))
    made.end(2)
    made.learn(3, [*CONTROL[:-2], np.inf, 0.5])
    made.learn(4, CONTROL[:20])
    assert stopped(made, 5, CONTROL + 5) is None, "and it is complete now"
    assert stopped(made, 6, CONTROL + 5) is not None


def test_nothing_is_learnt_from_a_trial_that_failed():
    made = ranked(lags=LAGS[:2])
    for epoch, value in enumerate(CONTROL, 1):
        made.add(2, epoch, value)
    made.forget(2)
    made.end(2, 0.5)
    assert stopped(made, 3, CONTROL + 5) is None


def test_stopped_trials_are_learnt_from():
    complete = [noisy(CONTROL + lag, n) for n, lag in enumerate((0.0, 0.02, 0.01, 0.03))]
    short = [noisy(CONTROL + lag, 9 + n)[:20] for n, lag in enumerate((0.1, 0.15, 0.2, 0.25))]
    curve, epochs = noisy(CONTROL + 0.06, 99), []
    for known in ([], short):
        made = pruner(complete)
        for number, part in enumerate(known, 4):
            made.learn(number, part)
        epochs.append(stopped(made, 8, curve))
    assert epochs[0] != epochs[1]


def test_epochs_before_a_checkpoint_are_unknown_and_the_others_count_by_their_number():
    made, whole = ranked(), noisy(CONTROL + 0.2, 100)
    for epoch in range(11, EPOCHS):
        made.add(6, epoch, whole[epoch - 1])
        if made.stops(6):
            break
    assert 11 < epoch < 20, "after as many epochs as a level is a mean over"
    made.end(6)
    ahead = noisy(CONTROL - 0.1, 101)
    for epoch in range(11, EPOCHS):
        made.add(7, epoch, ahead[epoch - 1])
        assert not made.stops(7)


def test_rates_that_still_move_are_waited_for():
    late = Plan({"a": Entry("standard", 0.1), "b": Entry("standard", 0.2, "late", 0.5)})
    always = Plan({"a": Entry("standard", 0.1, "ramp")})
    curves = [noisy(CONTROL + lag, n) for n, lag in enumerate(LAGS)]
    assert stopped(pruner(curves), 6, CONTROL + 0.3) < 20
    assert 20 < stopped(pruner(curves, {6: late}), 6, CONTROL + 0.3) < EPOCHS
    assert stopped(pruner(curves, {6: always}), 6, CONTROL + 0.3) is None


def test_the_rates_alone_do_not_stop_a_trial_while_they_move():
    curves = [noisy(CONTROL + lag, n) for n, lag in enumerate(LAGS)]
    rates = {n: flat(lag) for n, lag in enumerate(LAGS)}
    late = Plan({site: Entry("standard", 0.3, "late", 0.5) for site in SITES})
    assert stopped(pruner(curves, rates | {6: flat(0.3)}), 6, CONTROL + 0.3) < 20
    assert 20 < stopped(pruner(curves, rates | {6: late}), 6, CONTROL + 0.3) < EPOCHS


def test_curves_are_not_learnt_from_while_rates_still_move():
    late = Plan({"b": Entry("standard", 0.2, "late", 0.5)})
    curves = [noisy(CONTROL + lag, n) for n, lag in enumerate(LAGS)]
    moving = dict.fromkeys(range(4), late)
    assert 20 < stopped(pruner(curves, moving), 6, CONTROL + 0.3) < EPOCHS


def test_trials_that_end_all_but_alike_do_not_hide_the_one_that_is_behind():
    same = [CONTROL + 0.0 for _ in range(7)] + [CONTROL + 0.4]
    plans = {7: flat(0.5), 8: flat(0.5)}
    assert stopped(pruner(same, plans), 8, CONTROL + 0.4) is not None


def test_a_value_that_is_no_number_stops_a_trial_and_a_constant_objective_none():
    made = ranked()
    made.add(6, 1, float("nan"))
    assert made.stops(6)
    for value in (0.0, 0.7, -1e9):
        assert stopped(pruner([np.full(EPOCHS, value)] * 6), 6, np.full(EPOCHS, value)) is None


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_unit_of_the_objective_does_not_matter(scale):
    behind = [noisy(CONTROL + lag, 50 + n) for n, lag in enumerate((0.02, 0.1, 0.2))]
    plain = [stopped(ranked(), 6, curve) for curve in behind]
    assert any(plain)
    curves = [scale * (noisy(CONTROL + lag, n) - 3) for n, lag in enumerate(LAGS)]
    assert [stopped(pruner(curves), 6, scale * (curve - 3)) for curve in behind] == plain


def test_one_plan_that_ruins_training_does_not_hide_the_differences_of_the_others():
    behind = noisy(CONTROL + 0.2, 100)
    curves = [noisy(CONTROL + lag, n) for n, lag in enumerate(LAGS)]
    epochs = {stopped(pruner([*curves, CONTROL + far]), 7, behind) for far in (5, 1e3, 1e9)}
    assert len(epochs) == 1
    assert None not in epochs


# In a study


@pytest.fixture
def url(tmp_path):
    return fresh(tmp_path)


@pytest.fixture
def scripted(monkeypatch):
    """The objective is made up: that of the control overfits, high rates are far behind."""
    epoch, start = SerialTrainer.epoch, SerialTrainer.start

    def started(self, slot, plan, **options):
        self.scripts = getattr(self, "scripts", {}) | {slot: [plan, 0]}
        start(self, slot, plan, **options)

    def made_up(self):
        scores = {}
        for slot, score in epoch(self).items():
            plan, age = self.scripts[slot]
            self.scripts[slot][1] = age + 1
            rate = max((entry.rate for entry in plan.values()), default=0.0)
            lag = 0.0 if rate < 0.3 else rate
            value = float(CONTROL[age]) + lag
            scores[slot] = score._replace(metrics={**score.metrics, "val_loss": value})
        return scores

    monkeypatch.setattr(SerialTrainer, "start", started)
    monkeypatch.setattr(SerialTrainer, "epoch", made_up)


def settings(**changes):
    return {"pruner": PAIRED, "epochs": 30, "confirm_blocks": 0, "slots": 2} | changes


def ended(url):
    sql = "SELECT trial_number, state, epochs FROM droptune_run WHERE state != 'interrupted'"
    return {number: (state, epochs) for number, state, epochs in rows(url, sql)}


def test_a_study_stops_what_is_behind_and_tells_optuna(url, scripted):
    study(url, trials=14, **settings()).optimize(progress=Notes())
    found = ended(url)
    assert found[0] == ("complete", 30)
    pruned = {number: epochs for number, (state, epochs) in found.items() if state == "pruned"}
    assert pruned
    assert all(0 < epochs < 30 and number > 2 for number, epochs in pruned.items())
    assert {n for n, state in trials(url) if state == "PRUNED"} == set(pruned)
    values = "SELECT number, step FROM trials JOIN trial_intermediate_values USING (trial_id)"
    assert dict(rows(url, values)) == pruned, "the value that a trial stopped with, and no other"


def test_no_dropout_and_as_given_are_not_stopped(url, scripted):
    from tests.small import mlp

    study(url, trials=9, model=lambda: mlp(0.9), **settings(slots=1)).optimize(progress=Notes())
    assert [run[1] for run in runs(url, "search")][:2] == ["no dropout", "as given"]
    assert [ended(url)[number] for number in (0, 1)] == [("complete", 30)] * 2
    assert "pruned" in {state for state, _ in ended(url).values()}


@pytest.mark.parametrize("budgets", [(1, 9, 20), (3, 4, 20)])
def test_a_study_goes_on_as_if_it_had_run_in_one_go(url, tmp_path, scripted, budgets):
    (tmp_path / "other").mkdir()
    other = fresh(tmp_path / "other")
    study(other, trials=20, sampler="qmc", **settings(slots=1)).optimize(progress=Notes())
    for budget in budgets:
        one = study(url, trials=budget, sampler="qmc", **settings(slots=1))
        one.optimize(progress=Notes())
    assert ended(url) == ended(other)
    assert "pruned" in {state for state, _ in ended(url).values()}


def test_an_interrupted_trial_starts_its_curve_anew(url, scripted):
    def press(status):
        if status.done >= 3 and not notes.pressed:
            notes.pressed = True
            raise KeyboardInterrupt

    notes = Notes(press)
    notes.pressed = False
    one = study(url, trials=14, **settings())
    with pytest.raises(KeyboardInterrupt):
        one.optimize(progress=notes)
    one.optimize(progress=Notes())
    found = ended(url)
    assert sorted(found) == list(range(14))
    assert {epochs for state, epochs in found.values() if state == "complete"} == {30}
    assert "pruned" in {state for state, _ in found.values()}
