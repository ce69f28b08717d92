"""Does a pruner find the plan that would win at the full budget? On recorded curves.

    python benchmarks/pruning.py                     # replay the recorded curves, some minutes
    python benchmarks/pruning.py --record            # record them first, which takes longer
    python benchmarks/pruning.py --save              # also writes benchmarks/results/

pruning_tasks.py says which plans are trained on which tasks. Each replay takes the plans of one
block in a random order (no dropout first, as in a study), trains them 8 at a time (or as many as
--slots says) and lets the pruner stop them; a stopped trial's slot goes to the next plan. All
pruners see the same orders, and no dropout is never stopped. After some shares of the epochs that
training all plans to the end takes, the best complete trial so far is what the pruner would
answer. It is right if that plan is the block's best at the last epoch; its regret is what it is
worse.

Equal epochs, twice. First all pruners get the same share, and one that saves more sees more
plans; a pruner that is through with all plans keeps its answer, so at 75 % one that is through
at 50 % could have gone on if there were more plans. Then each other pruner is through with all
plans, and paired is cut off in the same replay at as many epochs.

Pruners:
    none                 every trial trains to its end
    paired               droptune's, droptune/paired.py
    median, hyperband,   Optuna's as `droptune optimize --pruner` sets them up: compared at an
    successive-halving   eighth, a quarter and a half of the epochs
    Optuna's median,     with Optuna's own defaults, told the objective every epoch
    Optuna's hyperband

The rule and the constants of `paired` were chosen on the tasks in TUNED, the first two also cut
short to two fifths; the others judge it. What two earlier rules found on those was known; the
present rule was fixed before it was looked at there, once with 8 plans at a time and once with 2,
and nothing was changed afterwards. Intervals are t intervals over blocks, each block's value
being the mean over its orders; differences from `paired` are within blocks.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pruning_tasks import BLOCKS, PLANS, TASKS, WAVE, record
from scipy import stats
from throughput import hardware

RESULTS = Path(__file__).parent / "results"
TUNED = (
    "digits-mlp", "diabetes-mlp", "wine-mlp", "digits-small", "digits-deep", "diabetes-cosine",
    "friedman-mlp", "classes-mlp",
)  # fmt: skip
PRUNERS = (
    "none", "paired", "median", "hyperband", "successive-halving", "Optuna's median",
    "Optuna's hyperband",
)  # fmt: skip
BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.75, 1.0)
COMPARED = (0.4, 0.5, 0.6, 0.75)
METRIC = "val_loss"


class Ours:
    """`paired` for one replay."""

    def __init__(self, epochs: int, plans: Sequence) -> None:
        from droptune.paired import Paired

        self._paired = Paired(epochs, "minimize", sites_of(plans), plans.__getitem__)

    def stops(self, trial: int, epoch: int, value: float) -> bool:
        self._paired.add(trial, epoch, value)
        return self._paired.stops(trial)

    def end(self, trial: int, value: float | None) -> None:
        self._paired.end(trial)


class Optunas:
    """A pruner of Optuna for one replay, asked at some epochs."""

    def __init__(self, pruner, rungs: Sequence[int]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.RandomSampler(seed=0)
        self._study = optuna.create_study(study_name="replay", sampler=sampler, pruner=pruner)
        self._rungs, self._trials = frozenset(rungs), []

    def stops(self, trial: int, epoch: int, value: float) -> bool:
        while len(self._trials) <= trial:
            self._trials.append(self._study.ask())
        if epoch not in self._rungs:
            return False
        self._trials[trial].report(value, epoch)
        return self._trials[trial].should_prune()

    def end(self, trial: int, value: float | None) -> None:
        from optuna.trial import TrialState

        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        self._study.tell(self._trials[trial], value, state=state)


def sites_of(plans: Sequence) -> list[str]:
    """Return the sites of plans in the order of the model; the input is the first."""
    return sorted({site for plan in plans for site in plan}, key=lambda s: (s != "@input", s))


def pruner(name: str, epochs: int, plans: Sequence):
    """Return a fresh pruner for a replay of trials with these plans; None: nothing is stopped."""
    import optuna

    from droptune.samplers import make_pruner
    from droptune.settings import rungs

    if name == "none":
        return None
    if name == "paired":
        return Ours(epochs, plans)
    every = range(1, epochs)
    if name == "Optuna's median":
        return Optunas(optuna.pruners.MedianPruner(), every)
    if name == "Optuna's hyperband":
        return Optunas(optuna.pruners.HyperbandPruner(max_resource=epochs), every)
    compared = sorted(rungs(epochs, name))
    return Optunas(make_pruner(name, compared, epochs), compared)


def replay(
    curves: np.ndarray, order: Sequence[int], judge, slots: int = WAVE
) -> tuple[list[tuple[int, int]], int]:
    """Train the plans of a block in an order, so many at a time.

    Args:
        curves: of shape `(plans, epochs)`, to be minimized; the control is plan 0.
        order: of the plans.
        judge: a pruner; None: nothing is stopped.
        slots: plans that train at a time.

    Returns:
        (epochs spent, best complete plan) after each complete trial, and the epochs spent.
    """
    epochs = curves.shape[1]
    waiting, running = list(enumerate(order)), {}
    answers, spent, best = [], 0, None
    while waiting or running:
        while waiting and len(running) < slots:
            trial, plan = waiting.pop(0)
            running[trial] = (plan, 0)
        for trial, (plan, age) in list(running.items()):
            age, value, spent = age + 1, float(curves[plan, age]), spent + 1
            running[trial] = (plan, age)
            if age == epochs:
                if judge is not None:
                    judge.stops(trial, age, value)
                    judge.end(trial, value)
                if best is None or value < curves[best, -1]:
                    best = plan
                answers.append((spent, best))
                del running[trial]
            elif judge is not None and judge.stops(trial, age, value) and trial != 0:
                judge.end(trial, None)
                del running[trial]
    return answers, spent


def measure(
    curves: np.ndarray,
    plans: Sequence,
    orders: int,
    names: Sequence[str] = PRUNERS,
    slots: int = WAVE,
) -> dict[str, dict]:
    """Replay pruners in all blocks.

    Returns:
        pruner -> found and regret: by block and budget, means over orders; epochs: by block,
        the share of those that training all plans takes; own and paired: found by block, by
        this pruner in the end and by paired with as many epochs.
    """
    rows: dict[str, list] = {name: [] for name in names}
    for block, values in enumerate(curves):
        by_order = [_one_order(values, plans, (block, n), names, slots) for n in range(orders)]
        for name in names:
            rows[name].append(
                [
                    np.mean(part, 0).tolist()
                    for part in zip(*(row[name] for row in by_order), strict=True)
                ]
            )
    keys = ("found", "regret", "epochs", "own", "paired")
    return {
        name: dict(zip(keys, map(list, zip(*parts, strict=True)), strict=True))
        for name, parts in rows.items()
    }


def _one_order(
    values: np.ndarray, plans: Sequence, seed: Sequence[int], names: Sequence[str], slots: int
) -> dict[str, list]:
    """Return found, regret, epochs, own and paired of each pruner in one replay."""
    last, whole = values[:, -1], values.size
    order = [0, *(1 + np.random.default_rng(seed).permutation(len(values) - 1))]
    ordered, epochs = [plans[plan] for plan in order], values.shape[1]
    done = {name: replay(values, order, pruner(name, epochs, ordered), slots) for name in names}

    def answer(name: str, spent: float) -> int:
        return max(((s, plan) for s, plan in done[name][0] if s <= spent), default=(0, 0))[1]

    rows = {}
    for name, (_, spent) in done.items():
        plans = [answer(name, part * whole) for part in BUDGETS]
        found = [plan == last.argmin() for plan in plans]
        regret = [last[plan] - last.min() for plan in plans]
        both = [answer(which, spent) == last.argmin() for which in (name, "paired")]
        rows[name] = [found, regret, spent / whole, *both]
    return rows


def interval(values: Sequence[float], digits: int = 2) -> str:
    """Return the mean over blocks with its 95 % t interval."""
    mean, reach = np.mean(values), stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return f"{mean:.{digits}f} ± {reach:.{digits}f}"


def report(results: dict[str, dict], orders: int, slots: int) -> str:
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "optuna", "scipy"))
    lines = [
        "# Pruning: who finds the winner of the full budget?",
        "",
        f"{date.today()}; {hardware('cpu')}; Python {platform.python_version()}, {packages}; "
        f"n = {BLOCKS} blocks x {orders} orders of {PLANS} plans a task, {slots} at a time; mean "
        "± half of the 95 % t interval over blocks.",
        "",
        f"`python benchmarks/pruning.py`; objective {METRIC} at the last epoch. The rule of paired "
        f"was chosen on {', '.join(TUNED)}; the other tasks judge it.",
        "",
        "Found: share of replays that answer the block's best plan after so much of the epochs "
        "of training all plans. Regret: what the answer is worse, x 1000. Epochs: what the pruner "
        "uses in all.",
    ]
    for task, by_pruner in results.items():
        tuned = " (the rule was chosen here)" if task in TUNED else ""
        lines += ["", f"## {task}{tuned}", ""]
        lines += _table(by_pruner)
    if judged := [task for task in results if task not in TUNED]:
        lines += _judged(results, judged)
    return "\n".join(lines) + "\n"


def _judged(results: dict[str, dict], judged: Sequence[str]) -> list[str]:
    """Return the tables of all judged tasks together, and those at equal epochs."""
    pooled = {
        name: {
            key: sum((results[task][name][key] for task in judged), [])
            for key in ("found", "epochs", "own", "paired")
        }
        for name in PRUNERS
    }
    for name in PRUNERS:  # regrets of different tasks have no unit in common
        pooled[name]["regret"] = sum((_relative(results[task], name) for task in judged), [])
    return [
        "",
        f"## All {len(judged)} judged tasks, {len(judged) * BLOCKS} blocks",
        "",
        f"Regret in per cent of the regret that no pruning has after {BUDGETS[0]:.0%}.",
        "",
        *_table(pooled, scale=100),
        "",
        *_same_share(results, pooled),
        "",
        *_as_many(results, pooled),
    ]


def _relative(by_pruner: dict, name: str) -> list[list[float]]:
    unit = np.mean([row[0] for row in by_pruner["none"]["regret"]])
    return (np.asarray(by_pruner[name]["regret"]) / unit).tolist()


def _table(by_pruner: dict[str, dict], scale: float = 1000) -> list[str]:
    shown = (0.5, 0.75, 1.0)
    heads = [f"found at {b:.0%}" for b in shown] + [f"regret at {b:.0%}" for b in shown]
    lines = ["| pruner | " + " | ".join(heads) + " | epochs |", "|" + "---|" * (len(heads) + 2)]
    for name, result in by_pruner.items():
        columns = [BUDGETS.index(budget) for budget in shown]
        found, regret = (np.asarray(result[key])[:, columns] for key in ("found", "regret"))
        cells = [interval(found[:, i]) for i in range(len(shown))]
        cells += [f"{scale * regret[:, i].mean():.2f}" for i in range(len(shown))]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {np.mean(result['epochs']):.2f} |")
    return lines


def _same_share(results: dict[str, dict], pooled: dict[str, dict]) -> list[str]:
    """Return the table of paired against each pruner, when all get the same epochs."""
    heads = [f"at {budget:.0%}" for budget in COMPARED]
    lines = [
        "## At equal epochs: the same share for all",
        "",
        "Found by paired minus found by the other, in the same replays; p two-sided, of the mean "
        "over the four shares.",
        "",
        "| pruner | task | " + " | ".join(heads) + " | mean (p) |",
        "|" + "---|" * (len(COMPARED) + 3),
    ]
    columns = [BUDGETS.index(budget) for budget in COMPARED]
    for name in (name for name in PRUNERS if name != "paired"):
        for task, by_pruner in {**results, "all judged": pooled}.items():
            both = [np.asarray(by_pruner[n]["found"])[:, columns] for n in ("paired", name)]
            difference = both[0] - both[1]
            cells = [interval(difference[:, i]) for i in range(len(columns))]
            cells.append(_with_p(difference.mean(1)))
            lines.append(f"| {name} | {task} | " + " | ".join(cells) + " |")
    return lines


def _with_p(difference: np.ndarray) -> str:
    p = stats.ttest_1samp(difference, 0).pvalue if difference.any() else 1.0
    return f"{interval(difference)} (p = {p:.2g})"


def _as_many(results: dict[str, dict], pooled: dict[str, dict]) -> list[str]:
    """Return the table of each pruner against paired, with as many epochs as it used in all."""
    lines = [
        "## At equal epochs: as many as the other uses in all",
        "",
        "Each pruner when it is through with all plans, and paired on the same orders cut off "
        "at as many epochs.",
        "",
        "| pruner | task | epochs | found | found by paired | paired minus it (two-sided p) |",
        "|---|---|---|---|---|---|",
    ]
    for name in PRUNERS:
        if name in ("none", "paired"):
            continue
        for task, by_pruner in {**results, "all judged": pooled}.items():
            one = by_pruner[name]
            difference = np.asarray(one["paired"]) - np.asarray(one["own"])
            lines.append(
                f"| {name} | {task} | {np.mean(one['epochs']):.2f} | {interval(one['own'])} | "
                f"{interval(one['paired'])} | {_with_p(difference)} |"
            )
    return lines


def recorded(task: str) -> tuple[np.ndarray, list]:
    """Return the recorded curves of a task, `(blocks, plans, epochs)`, and its plans."""
    from droptune import Plan

    path = RESULTS / f"pruning-{task}.npz"
    if not path.exists():
        raise SystemExit(f"{path} is not there; run with --record first")
    with np.load(path) as stored:
        plans = [Plan.from_json(json.loads(text)) for text in stored["plans"]]
        return stored[METRIC].astype(float), plans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--record", action="store_true", help="train all plans first")
    parser.add_argument("--orders", type=int, default=5, help="replays of each block")
    parser.add_argument("--slots", type=int, default=WAVE, help="plans that train at a time")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    args = parser.parse_args()
    if args.record:
        for task in args.tasks:
            found = record(task, lambda text: print(text, file=sys.stderr))
            np.savez_compressed(RESULTS / f"pruning-{task}.npz", **found)
    results: dict[str, dict] = {}
    for task in args.tasks:
        began = time.monotonic()
        results[task] = measure(*recorded(task), args.orders, slots=args.slots)
        print(f"{task}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    text = report(results, args.orders, args.slots)
    print(text)
    if args.save:
        name = "pruning-cpu" if args.slots == WAVE else f"pruning-cpu-{args.slots}-slots"
        (RESULTS / f"{name}.md").write_text(text)
        (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
