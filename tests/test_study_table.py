"""The whole loop over a table: search, store, confirmation and verdict without training."""

import json
from collections import Counter

import pytest

from droptune.errors import StudyError, TrainingError
from droptune.plan import Plan
from droptune.store import Queries
from droptune.trainers import SerialTrainer, TableTrainer
from tests.small import Notes, fresh, rows, runs, study, trials
from tests.tables import CELLS, SITES, cell_of, noisy, table_study


@pytest.fixture
def url(tmp_path):
    return fresh(tmp_path)


def searched(url: str) -> list[tuple[float, ...]]:
    """Return the cells of the search's runs that ended well, in their order."""
    found = [run for run in runs(url, "search") if run[3] == "complete"]
    return [cell_of(Plan.from_json(json.loads(run[4]))) for run in found]


def value(plan: Plan) -> float:
    """Return a loss whose lowest is at (0.3, 0)."""
    first, second = cell_of(plan)
    return 1 + (first - 0.3) ** 2 + second**2


def test_the_grid_is_exactly_the_cells_and_the_best_of_them_is_found(url):
    asked = []

    def outcome(plan, seed, epoch):
        asked.append((plan, seed))
        return {"val_loss": value(plan) * (1 + seed % 97 * 1e-5), "test_loss": 2.0}

    result = table_study(url, outcome).optimize(progress=Notes())
    assert searched(url)[0] == (0.0, 0.0), "no dropout comes first"
    assert sorted(searched(url)[1:]) == sorted(CELLS)
    assert cell_of(result.plan) == (0.3, 0.0)
    assert result.verdict.verdict == "helps"
    assert result.best["value"] == pytest.approx(1.0, abs=0.01)
    assert result.test["test_loss"]["control"] == 2.0
    assert len({seed for _, seed in asked}) == 1 + 3, "clear after 3 of 4 blocks, a seed each"
    assert rows(url, "SELECT DISTINCT trainer, device FROM droptune_run") == [("table", "cpu")]
    with Queries(url) as queries:
        assert queries.best("table") == result.to_json()


def test_what_is_confirmed_so_far_is_known_while_the_next_block_trains(url):
    known, noise = [], noisy()

    def outcome(plan, seed, epoch):
        with Queries(url) as queries:
            verdict = queries.verdict("table") or {"verdict": None, "blocks": None}
        assert not verdict.get("test"), "the test split is for the end"
        known.append((verdict["verdict"], verdict["blocks"]))
        return noise(plan, seed, epoch) | {"test_loss": 2.0}

    result = table_study(url, outcome, finalists=1, confirm_blocks=5).optimize(progress=Notes())
    assert result.difference.n == 5
    so_far = [(None, None), *(("undecided", blocks) for blocks in (1, 2, 3, 4))]
    assert list(dict.fromkeys(known)) == so_far
    assert Counter(known[-10:]) == dict.fromkeys(so_far, 2), "two runs a block"
    assert rows(url, "SELECT blocks FROM droptune_verdict") == [(5,)], "one row in the end"
    with Queries(url) as queries:
        assert queries.best("table") == result.to_json()


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "qmc"])
def test_no_sampler_leaves_the_cells(url, sampler):
    one = table_study(url, noisy(), sampler=sampler, trials=12, confirm_blocks=0)
    one.optimize(progress=Notes())
    assert len(searched(url)) == 12
    assert {*searched(url)} <= {*CELLS} and len({*searched(url)}) > 3


