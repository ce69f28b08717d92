"""The search: what is proposed, what is stored, and what is found again."""

import json
import math
import sqlite3

import optuna
import pytest

from droptune.errors import StudyError
from droptune.plan import Entry, Plan
from droptune.search import PAIRED, PRUNERS, SAMPLERS
from tests.search.tiny import TinySpace, loss, run, stored, train

RUNGS = (1, 3, 9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_searches_to_the_end_and_goes_on_after_a_restart(search, url, sampler):
    first = run(search(sampler=sampler, seed=3), 14)
    second = run(search(sampler=sampler, seed=3), 20)
    assert [asked.number for asked in first + second] == list(range(20))
    assert [trial.value for trial in stored(url)] == [loss(a.plan) for a in first + second]
    plans = [asked.plan for asked in first]
    assert not [asked for asked in second if asked.plan in plans], "a startup point came again"


def test_autodropout_learns_again_from_the_store_and_goes_on_as_if_nothing_had_been(search, url):
    straight = run(search("straight", sampler="autodropout", seed=3), 40)
    broken = [
        asked for trials in (21, 40) for asked in run(search(sampler="autodropout", seed=3), trials)
    ]
    assert [asked.plan for asked in broken] == [asked.plan for asked in straight]
    assert len({asked.plan for asked in straight}) > 30
    attributes = [key for trial in stored(url) for key in trial.system_attrs]
    assert len(attributes) == 40 and all(key.startswith("autodropout:") for key in attributes)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_sampler_varies_what_is_settled(search, url, sampler):
    space = TinySpace()
    space.settled = {"kind": "gaussian"}
    for trials in (14, 20):  # and again after a restart
        one = search(space=space, sampler=sampler)
        one.enqueue("other", Plan({"0": Entry("standard", 0.1)}))
        run(one, trials)
    kinds = [trial.params["kind"] for trial in stored(url)]
    assert kinds == ["standard"] + ["gaussian"] * 19


@pytest.mark.parametrize("pruner", [name for name in PRUNERS if name != PAIRED])
def test_every_pruner_searches_to_the_end_and_goes_on_after_a_restart(search, url, pruner):
    for trials in (16, 40):
        run(search(sampler="random", pruner=pruner, rungs=RUNGS), trials)
    counts = search(sampler="random", pruner=pruner, rungs=RUNGS).counts()
    assert counts.complete + counts.pruned == 40
    assert (counts.pruned > 0) == (pruner != "none")
    for trial in stored(url):
        steps = set(trial.intermediate_values)
        assert steps <= (set() if pruner == "none" else set(RUNGS))
        if trial.state.name == "PRUNED":
            assert trial.value == trial.intermediate_values[max(steps)]


def test_tpe_gets_nearer_than_random(search):
    best = {}
    for sampler in ("tpe", "random"):
        runs = [search(f"{sampler}{seed}", sampler=sampler, seed=seed) for seed in range(3)]
        best[sampler] = sum(run(one, 40) and one.best()[2] for one in runs)
    assert best["tpe"] < best["random"]


def test_successive_halving_finds_its_rungs_again(search):
    run(search(sampler="random", pruner="successive-halving", rungs=RUNGS), 12)
    again = search(sampler="random", pruner="successive-halving", rungs=RUNGS)
    asked = again.ask()
    assert again.report(asked.number, 1, 100.0), "worse than all twelve at the first rung"


def test_cmaes_resumes_from_numbers_and_unpickles_nothing_of_the_store(search, url, monkeypatch):
    import optuna.samplers._cmaes as theirs

    states = []
    loads = theirs.pickle.loads
    monkeypatch.setattr(theirs.pickle, "loads", lambda b: states.append(loads(b)) or states[-1])
    first = search(sampler="cmaes")
    run(first, 31)
    run(first, 32)
    before = states[-1]
    first.close()
    database = sqlite3.connect(url.removeprefix("sqlite:///"))
    keys = {key for (key,) in database.execute("SELECT key FROM trial_system_attributes")}
    assert keys == {"cma:generation"}
    poison = json.dumps(b"cos\nsystem\n(S'exit 1'\ntR.".hex())
    for trial_id in range(1, 33):
        insert = "INSERT INTO trial_system_attributes (trial_id, key, value_json) VALUES (?, ?, ?)"
        database.execute(insert, (trial_id, "cma:optimizer:0", poison))
    database.commit()
    database.close()
    again = search(sampler="cmaes")
    run(again, 33)
    assert states[-1].generation == before.generation > 2
    assert states[-1].mean == pytest.approx(before.mean)


def test_qmc_goes_on_along_its_sequence(search):
    whole = run(search("whole", sampler="qmc", seed=1), 20)
    run(search("parts", sampler="qmc", seed=1), 9)
    parts = run(search("parts", sampler="qmc", seed=1), 20)
    assert [asked.plan for asked in parts] == [asked.plan for asked in whole[9:]]


def test_a_resumed_study_draws_no_startup_point_again(search):
    once = [asked.plan for asked in run(search("a", sampler="random", seed=5), 8)]
    run(search("b", sampler="random", seed=5), 4)
    rest = [asked.plan for asked in run(search("b", sampler="random", seed=5), 8)]
    assert not set(once[:4]) & set(rest)


def test_trials_left_running_come_back_first_with_their_numbers_and_plans(search, url):
    dead = search()
    run(dead, 5)
    left = [dead.ask() for _ in range(3)]
    dead.tell(left[1].number, 2.0)
    again = search()
    assert again.counts().running == 2
    back = [again.ask(), again.ask()]
    assert back == [left[0], left[2]]
    assert again.ask().number == 8
    for asked in back:
        train(again, asked)
    assert again.finished == 8
    assert [trial.state.name for trial in stored(url)] == ["COMPLETE"] * 8 + ["RUNNING"]


def test_an_orphan_starts_again_with_no_rung_passed(search, url):
    options = {"sampler": "random", "pruner": "successive-halving", "rungs": RUNGS}
    dead = search(**options)
    run(dead, 8)
    left = dead.ask()
    dead.report(left.number, 1, 0.1)
    dead.report(left.number, 3, 0.1)
    dead.close()
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:  # died in its tell
        insert = "INSERT INTO trial_system_attributes (trial_id, key, value_json) VALUES (?, ?, ?)"
        database.execute(insert, (left.number + 1, "completed_rung_0", "0.1"))
    database.close()
    again = search(**options)
    assert again.ask().number == left.number
    assert again.report(left.number, 1, 100.0), "compared at the first rung again"


def test_a_trial_left_running_must_be_asked_for_before_it_is_told(search):
    number = search().ask().number
    again = search()
    with pytest.raises(StudyError, match="not asked for again"):
        again.tell(number, 1.0)


def test_a_trial_is_told_once(search, url):
    one = search()
    number = one.ask().number
    one.tell(number, 1.0)
    for state in ("complete", "pruned", "fail"):
        with pytest.raises(StudyError, match="tell it once"):
            one.tell(number, 2.0, state)
    with pytest.raises(StudyError, match="no trial 7"):
        one.tell(7, 1.0)
    with pytest.raises(StudyError, match="complete, pruned, fail"):
        one.tell(number, 1.0, "done")
    assert [trial.value for trial in stored(url)] == [1.0]


def test_the_budget_counts_every_trial_that_was_told(search):
    one = search(pruner="median", rungs=(1,))
    numbers = [one.ask().number for _ in range(5)]
    one.enqueue("none", Plan.none())
    one.tell(numbers[0], 1.0)
    one.tell(numbers[1], state="pruned")
    one.tell(numbers[2], state="fail", message="out of memory")
    for found in (one, search(pruner="median", rungs=(1,))):
        counts = found.counts()
        assert (counts.complete, counts.pruned, counts.failed) == (1, 1, 1)
        assert (counts.running, counts.waiting) == (2, 1)
        assert found.finished == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_fails_the_trial_and_cannot_win(search, url, value):
    one = search()
    one.tell(one.ask().number, value)
    trial = stored(url)[0]
    assert trial.state.name == "FAIL"
    assert trial.user_attrs["message"] == f"the objective was {value}"
    assert one.best() is None


def test_the_message_of_a_failed_trial_is_stored(search, url):
    one = search()
    one.tell(one.ask().number, state="fail", message="out of memory")
    assert stored(url)[0].user_attrs == {"message": "out of memory"}


def test_fixed_plans_come_first_and_exactly_as_given(search, url):
    # 0.9 is beyond the space, alpha is no kind of it, and 1/3 is not on its steps.
    given = Plan({"0": Entry("alpha", 0.9), "2": Entry("standard", 1 / 3)})
    one = search()
    assert [one.enqueue("no dropout", Plan.none()), one.enqueue("as given", given)] == [0, 1]
    one.close()
    again = search()
    assert again.enqueue("again", Plan({"2": Entry("standard", 1 / 3), **given})) == 1
    asked = [again.ask() for _ in range(3)]
    assert [(a.number, a.name) for a in asked] == [(0, "no dropout"), (1, "as given"), (2, None)]
    assert asked[0].plan == Plan.none()
    assert asked[1].plan == given
    for one_asked in asked:
        again.tell(one_asked.number, loss(one_asked.plan))
    trials = stored(url)
    assert trials[0].params == {"front": 0.0, "back": 0.0, "kind": "standard"}
    assert trials[1].params == {"front": 0.6, "back": 1 / 3, "kind": "standard"}
    assert search().enqueue("none", Plan.none()) == 0, "a finished plan is not tried again"
    assert search().best()[0] in (0, 1, 2)


def test_a_plan_that_the_sampler_tried_is_not_put_in_line(search):
    one = search()
    asked = one.ask()
    assert one.enqueue("the same", asked.plan) == asked.number
    assert one.counts().waiting == 0


def test_a_trial_enqueued_with_optuna_is_run(search, url):
    search().close()
    theirs = optuna.load_study(study_name="s", storage=url)
    theirs.enqueue_trial({"front": 0.3, "kind": "gaussian"})
    one = search()
    asked = one.ask()
    assert (asked.number, asked.plan["0"]) == (0, Entry("gaussian", 0.3))
    one.tell(0, 1.0)
    assert stored(url)[0].params["front"] == 0.3
    assert search().best()[1] == asked.plan


def test_the_grid_ends_when_every_point_was_taken(search, url):
    one = search(sampler="grid")
    one.enqueue("none", Plan.none())
    running = [one.ask() for _ in range(30)]
    again = search(sampler="grid")
    assert [again.ask().number for _ in range(30)] == [asked.number for asked in running]
    rest = []
    while (asked := again.ask()) is not None:
        rest.append(asked)
    assert len(rest) == 5 * 5 * 2 + 1 - 30
    for asked in running + rest:
        again.tell(asked.number, loss(asked.plan))
    assert again.ask() is None
    late = Plan({"0": Entry("standard", 0.33)})
    again.enqueue("late", late)
    assert again.ask().plan == late, "a plan in line is tried even when the grid is done"
    again.tell(51, state="fail")
    assert again.ask() is None
    points = {tuple(trial.params.values()) for trial in stored(url)[:51]}
    assert len(points) == 5 * 5 * 2
    assert {point[0] for point in points} == {0.0, 0.15, 0.3, 0.45, 0.6}
    assert again.best()[1]["0"].rate == 0.15


def test_a_grid_too_large_for_memory_is_refused(search):
    class Wide(TinySpace):
        def suggest(self, trial):
            rates = [trial.suggest_float(f"r{i}", 0.0, 0.5) for i in range(20)]
            return Plan({str(i): Entry("standard", rate) for i, rate in enumerate(rates)})

        def encode(self, plan):
            return {f"r{i}": 0.0 for i in range(20)}

    with pytest.raises(StudyError, match="qmc"):
        search(space=Wide(), sampler="grid")


def test_a_sampler_whose_package_is_missing_says_what_to_install(search, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StudyError, match="pip install cmaes"):
        search(sampler="cmaes")


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_finalists_are_the_most_promising_and_have_distinct_plans(search, direction):
    one = search(direction=direction, sampler="random")
    sign = 1 if direction == "minimize" else -1
    for plan in (Plan.none(), Plan({"0": Entry("standard", 0.2)})):
        one.enqueue("fixed", plan)
    asked = run(one, 12)
    lucky = one.ask()
    one.tell(lucky.number, -sign * 9.0)  # far better than its neighbours bear out
    failed = one.ask()
    one.tell(failed.number, state="fail")
    for found in (one, search(direction=direction, sampler="random")):
        assert found.best() == (lucky.number, lucky.plan, -sign * 9.0)
        every = found.finalists(99)
        assert len({plan for _, plan, _ in every}) == 13
        assert {number for number, _, _ in every} == {a.number for a in asked} | {lucky.number}
        chosen = found.finalists(4)
        assert chosen[:3] == every[:3]
        assert lucky.number in [number for number, _, _ in chosen]
        top = chosen[0][1]
        assert found.finalists(2, exclude=[top, lucky.plan])[0] == next(
            one for one in every if one[1] not in (top, lucky.plan)
        )


def test_a_plan_that_its_neighbours_bear_out_comes_before_a_lucky_one(search):
    one = search(sampler="random", direction="minimize")
    for _ in range(40):
        asked = one.ask()
        luck = -0.4 if asked.number == 17 else 0.0
        one.tell(asked.number, 20 * loss(asked.plan) + luck + 0.3 * (-1) ** asked.number)
    first, *_ = one.finalists(1)
    values = sorted((20 * loss(plan), number) for number, plan, _ in one.finalists(99))
    assert first[0] in [number for _, number in values[:4]]
    assert one.finalists(1) == one.finalists(3)[:1]


def test_equal_plans_are_one_finalist(search):
    class Coarse(TinySpace):
        def suggest(self, trial):
            super().suggest(trial)
            return Plan.none()

    one = search(space=Coarse())
    for value in (3.0, 1.0, 2.0):
        one.tell(one.ask().number, value)
    assert one.finalists(3) == [(1, Plan.none(), 1.0)]
    assert one.first(Plan.none()) == (0, 3.0)
    assert one.first(Plan({"0": Entry("standard", 0.2)})) is None
