"""Can "none" win? Studies without a true effect, and with one, on the noise of real runs.

    python benchmarks/null.py                   # 200 studies of each case
    python benchmarks/null.py --record 96       # trains the networks whose noise is used, anew

The noise is not modelled, it is taken from trainings: the validation losses (nats) of
an MLP on the digits, 64-128-128-10, 30 epochs, for 16 plans (rates 0, 0.1, 0.3 and 0.5 after
each hidden layer) on 96 seeds, plans of a seed being one block with common initial weights,
data order and noise, as droptune trains them. Each plan's own mean is taken away. A simulated
block is one of these seeds, drawn with replacement (a bootstrap: Efron 1979,
https://doi.org/10.1214/aos/1176344552), and gives every plan its deviation on that seed; so the
size of the noise, its shape, what differs between plans, and their correlation within a block
are those of the trainings, and the true difference between any two plans is exactly 0.

Cases:
    null        no plan differs from no dropout
    one plan    one plan, drawn for each study, is better than no dropout by one standard
                deviation of its own paired difference; the search has to find it
    all plans   every plan with dropout is, each by its own standard deviation

"helps" in the null case is a false one; elsewhere it is power, and right if the plan that is
named is better. Blocks used are the fresh seeds that confirmation asked for.
"""

import argparse
import json
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

RESULTS = Path(__file__).parent / "results"
RECORDED = RESULTS / "noise-digits.json"
RATES = (0.0, 0.1, 0.3, 0.5)
CELLS = tuple(product(RATES, RATES))
SITES = ("1", "3")
CASES = ("null", "one plan", "all plans")
PACKAGES = ("droptune", "torch", "optuna", "numpy", "scipy")


def build():
    """Return the network of studies/digits.py."""
    from torch import nn

    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def record(seeds: int) -> dict:
    """Train all plans on so many seeds; return their validation losses and what was run."""
    from droptune import Data, Plan
    from droptune.trainers import FusedTrainer, Task

    task = Task(build, Data.digits(), dict.fromkeys(SITES, ("standard",)), epochs=30)
    trainer = FusedTrainer(task, len(CELLS))
    plans = [Plan({s: ("standard", p) for s, p in zip(SITES, c, strict=True)}) for c in CELLS]
    losses = []
    for seed in range(seeds):
        trainer.begin(seed)
        for slot, plan in enumerate(plans):
            trainer.start(slot, plan)
        for _ in range(task.epochs):
            scores = trainer.epoch()
        losses.append([scores[slot].metrics["val_loss"] for slot in range(len(plans))])
        if (seed + 1) % 8 == 0:
            print(f"{seed + 1} of {seeds} seeds trained", file=sys.stderr)
    rounded = [[float(f"{loss:.6g}") for loss in row] for row in losses]
    return {"run": facts(), "rates": RATES, "val_loss": rounded}


class Noise:
    """The recorded noise.

    Attributes:
        mean: of no dropout, nats.
        deviations: `seeds x 16 plans`, nats; every column's mean is 0.
        spread: standard deviation of each plan's paired difference from no dropout, nats.
    """

    def __init__(self, losses: np.ndarray) -> None:
        self.mean = float(losses[:, 0].mean())
        self.deviations = losses - losses.mean(0)
        self.spread = (self.deviations[:, 1:] - self.deviations[:, :1]).std(0, ddof=1)

    def facts(self) -> dict:
        """Return what the noise is like."""
        pairs = (self.deviations[:, 1:] - self.deviations[:, :1]) / self.spread
        related = np.corrcoef(self.deviations.T)[0, 1:]
        return {
            "seeds": len(self.deviations),
            "mean": self.mean,
            "standard deviation": spread_of(self.deviations.std(0, ddof=1)),
            "of paired differences": spread_of(self.spread),
            "correlation with no dropout": spread_of(related),
            "skewness": float(stats.skew(pairs.ravel())),
            "excess kurtosis": float(stats.kurtosis(pairs.ravel())),
        }


class Outcome:
    """What the plans of one simulated study score.

    Args:
        noise: the recorded one.
        effect: of each plan, nats.
    """

    def __init__(self, noise: Noise, effect: np.ndarray) -> None:
        self.noise, self.effect = noise, effect
        self.seeds: dict[int, int] = {}
        self.first: list[float] = []

    def __call__(self, plan, seed: int, epoch: int) -> dict[str, float]:
        row = np.random.default_rng(seed).integers(len(self.noise.deviations))
        cell = cell_of(plan)
        value = self.true(cell) + float(self.noise.deviations[row, cell])
        self.seeds.setdefault(seed, len(self.seeds))
        if self.seeds[seed] == 0:
            self.first.append(value)
        return {"val_loss": value}

    def true(self, cell: int) -> float:
        return self.noise.mean + float(self.effect[cell])


def cell_of(plan) -> int:
    """Return the number of a plan's cell; a plan between the cells raises."""
    return CELLS.index(tuple(plan[site].rate if site in plan else 0.0 for site in SITES))


def effects(case: str, noise: Noise, seed: int) -> np.ndarray:
    """Return the true effect of each plan, nats; no dropout's is 0."""
    effect = np.zeros(len(CELLS))
    if case == "all plans":
        effect[1:] = -noise.spread
    elif case == "one plan":
        chosen = np.random.default_rng([seed, 1]).integers(1, len(CELLS))
        effect[chosen] = -noise.spread[chosen - 1]
    return effect


