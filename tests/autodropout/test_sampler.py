"""droptune/autodropout/sampler.py: results in, better proposals out; the same after a restart."""

import random
from math import log
from statistics import fmean, stdev

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from droptune.autodropout import AutoDropoutSampler
from droptune.autodropout.sampler import BATCH, VALUES, Baseline

optuna.logging.set_verbosity(optuna.logging.ERROR)

SPACE = {
    **{f"rate.{i}": FloatDistribution(0, 0.6, step=0.01) for i in range(3)},
    "size": FloatDistribution(0.05, 0.5, step=0.05),
    "repeat": IntDistribution(1, 8),
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "kind": CategoricalDistribution(["standard", "pattern", "gaussian"]),
    "share": CategoricalDistribution([True, False]),
    "settled": CategoricalDistribution(["on"]),
}
BEST = {"rate.0": 0.1, "rate.1": 0.5, "rate.2": 0.3, "size": 0.4, "repeat": 7, "kind": "gaussian"}


def score(params: dict) -> float:
    """Return how good parameters are, each by itself."""
    spans = {"rate.0": 0.6, "rate.1": 0.6, "rate.2": 0.6, "size": 0.45, "repeat": 7}
    numbers = sum(-abs(params[name] - BEST[name]) / span for name, span in spans.items())
    return numbers + (params["kind"] == BEST["kind"]) + (params["share"] is True)


def study(seed=0, direction="maximize", sampler=None) -> optuna.Study:
    return optuna.create_study(
        sampler=sampler or AutoDropoutSampler(seed, SPACE), direction=direction
    )


def run(one: optuna.Study, trials: int, flight: int = 1, tell=None, seed: int = 0) -> list[dict]:
    """Ask and tell so many trials, of which `flight` run at once and end in any order."""
    order, running, asked = random.Random(seed), [], []
    for _ in range(trials):
        trial = one.ask(SPACE)
        asked.append(trial.params)
        running.append(trial)
        if len(running) == flight:
            done = running.pop(order.randrange(flight))
            if tell is None:
                one.tell(done, score(done.params))
            else:
                tell(one, done)
    return asked


# Learning


@pytest.mark.parametrize("flight", [1, 64])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_after_some_hundred_trials_proposals_are_better_than_random(seed, flight):
    chance = [score(p) for p in run(study(sampler=optuna.samplers.RandomSampler(seed)), 300)]
    learned = [score(p) for p in run(study(seed), 300, flight)]
    assert abs(fmean(learned[:30]) - fmean(chance)) < stdev(chance)
    assert fmean(learned[-50:]) > fmean(chance) + (1.5 if flight == 1 else 1.0) * stdev(chance)


def test_the_direction_of_the_study_is_that_of_the_reward():
    down = run(study(direction="minimize"), 60, tell=lambda s, t: s.tell(t, -score(t.params)))
    up = run(study(), 60)
    assert up == down
    other = run(study(direction="minimize"), 60)
    assert up[:BATCH] == other[:BATCH] and up[-20:] != other[-20:]


@pytest.mark.parametrize("state", [TrialState.FAIL, TrialState.PRUNED])
def test_what_fails_or_is_pruned_is_proposed_less_often(state):
    def tell(one, trial):
        if trial.params["share"]:
            one.tell(trial, state=state)
        else:
            one.tell(trial, random.Random(trial.number).random())

    shares = [params["share"] for params in run(study(), 200, tell=tell)]
    assert fmean(shares[:40]) > 0.3 > 0.15 > fmean(shares[-40:])


def test_where_all_fail_nothing_is_learned_and_nothing_breaks():
    failed = run(study(), 40, tell=lambda s, t: s.tell(t, state=TrialState.FAIL))
    assert len(failed) == 40


@pytest.mark.parametrize("value", [1.0, float("inf"), -float("inf"), 1e300])
def test_equal_and_infinite_values_do_not_break_it(value):
    odd = study()
    run(odd, 40, tell=lambda s, t: s.tell(t, value if t.number % 3 else 1.0))
    assert [trial.state for trial in odd.trials] == [TrialState.COMPLETE] * 40


# Proposals


