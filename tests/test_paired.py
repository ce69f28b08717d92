"""The pruner that is fair to dropout: what it stops, what it must not, and after a restart."""

import numpy as np
import pytest

from droptune.errors import StudyError
from droptune.paired import LEAST_EPOCHS, Paired, noise_of, onset
from droptune.plan import Entry, Plan
from droptune.search import PAIRED
from droptune.trainers import SerialTrainer
from tests.small import Notes, fresh, rows, runs, study, trials

EPOCHS = 40
AGE = np.arange(1, EPOCHS + 1)
#: A control that overfits from epoch 12 on.
CONTROL = 0.5 + 1 / AGE + 0.01 * np.maximum(AGE - 12, 0)
NOISE = 0.002


def noisy(curve, seed):
    return curve + np.random.default_rng(seed).normal(0, NOISE, len(curve))


def after(control, *others, direction="minimize", settled=0):
    """Return a pruner that knows `control`, and the epochs at which it stops each other curve."""
    sign = 1 if direction == "minimize" else -1
    pruner = Paired(len(control), direction)
    pruner.complete(0, list(sign * control))
    return pruner, [stopped(pruner, n, sign * c, settled) for n, c in enumerate(others, 1)]


def stopped(pruner, number, curve, settled=0):
    for epoch, value in enumerate(curve[:-1], 1):
        pruner.add(number, epoch, value)
        if pruner.stops(number, settled):
            pruner.end(number)
            return epoch
    pruner.add(number, len(curve), curve[-1])
    pruner.end(number)
    return None


# What is stopped


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_trial_that_stays_behind_is_stopped_and_not_before_the_control_stops_improving(direction):
    _, (epoch,) = after(noisy(CONTROL, 0), noisy(CONTROL + 0.2, 1), direction=direction)
    found = onset(noisy(CONTROL, 0), NOISE)
    assert 8 <= found <= 16
    assert found <= epoch < EPOCHS / 2


def test_a_slow_start_that_pays_at_the_end_is_never_stopped():
    slow = 0.45 + 4 / AGE  # far behind at epoch 12, ahead at the end
    assert slow[11] > CONTROL[11] + 0.15
    assert slow[-1] < CONTROL[-1] - 0.1
    for seed in range(20):
        assert after(noisy(CONTROL, seed), noisy(slow, seed + 100))[1] == [None]


def test_a_twin_of_the_best_is_not_stopped_by_noise():
    for seed in range(20):
        assert after(noisy(CONTROL, seed), noisy(CONTROL, seed + 100))[1] == [None]


def test_the_best_complete_trial_is_what_trials_are_compared_with_not_the_control():
    better, between = CONTROL - 0.3, CONTROL - 0.1
    assert after(CONTROL, noisy(between, 1))[1] == [None]
    _, ends = after(CONTROL, noisy(better, 0), noisy(between, 1))
    assert ends[0] is None
    assert ends[1] is not None


def test_the_value_to_beat_is_the_last_one_of_the_best_however_lucky():
    lucky = noisy(CONTROL, 0)
    lucky[-1] -= 0.1
    assert after(noisy(CONTROL, 0), noisy(CONTROL, 1))[1] == [None]
    assert after(lucky, noisy(CONTROL, 1))[1] != [None]


def test_nothing_is_stopped_before_the_control_has_ended():
    pruner = Paired(EPOCHS, "minimize")
    pruner.complete(1, list(CONTROL))
    assert stopped(pruner, 2, CONTROL + 5) is None
    for epoch, value in enumerate(CONTROL[:-1], 1):
        pruner.add(0, epoch, value)
    assert stopped(pruner, 3, CONTROL + 5) is None
    pruner.add(0, EPOCHS, CONTROL[-1])
    pruner.end(0)
    assert stopped(pruner, 4, CONTROL + 5)


def test_rates_that_still_move_are_waited_for():
    _, (early,) = after(noisy(CONTROL, 0), noisy(CONTROL + 0.2, 1))
    _, (late,) = after(noisy(CONTROL, 0), noisy(CONTROL + 0.2, 1), settled=20)
    assert early < 20
    assert late > 20
    assert after(CONTROL, CONTROL + 0.2, settled=EPOCHS)[1] == [None]
    assert Plan({"a": Entry("standard", 0.1)}).settles == 0
    moving = Plan({"a": Entry("standard", 0.1), "b": Entry("standard", 0.2, "late", 0.5)})
    assert moving.settles == 0.5
    assert Plan({"a": Entry("standard", 0.1, "ramp")}).settles == 1
    assert 0.4 < Plan({"a": Entry("standard", 0.1, "curriculum")}).settles < 0.5


def test_a_value_that_is_no_number_stops_a_trial():
    pruner, _ = after(CONTROL)
    pruner.add(1, 1, float("nan"))
    assert pruner.stops(1)


# What it says


def test_a_control_that_improves_to_its_end_stops_nothing_and_that_is_said_once():
    said = []
    pruner = Paired(EPOCHS, "minimize", said.append)
    pruner.complete(0, list(noisy(1 / AGE + 1 - AGE / EPOCHS, 0)))
    assert [stopped(pruner, n, CONTROL + 9) for n in (1, 2, 3)] == [None] * 3
    assert len(said) == 1
    assert "improves up to its last epoch" in said[0]


def test_a_control_without_a_whole_curve_stops_nothing_and_that_is_said():
    said = []
    pruner = Paired(EPOCHS, "minimize", said.append)
    pruner.add(0, 1, 1.0)
    pruner.end(0)
    pruner.complete(1, list(CONTROL))
    assert stopped(pruner, 2, CONTROL + 9) is None
    assert len(said) == 1
    assert "no whole curve" in said[0]


def test_noise_is_that_around_the_course_of_a_curve():
    drift = 0.01 * AGE + (AGE < 4)
    measured = [noise_of(noisy(drift, seed)) for seed in range(200)]
    assert np.mean(measured) == pytest.approx(NOISE, rel=0.15)
    assert noise_of([1.0]) == 0
    assert onset(np.ones(EPOCHS), 0.0) == 1, "constant: it never improved"


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
    notes = Notes()
    study(url, trials=14, **settings()).optimize(progress=notes)
    found = ended(url)
    assert found[0] == ("complete", 30)
    pruned = {number: epochs for number, (state, epochs) in found.items() if state == "pruned"}
    assert len(pruned) > 3
    assert all(10 <= epochs < 30 for epochs in pruned.values())
    assert {n for n, state in trials(url) if state == "PRUNED"} == set(pruned)
    values = "SELECT number, step FROM trials JOIN trial_intermediate_values USING (trial_id)"
    assert dict(rows(url, values)) == pruned, "the value that a trial stopped with, and no other"
    assert len([line for line in notes.messages if "pruner paired" in line]) == 1


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
        if status.done == 3 and not notes.pressed:
            notes.pressed = True
            raise KeyboardInterrupt

    notes = Notes(press)
    notes.pressed = False
    one = study(url, trials=12, **settings())
    with pytest.raises(KeyboardInterrupt):
        one.optimize(progress=notes)
    one.optimize(progress=Notes())
    found = ended(url)
    assert sorted(found) == list(range(12))
    assert {epochs for state, epochs in found.values() if state == "complete"} == {30}
    assert "pruned" in {state for state, _ in found.values()}


def test_too_few_epochs_are_refused_with_the_number_that_is_needed(url):
    least = LEAST_EPOCHS
    with pytest.raises(StudyError, match=f"epochs is {least - 1}; train for {least} or more"):
        study(url, pruner=PAIRED, epochs=least - 1)
    study(url, pruner=PAIRED, epochs=least)