def play(task: tuple) -> dict:
    """Play one study."""
    import torch

    from droptune import Study, TableTrainer
    from droptune.progress import SilentProgress

    case, seed, noise, folder, settings = task
    outcome = Outcome(noise, effects(case, noise, seed))
    study = Study(
        str(uuid.uuid4()),
        model=build,
        example=torch.zeros(2, 64),
        rates=dict.fromkeys(SITES, RATES),
        trainer=TableTrainer.of(outcome),
        epochs=1,
        seed=seed,
        warm_start=(),  # each study for itself
        store=f"sqlite:///{folder}/{os.getpid()}.db",
        **settings,
    )
    result = study.optimize(progress=SilentProgress())
    cell = cell_of(result.plan)
    return {
        "case": case,
        "verdict": result.verdict.verdict,
        "better": outcome.effect[cell] < 0,
        "blocks": len(outcome.seeds) - 1,
        "reported over true": result.best["value"] / outcome.true(cell),
        "lucky over true": min(outcome.first) / outcome.true(cell),
    }


def tasks(args: argparse.Namespace, noise: Noise, folder: str) -> Iterator[tuple]:
    settings = {"sampler": args.sampler, "trials": args.trials}
    if args.blocks is not None:
        settings["confirm_blocks"] = args.blocks
    for number, case in enumerate(CASES):
        for i in range(args.studies):
            yield case, args.seed + number * args.studies + i, noise, folder, settings


def played(args: argparse.Namespace, noise: Noise) -> list[dict]:
    """Play all studies, in as many processes as asked; say how far it is."""
    rows, started, total = [], time.perf_counter(), len(CASES) * args.studies
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with tempfile.TemporaryDirectory() as folder, context.Pool(args.processes) as pool:
        for row in pool.imap(play, tasks(args, noise, folder), chunksize=4):
            rows.append(row)
            if len(rows) % 50 == 0 or len(rows) == total:
                seconds = time.perf_counter() - started
                print(f"{len(rows)} of {total} studies, {seconds:.0f} s", file=sys.stderr)
    return rows


def facts() -> dict:
    """Return where it was run."""
    return {
        "date": str(date.today()),
        "hardware": hardware("cpu"),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def summary(rows: list[dict]) -> dict:
    """Return the figures of each case."""
    figures = {}
    for case in CASES:
        part = [row for row in rows if row["case"] == case]
        helps = [row for row in part if row["verdict"] == "helps"]
        figures[case] = {
            "helps": share([row["verdict"] == "helps" for row in part]),
            "helps, and rightly": share([bool(row["better"]) for row in helps]),
            "undecided": share([row["verdict"] == "undecided" for row in part]),
            "blocks": spread_of([row["blocks"] for row in part]),
            "reported over true": spread_of([row["reported over true"] for row in part]),
            "best trial over true": spread_of([row["lucky over true"] for row in part]),
        }
    return figures


def report(figures: dict) -> str:
    """Return the figures as Markdown."""
    run, noise, recorded = figures["run"], figures["noise"], figures["recorded"]
    packages = ", ".join(f"{name} {run[name]}" for name in PACKAGES)
    rows = [
        [
            case,
            *(percent(part[key]) for key in ("helps", "helps, and rightly", "undecided")),
            f"{part['blocks']['mean']:.1f}; {shown(part['blocks'], 0)}",
            shown(part["reported over true"], 3),
            shown(part["best trial over true"], 3),
        ]
        for case, part in figures["cases"].items()
    ]
    head = ["case", "helps", "of these rightly", "undecided", "blocks used: mean; median"]
    return "\n".join(
        [
            "# Null: can none win?",
            "",
            f"{run['date']}; {run['hardware']}; Python {run['python']}, {packages}; "
            f"{run['studies']} studies a case, {run['trials']} trials by {run['sampler']}, seed "
            f"{run['seed']}, {run['minutes']} minutes; `python benchmarks/null.py`.",
            "",
            "Rates in % with 95 % Wilson intervals; medians with 5 and 95 % quantiles.",
            "",
            *markdown([*head, "reported over true", "best trial over true"], rows),
            "",
            f"Noise of {noise['seeds']} seeds, in nats (median over plans, with 5 and 95 % "
            f"quantiles), recorded {recorded['date']} on {recorded['hardware']}, torch "
            f"{recorded['torch']}: standard deviation {shown(noise['standard deviation'], 4)} at "
            f"a mean of {noise['mean']:.4f}, of paired differences from no dropout "
            f"{shown(noise['of paired differences'], 4)}, correlation with no dropout within a "
            f"block {shown(noise['correlation with no dropout'], 2)}; skewness of paired "
            f"differences {noise['skewness']:.2f}, excess kurtosis "
            f"{noise['excess kurtosis']:.2f}.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=200, help="of each case")
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--blocks", type=int, help="of confirmation; droptune's own by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--record", type=int, metavar="SEEDS", help="record the noise and end")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    args = parser.parse_args()
    if args.record:
        RECORDED.write_text(json.dumps(record(args.record)) + "\n")
        return
    started = time.perf_counter()
    recorded = json.loads(RECORDED.read_text())
    noise = Noise(np.array(recorded["val_loss"]))
    cases = summary(played(args, noise))
    minutes = round((time.perf_counter() - started) / 60, 1)
    run = facts() | {key: getattr(args, key) for key in ("studies", "trials", "sampler", "seed")}
    figures = {"run": run | {"minutes": minutes}, "recorded": recorded["run"]}
    figures |= {"noise": noise.facts(), "cases": cases}
    text = report(figures)
    print(json.dumps(figures, indent=1) if args.json else text)
    if args.save:
        (RESULTS / "null.md").write_text(text)
        (RESULTS / "null.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
