"""The benchmarks that judge the answer: what they count is what they say they count."""

import argparse
import math
from pathlib import Path

import numpy as np
import pytest

from droptune.errors import DroptuneError
from droptune.plan import Plan
from tests.small import fresh

FOLDER = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="a source package without benchmarks")


@pytest.fixture
def fcnet(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return __import__("fcnet")


@pytest.fixture
def null(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return __import__("null")


def values(best: int, lead: float) -> np.ndarray:
    """Return nine cells with four seeds each, one of the cells better by `lead`."""
    table = np.random.default_rng(3).normal(0, 0.01, (9, 4))
    table[best] -= lead
    return table


# FCNet


def test_seeds_of_blocks_are_seeds_of_the_table_and_none_comes_twice(fcnet):
    look_up = fcnet.LookUp(np.arange(36.0).reshape(9, 4), first=2)
    found = [look_up(Plan.none(), seed, 1)["log_error"] for seed in (907, 11, 907, 3, 40)]
    assert found == [2, 3, 2, 0, 1]
    plan = Plan({"2": ("standard", 0.3), "5": ("standard", 0.6)})
    assert look_up(plan, 11, 1)["log_error"] == 5 * 4 + 3
    assert look_up.count == 6
    with pytest.raises(DroptuneError, match="has 4 seeds"):
        look_up(Plan.none(), 41, 1)


def test_a_plan_between_the_cells_has_no_outcome(fcnet):
    with pytest.raises(ValueError):
        fcnet.cell_of(Plan({"2": ("standard", 0.1)}))


@pytest.mark.parametrize("best", [0, 5])
def test_every_arm_finds_what_is_plain(tmp_path, fcnet, best):
    table = values(best, 1.0)
    ours = fcnet.droptune(table, 1, 0, fresh(tmp_path), "grid")
    assert ours["cell"] == best and ours["seeds"] <= 4
    assert (ours["verdict"] == "helps") == (best > 0)
    assert ours["reported"] == pytest.approx(table[best].mean(), abs=0.02)
    others = fcnet.rivals(table, 30, seed=0)
    assert list(others) == ["random", "tpe", "grid"]
    assert {answer["cell"] for answer in others.values()} == {best}
    assert others["grid"]["reported"] == pytest.approx(table[best].mean(), abs=0.02)
    assert others["random"]["reported"] in table[best], "a single value"


def test_the_grid_pays_for_as_many_look_ups_as_it_is_given(fcnet):
    table = np.arange(36.0).reshape(9, 4)
    order = np.random.default_rng(2).permutation(9)
    assert fcnet.rivals(table, 1, seed=2)["grid"]["cell"] == order[0]
    assert fcnet.rivals(table, 36, seed=2)["grid"] == {"cell": 0, "reported": 1.5}


def test_what_is_true_is_the_mean_of_four_seeds(fcnet):
    clear = fcnet.truth(values(4, 1.0))
    assert clear["best"] == 4 and clear["wins"]
    assert [len(clear["p_values"][seeds]) for seeds in (3, 4)] == [4, 1]
    assert max(clear["p_values"][3]) < 0.001
    none = fcnet.truth(values(0, 0.1))
    assert none["best"] == 0 and not none["wins"] and none["p_values"][3] == []


def row(fcnet, best: int, cell: int, verdict: str, reported: float) -> dict:
    true = fcnet.truth(values(best, 0.5))
    answer = {"cell": cell, "verdict": verdict, "cost": 16, "reported": reported}
    answer |= {"better": cell > 0, "p_value": 0.01 if verdict == "helps" else 0.08}
    return {"set": fcnet.SETS[0], "truth": true, "arms": {"droptune": answer}}


def test_figures_count_what_their_names_say(fcnet):
    mean = fcnet.truth(values(0, 0.5))["means"]
    rows = [
        row(fcnet, 0, 0, "no benefit", mean[0] + math.log(1.1)),
        row(fcnet, 0, 3, "helps", mean[3]),
        row(fcnet, 3, 3, "helps", mean[3]),
        row(fcnet, 3, 0, "undecided", mean[0]),
    ]
    figures = fcnet.summary(rows)
    verdicts = figures["verdicts"]["all"]
    rates = {name: verdicts[name]["rate"] for name in fcnet.COLUMNS}
    assert rates == {
        "none is best": 0.5,
        "correct none": 0.5,
        "false helps": 0.5,
        "dropout wins": 0.5,
        "power": 0.5,
        "helps and better than none": 0.5,
        "false helps at level 0.9": 0.5,
        "power at level 0.9": 0.5,
    }
    assert verdicts["limits"]["3 seeds at 0.025"] == 1.0
    arm = figures["arms"]["all"]["droptune"]
    assert arm["best cell"]["rate"] == 0.5
    assert fcnet.summary(rows[:1] * 3)["arms"]["all"]["droptune"]["reported over true"][
        "median"
    ] == pytest.approx(1.1)
    run = {name: "1" for name in ("date", "hardware", "python", "minutes", *fcnet.PACKAGES)}
    text = fcnet.report(figures | {"run": run | {"settings": 4, "sampler": "grid", "seed": 0}})
    assert "50.0 [15.0, 85.0] of 4" in text, "Wilson's interval of 2 of 4"


# Null


@pytest.fixture
def noise(null):
    losses = np.random.default_rng(0).gamma(9, 0.01, (40, len(null.CELLS)))
    return null.Noise(losses + np.linspace(0, 1, len(null.CELLS)))


def test_recorded_noise_has_no_effect_in_it(null, noise):
    assert noise.deviations.mean(0) == pytest.approx(0, abs=1e-12)
    assert not null.effects("null", noise, 3).any()
    all_plans = null.effects("all plans", noise, 3)
    assert all_plans[0] == 0
    assert -all_plans[1:] == pytest.approx(noise.spread)
    differences = noise.deviations[:, 5] - noise.deviations[:, 0]
    assert noise.spread[4] == pytest.approx(differences.std(ddof=1))
    chosen = [np.flatnonzero(null.effects("one plan", noise, seed)) for seed in range(40)]
    assert {len(found) for found in chosen} == {1}
    assert 0 not in np.concatenate(chosen) and len(np.unique(chosen)) > 8


def test_a_block_is_one_recorded_seed_for_all_plans(null, noise):
    outcome = null.Outcome(noise, np.zeros(len(null.CELLS)))
    plans = [Plan.none(), Plan({"1": ("standard", 0.1), "3": ("standard", 0.5)})]
    cells = [null.cell_of(plan) for plan in plans]
    assert cells == [0, 7]
    found = [outcome(plan, 12, 1)["val_loss"] - noise.mean for plan in plans]
    drawn = np.abs(noise.deviations[:, 0] - found[0]).argmin()
    assert found == pytest.approx(list(noise.deviations[drawn, cells]))
    assert found == [outcome(plan, 12, 1)["val_loss"] - noise.mean for plan in plans]


def test_studies_are_played_and_reported(tmp_path, null, noise):
    args = argparse.Namespace(studies=2, seed=0, sampler="random", trials=6, blocks=2)
    rows = [null.play(task) for task in null.tasks(args, noise, str(tmp_path))]
    assert [row["case"] for row in rows] == [case for case in null.CASES for _ in range(2)]
    assert all(row["blocks"] == 2 for row in rows), "the fresh seeds, without the search's"
    figures = {"cases": null.summary(rows), "noise": noise.facts(), "recorded": null.facts()}
    run = null.facts() | vars(args) | {"minutes": 0.1}
    assert "| one plan | " in null.report(figures | {"run": run})


# Store


def test_the_store_is_loaded_read_and_reported(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FOLDER)
    store = __import__("store")
    just_files = {"SQLite": lambda name: f"sqlite:///{tmp_path}/{name}.db"}
    monkeypatch.setattr(store, "databases", lambda folder: just_files)
    given = "--trials 50 --reads 1 --rounds 1 --workers 2 --seconds 0.3 --starts 1"
    found = store.measure(store.arguments(given.split()))
    states = ["SQLite, no statistics", "SQLite, analysed"]
    assert list(found["listings"]) == states
    assert set(found["listings"][states[0]]) == set(store.READS)
    assert [row["arm"] for row in found["load"]] == list(store.ARMS)
    for row in found["load"]:
        assert "failed" not in row and row["per second"] > 0, row
        assert 0 < row["median"] <= row["p95"] < 10
    assert list(found["starts"])[0] == "python -c pass"
    said = store.report(found)
    assert "| SQLite | tpe, plain Optuna | 2 | " in said
    assert "50 trials of 30 epochs" in said
    found["listings"][states[0]]["best"] = [store.LIMIT + 0.1]
    assert f"Slower than {store.LIMIT} s: best on {states[0]}." in store.report(found)


def test_a_worker_that_fails_is_named(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FOLDER)
    workers = __import__("store_workers")
    job = workers.Job(fresh(tmp_path), "not there", "random", 1)
    with pytest.raises(RuntimeError, match="2 of 2 workers failed: (KeyError|Broken)"):
        workers.together(workers.plain, job, 2, 0.1)