def test_a_population_is_trained_from_a_table(url):
    def outcome(plan, seed, epoch):
        return {"val_loss": value(plan) / epoch}

    settings = {"strategy": "pbt", "sampler": "tpe", "epochs": 12, "trials": 16}
    table_study(url, outcome, **settings, rates=None, confirm_blocks=2).optimize(progress=Notes())
    with Queries(url) as queries:
        found = queries.trials("table")
    copies = [row for row in found if (row["name"] or "").startswith("copy of trial")]
    assert copies and all(row["epochs"] == 12 for row in copies if row["state"] == "complete")


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("dies_after", [4, 14])
def test_an_interrupted_study_goes_on_to_the_same_answer(tmp_path, dies_after, slots):
    answers, looked, inner = [], [], noisy(-1)
    for dies in (False, True):
        folder = tmp_path / str(dies)
        folder.mkdir()
        url, asked = fresh(folder), []

        def outcome(plan, seed, epoch, asked=asked, dies=dies):
            if dies and len(asked) == dies_after and "death" not in asked:
                asked.append("death")
                raise StudyError("the power went out")
            asked.append((plan, seed))
            return inner(plan, seed, epoch)

        one = table_study(url, outcome, slots=slots)
        if dies:
            with pytest.raises(StudyError, match="power"):
                one.optimize(progress=Notes())
            assert "running" not in {run[3] for phase in ("search", "confirm")
                                     for run in runs(url, phase)}  # fmt: skip
        answers.append(one.optimize(progress=Notes()).to_json())
        looked.append(trials(url))
    assert answers[0] == answers[1]
    assert looked[0] == looked[1] == [(number, "COMPLETE") for number in range(10)]
    assert one.optimize(progress=Notes()).finished_before


def test_a_plan_without_an_outcome_fails_and_the_study_goes_on(url):
    table = {cell: {"val_loss": 1 + sum(cell)} for cell in CELLS if cell != (0.6, 0.6)}
    one = table_study(url, lambda plan, seed, epoch: table[cell_of(plan)])
    result = one.optimize(progress=Notes())
    assert [state for _, state in trials(url)].count("FAIL") == 1
    said = rows(url, "SELECT DISTINCT message FROM droptune_run WHERE state = 'failed'")
    assert said == [("the outcome raised KeyError: (0.6, 0.6) at epoch 1",)]
    assert result.plan == Plan.none()


def test_a_study_says_by_what_it_is_trained_and_keeps_to_it(url):
    one = table_study(url, noisy(), confirm_blocks=0)
    assert one.trains() == "by a trainer of its own (tests.tables.noisy.<locals>.outcome)"
    one.optimize(progress=Notes())
    with pytest.raises(StudyError, match="another trainer .*now 'tests.test_study_table.value"):
        one.using(trainer=TableTrainer.of(value)).optimize(progress=Notes())
    with pytest.raises(StudyError, match="another space"):
        one.using(rates={SITES[0]: (0.0, 0.3)}).optimize(progress=Notes())


def test_droptunes_own_trainers_may_be_given_by_their_class(tmp_path):
    values = []
    for trainer in ("serial", SerialTrainer):
        folder = tmp_path / str(len(values))
        folder.mkdir()
        one = study(fresh(folder), trainer=trainer, slots=1, trials=4)
        values.append(one.optimize(progress=Notes()).best["value"])
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("maker", "said"),
    [
        (lambda: None, "trainer= raised TypeError: .* called as trainer\\(task, slots, device\\)"),
        (lambda task, slots, device: [], "returns a list, which lacks name, slots, "),
        (TableTrainer, "outcome is a NoneType; give TableTrainer.of"),
    ],
)
def test_what_makes_no_trainer_is_named(url, maker, said):
    with pytest.raises(TrainingError, match=said):
        table_study(url, noisy()).using(trainer=maker).optimize(progress=Notes())


def test_an_objective_that_is_no_metric_is_named(url):
    with pytest.raises(StudyError, match="objective 'reward' is not among the metrics"):
        table_study(url, noisy(), objective="reward").optimize(progress=Notes())


def test_a_trainer_of_ones_own_needs_an_example_and_no_train(url):
    with pytest.raises(StudyError, match="give data=, or your own train= or trainer="):
        table_study(url, noisy(), example=None)
    with pytest.raises(StudyError, match="both given"):
        table_study(url, noisy(), train=value)
