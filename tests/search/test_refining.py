"""droptune/refining.py: coarse first, then finer where it matters."""

import optuna
import pytest
from optuna.trial import FixedTrial, FrozenTrial

from droptune import Plan, Space
from droptune.posterior import FEWEST
from droptune.refining import TRIALS_EACH, TRIALS_LEAST
from droptune.samplers import make_sampler, quiet
from droptune.sites import Site

SITES = tuple(
    Site(f"{role}{i}", f"{role}{i}", "output", role, "NF", i, (9,))
    for role, count in (("conv", 4), ("hidden", 6), ("head", 1))
    for i in range(count)
)
SPACE = Space(SITES, "auto")
COARSE = 4  # three rates and a slope
ENOUGH = max(TRIALS_LEAST, TRIALS_EACH * COARSE)
MORE = 30


def loss(plan: Plan) -> float:
    """Smallest at 0.4 at the first hidden sites and 0 at the last; little else counts."""
    total = 0.0
    for site in SITES:
        rate = plan[site.name].rate if site.name in plan else 0.0
        best = 0.4 if site.depth < 2 else 0.1
        total += (10 if site.role == "hidden" else 0.01) * (rate - best) ** 2
    return total


def start(sampler: str = "tpe", seed: int = 0, past: int = 0, space: Space = SPACE):
    """Return an Optuna study with a sampler as a search makes it."""
    probe = FixedTrial(space.encode(Plan.none()))
    space.suggest(probe)
    with quiet():
        made = make_sampler(sampler, seed, past, probe.distributions, space.settled, space.finer)
        return optuna.create_study(sampler=made)


def asked(study, space: Space = SPACE) -> tuple[FrozenTrial, Plan]:
    with quiet():
        trial = study.ask()
        return trial, space.suggest(trial)


def run(study, trials: int, space: Space = SPACE):
    for _ in range(trials):
        trial, plan = asked(study, space)
        study.tell(trial, loss(plan))
    return study


def offsets(trial, role: str = "") -> list[float]:
    return [v for name, v in trial.params.items() if name.startswith(f"offset.{role}")]


@pytest.fixture(scope="module")
def refined():
    """A study that is well in its second phase; not to be changed."""
    return run(start(), ENOUGH + MORE)


def test_the_first_phase_is_coarse_and_the_second_refines_every_other_trial(refined):
    trials = refined.trials
    assert not [t for t in trials[:ENOUGH] if any(offsets(t))]
    assert len(offsets(trials[0])) == 8
    later = [bool(any(offsets(t))) for t in trials[ENOUGH:]]
    assert later == [bool(t.number % 2) for t in trials[ENOUGH:]]


@pytest.mark.parametrize("complete", [FEWEST - 1, FEWEST])
def test_every_other_trial_is_a_step_from_the_best_once_a_few_are_complete(refined, complete):
    first, second = [], []
    for past in (0, complete):  # the inner sampler's draws move with it, the steps do not
        study = start(past=past)
        study.add_trials(refined.trials[:complete])
        trials = [asked(study)[0] for _ in range(4)]
        assert not any(any(offsets(trial)) for trial in trials)
        first.append([t.params for t in trials if not t.number % 2])
        second.append([t.params for t in trials if t.number % 2])
    assert first[0] != first[1]
    assert (second[0] == second[1]) == (complete == FEWEST)


def test_steps_move_what_is_searched_on_a_log_scale():
    space = Space(SITES, "auto", tune={"lr": 1e-3})
    study = run(start(space=space), FEWEST, space)
    steps = [t for t in (asked(study, space)[0] for _ in range(8)) if t.number % 2]
    low, high = (getattr(steps[0].distributions["lr"], end) for end in ("low", "high"))
    rates = {t.params["lr"] for t in steps}
    assert len(rates) > 1
    assert all(low <= rate <= high for rate in rates)


def test_what_does_not_matter_is_refined_less(refined):
    counts = {role: sum(any(offsets(t, role)) for t in refined.trials) for role in ("conv", "hid")}
    assert counts["hid"] == MORE // 2
    assert counts["conv"] < MORE // 4


def test_refining_finds_what_no_shape_can_say(refined):
    coarse = run(start(space=Space(SITES, "shape")), ENOUGH + MORE, Space(SITES, "shape"))
    assert refined.best_value < coarse.best_value
    assert any(offsets(refined.best_trial))


def test_refined_plans_are_near_the_best_and_on_the_grid(refined):
    for trial in refined.trials[ENOUGH:]:
        for name, value in trial.params.items():
            if name != "dropout":
                assert value == pytest.approx(round(value, 2))
                assert trial.distributions[name]._contains(value)
        assert trial.params["dropout"] == "on"


def test_many_trials_asked_before_the_first_result_are_all_coarse():
    study = start()
    assert not [t for t, _ in (asked(study) for _ in range(64)) if any(offsets(t))]


def test_a_sampler_made_anew_refines_as_the_old_one_would_have(refined):
    plans = []
    for past in (0, len(refined.trials)):
        study = start(past=past)
        study.add_trials(refined.trials)
        plans.append([asked(study)[1] for _ in range(4)])
    assert plans[0][1] == plans[1][1]
    assert plans[0][3] == plans[1][3] != plans[0][1]
    other = start(seed=1)
    other.add_trials(refined.trials)
    assert [asked(other)[1] for _ in range(2)][1] != plans[0][1]


def test_no_dropout_as_the_best_plan_keeps_the_gate_open(refined):
    study = start()
    study.add_trials(refined.trials[: ENOUGH + 1])
    off = {**refined.trials[0].params, **SPACE.encode(Plan.none())}
    distributions = refined.trials[0].distributions
    for _ in range(4):
        bottom = optuna.trial.create_trial(params=off, distributions=distributions, value=-9.0)
        study.add_trial(bottom)
    trials = [asked(study)[0] for _ in range(4)]
    assert {t.params["dropout"] for t in trials} == {"on"}


@pytest.mark.parametrize("sampler", ["random", "qmc", "cmaes", "gp"])
def test_other_samplers_go_on_coarse_or_learn(sampler):
    study = start(sampler)
    study.add_trials(run(start("random"), ENOUGH).trials)
    trials = [asked(study)[0] for _ in range(2)]
    assert any(any(offsets(t)) for t in trials) == (sampler == "gp")


def test_a_direction_upwards_refines_upwards(refined):
    study = optuna.create_study(direction="maximize", sampler=start().sampler)
    for trial in refined.trials:
        study.add_trial(optuna.trial.create_trial(
            params=trial.params, distributions=trial.distributions, value=-trial.value
        ))  # fmt: skip
    down = start()
    down.add_trials(refined.trials)
    assert [asked(study)[1] for _ in range(2)][1] == [asked(down)[1] for _ in range(2)][1]