def test_proposals_are_values_of_the_grid():
    asked = run(study(), 60)
    for name, distribution in SPACE.items():
        values = {params[name] for params in asked}
        assert len(values) <= VALUES
        assert all(distribution._contains(distribution.to_internal_repr(v)) for v in values)
    assert len({params["rate.0"] for params in asked}) > 10


def test_what_is_enqueued_is_kept_and_only_what_was_chosen_is_learned_from():
    one = study()
    one.enqueue_trial({"rate.0": 0.11, "kind": "pattern"})
    whole = one.sampler.infer_relative_search_space(one, one.ask(SPACE))
    assert "settled" not in whole
    part = one.trials[0]
    assert part.params["rate.0"] == 0.11 and part.params["kind"] == "pattern"
    (key,) = [k for k in part.system_attrs if k.startswith("autodropout:")]
    rest = [len(one.sampler._controller._values[n]) for n in whole if n not in ("rate.0", "kind")]
    assert part.system_attrs[key] == pytest.approx(-sum(map(log, rest)), abs=1e-4)
    given = {name: BEST.get(name, 0.01 if name == "lr" else True) for name in whole}
    one.enqueue_trial(given)
    assert {k: v for k, v in one.ask(SPACE).params.items() if k in given} == given
    assert not [k for k in one.trials[1].system_attrs if k.startswith("autodropout:")]


def test_trials_of_others_teach_nothing():
    mine, mixed = study(), study()
    for number in range(40):
        params = {**BEST, "lr": 0.01, "share": True, "settled": "on"}
        mixed.add_trial(
            optuna.create_trial(params=params, distributions=SPACE, value=100.0 * number)
        )
    run(mine, 1), run(mixed, 1)
    for number in (7, 8, 9):
        proposals = [s.sampler._controller.propose(number, {}) for s in (mine, mixed)]
        assert proposals[0] == proposals[1]


# Restarts


@pytest.mark.parametrize("flight", [1, 9])
def test_a_new_sampler_goes_on_where_the_old_one_was(flight):
    straight, broken = study(4), study(4)
    asked = run(straight, 70, flight)
    before = run(broken, 45, flight)
    again = study(4)
    again.add_trials(broken.trials)
    assert before == asked[:45]
    if flight == 1:  # what runs at once ends in another order than after the restart
        assert run(again, 25) == asked[45:]
    else:
        assert again.ask(SPACE).params == asked[45]


def test_seeds_differ():
    assert run(study(0), 3) != run(study(1), 3)


def test_where_parameters_go_the_policy_begins_anew():
    one, fewer = study(sampler=AutoDropoutSampler(0)), {"size": FloatDistribution(0, 1)}
    spaces = [{**fewer, "lr": FloatDistribution(0, 1)}] * 20 + [fewer] * 20
    names = []
    for space in spaces:
        one.tell(one.ask(space), 1.0)
        names.append([*getattr(one.sampler._controller, "space", ())])
    assert names == [[]] + [["lr", "size"]] * 20 + [["size"]] * 19
    assert len(one.sampler._controller._waiting) == 19 % BATCH - 1


# The baseline


def test_the_baseline_follows_the_rewards_and_counts_in_deviations():
    line = Baseline()
    assert line.advantages([1.0, 2.0, 3.0, None]) == [-1.0, 0.0, 1.0, -1.0]
    for _ in range(300):
        line.advantages([5.0, 7.0])
    high, low, missing = line.advantages([7.0, 5.0, None])
    assert high == pytest.approx(1, abs=0.2) and low == pytest.approx(-1, abs=0.2)
    assert missing == -1


def test_small_differences_count_little_where_large_ones_were():
    line = Baseline()
    for _ in range(50):
        line.advantages([1.0, 3.0])
    for _ in range(50):
        late = line.advantages([2.01, 1.99])
    assert max(map(abs, late)) < 0.1


def test_one_freak_result_moves_the_baseline_little():
    line = Baseline()
    line.advantages([1.0, 2.0, 3.0])
    assert line.advantages([1e12]) == [3.0]
    assert line.advantages([2.0])[0] == pytest.approx(0, abs=0.3)


def test_a_baseline_without_deviation_tells_the_side():
    line = Baseline()
    assert line.advantages([None, None]) == [0.0, 0.0]
    assert line.advantages([5.0, 5.0]) == [0.0, 0.0]
    assert line.advantages([6.0, 4.0, 5.0]) == [1.0, -1.0, 0.0]
