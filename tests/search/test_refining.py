"""droptune/refining.py: steps that are as coarse or fine as the results say."""

import optuna
import pytest
from optuna.trial import FixedTrial, FrozenTrial

from droptune import Plan, Space
from droptune.landscape import Landscape
from droptune.posterior import FEWEST
from droptune.refining import GROWTH, HIGHEST, prefix
from droptune.samplers import make_sampler, quiet
from droptune.sites import Site

SITES = tuple(
    Site(f"{role}{i}", f"{role}{i}", "output", role, "NF", i, (9,))
    for role, count in (("conv", 4), ("hidden", 6), ("head", 1))
    for i in range(count)
)
SPACE = Space(SITES, "auto")
TRIALS = 62


def loss(plan: Plan) -> float:
    """Smallest at 0.4 at the first hidden sites and 0 at the last; little else counts."""
    total = 0.0
    for site in SITES:
        rate = plan[site.name].rate if site.name in plan else 0.0
        best = 0.4 if site.depth < 2 else 0.1
        total += (10 if site.role == "hidden" else 0.01) * (rate - best) ** 2
    return total


def start(sampler="tpe", seed=0, past=0, space: Space = SPACE, directions=("minimize",)):
    """Return an Optuna study with a sampler as a search makes it."""
    probe = FixedTrial(space.encode(Plan.none()))
    space.suggest(probe)
    with quiet():
        given = probe.distributions, space.settled, space.finer
        landscape = Landscape(space, probe.distributions) if space.finer else None
        made = make_sampler(sampler, seed, past, *given, landscape)
        return optuna.create_study(sampler=made, directions=directions)


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
    """A study with many steps; not to be changed."""
    return run(start(), TRIALS)


def test_what_the_inner_sampler_proposes_is_coarse_and_steps_may_be_finer(refined):
    trials = refined.trials
    assert len(offsets(trials[0])) == 8
    fine = [t.number for t in trials if any(offsets(t))]
    assert min(fine) >= FEWEST and len(fine) > 10
    assert all(number % 2 for number in fine)


def test_trials_that_are_asked_for_at_once_each_have_a_plan_of_their_own(refined):
    study = start()
    study.add_trials(refined.trials)
    with quiet():
        trials = [study.ask() for _ in range(8)]  # no parameter is asked for before the last
        plans = [SPACE.suggest(trial) for trial in trials]
    assert len(set(plans)) == 8
    one_by_one = start()
    one_by_one.add_trials(refined.trials)
    again = [asked(one_by_one)[1] for _ in range(8)]
    assert again[1::2] == plans[1::2]


@pytest.mark.parametrize("complete", [FEWEST - 1, FEWEST])
def test_every_other_trial_is_a_step_from_the_best_once_a_few_are_complete(refined, complete):
    first, second = [], []
    for past in (0, complete):  # the inner sampler's draws move with it, the steps do not
        study = start(past=past)
        study.add_trials(refined.trials[:complete])
        trials = [asked(study)[0] for _ in range(4)]
        assert not any(any(offsets(t)) for t in trials if not t.number % 2 or complete < FEWEST)
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


def test_refining_finds_what_no_shape_can_say(refined):
    coarse = run(start(space=Space(SITES, "shape")), TRIALS, Space(SITES, "shape"))
    assert refined.best_value < 0.7 * coarse.best_value
    assert any(offsets(refined.best_trial))


def test_steps_are_on_the_grid_and_at_no_site_too_high(refined):
    for trial in refined.trials[FEWEST + 1 :: 2]:
        for name, value in trial.params.items():
            if name != "dropout":
                assert value == pytest.approx(round(value, 2))
                assert trial.distributions[name]._contains(value)
        assert trial.params["dropout"] == "on"
        plan = SPACE.suggest(FixedTrial(trial.params))
        assert max((entry.rate for entry in plan.values()), default=0.0) <= HIGHEST


def test_steps_go_to_other_kinds_too_and_then_keep_to_the_better_one():
    space = Space(SITES, "auto", kinds=("standard", "gaussian"))
    study = start(space=space)
    for _ in range(70):
        trial, plan = asked(study, space)
        bad = trial.params["kind.hidden"] == "standard"
        study.tell(trial, loss(plan) + 2.0 * bad)
    kinds = [t.params["kind.hidden"] for t in study.trials if t.number % 2][FEWEST // 2 :]
    assert set(kinds) == {"standard", "gaussian"}
    assert kinds[-10:].count("gaussian") >= 8


def test_of_several_objectives_steps_are_by_the_first(refined):
    both = start(directions=("minimize", "maximize"))
    one = start()
    one.add_trials(refined.trials)
    for trial in refined.trials:
        both.add_trial(optuna.trial.create_trial(
            params=trial.params, distributions=trial.distributions, values=[trial.value, 1.0]
        ))  # fmt: skip
    assert [asked(both)[1] for _ in range(2)][1] == [asked(one)[1] for _ in range(2)][1]


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
    study.add_trials(refined.trials[:40])
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
    study.add_trials(run(start("random"), 40).trials)
    trials = [asked(study)[0] for _ in range(12)]
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


def test_a_stored_search_that_is_interrupted_proposes_what_it_would_have(search, url, tmp_path):
    def go_on(found, trials):
        while found.finished < trials:
            one = found.ask()
            found.tell(one.number, loss(one.plan))
        return [plan for _, plan, _ in sorted(found.ranked(99))]

    whole = go_on(search(url=f"sqlite:///{tmp_path / 'whole.db'}", space=SPACE), 24)
    go_on(first := search(space=SPACE), 15)
    first.close()
    assert go_on(search(space=Space(SITES, "auto")), 24) == whole
    assert len(whole) > 20


def test_results_that_say_nothing_or_are_enormous_do_no_harm():
    for values in ([1.0], [1e30, -1e30, 1e-300, 5.0]):
        study = start()
        for i in range(FEWEST + 6):
            study.tell(asked(study)[0], values[i % len(values)])
        assert len({str(trial.params) for trial in study.trials}) > FEWEST


def test_the_kernel_is_learnt_from_most_of_the_trials_and_seldom():
    sizes = [prefix(count) for count in range(FEWEST, 301)]
    assert all(count / GROWTH - 1 < size <= count for count, size in enumerate(sizes, FEWEST))
    assert len(set(sizes)) < 20
    assert sizes == sorted(sizes)


def test_the_kernel_is_of_the_same_trials_however_late_one_of_them_ended():
    study = start()
    first = [asked(study) for _ in range(4)]
    for trial, plan in first[:3]:
        study.tell(trial, loss(plan))
    run(study, 40)
    step = next(plan for trial, plan in (asked(study) for _ in range(2)) if trial.number % 2)
    study.tell(first[3][0], loss(first[3][1]))
    for more in (0, 6):  # the kernel stays, more results do not
        run(study, more)
        anew = start(past=len(study.trials))
        anew.add_trials(study.trials)
        odd = slice(1 - len(anew.trials) % 2, None, 2)
        plans = [[asked(one)[1] for _ in range(6)] for one in (study, anew)]
        assert plans[0][odd] == plans[1][odd]
        assert step not in plans[0]
