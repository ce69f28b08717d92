"""Controlled dropout: whole training steps of an MLP, against the same model with nn.Dropout.

    python benchmarks/controlled.py                  # on CPU, all tables, some minutes
    python benchmarks/controlled.py --quick          # the first table alone
    python benchmarks/controlled.py --device cuda
    python benchmarks/controlled.py --save           # also writes benchmarks/results/

The model is 784-width-width-10 with ReLU, and dropout behind both ReLUs. A step is forward,
backward and optimizer.step() on one batch of random numbers in float32. Within a round the arms
take turns, forwards and backwards, step by step, and the lowest time of a round counts, for what
else the machine does only adds. Ratios are taken within a round; the median of the rounds is
reported with the lowest and highest.

Arms:
    nn.Dropout   torch's own, as users write it: what all others are compared with
    none         no dropout at all
    mask         kind controlled as a mask: what it is where smaller matrices cannot be had
    smaller      kind controlled with smaller matrices, also where droptune would not use them
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from throughput import hardware, spread
from torch import Tensor, nn

from droptune import Plan, apply, chains, columns

#: Times the throughput of nn.Dropout, at rate 0.5, width 2048 and batch 512.
GOAL = 1.8
ARMS = ("nn.Dropout", "none", "mask", "smaller")
OPTIMIZERS: dict[str, Callable] = {
    "AdamW": lambda p: torch.optim.AdamW(p),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, fused=True),
    "SGD, momentum": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
}
HEADLINE = (2048, 512, 0.5)
#: Of the second table.
OPTIMIZER = "AdamW, fused"
WIDTHS, BATCHES, RATES = (128, 512, 2048, 4096), (32, 128, 512, 2048), (0.1, 0.2, 0.3, 0.5, 0.7)
#: Width and batch of the table over rates.
AT = (1024, 512)

used = columns.pays


def model(arm: str, width: int, rate: float, device: str) -> nn.Module:
    """Return an MLP with an arm's dropout on it, in training."""
    torch.manual_seed(0)
    mlp = nn.Sequential(
        nn.Linear(784, width), nn.ReLU(), nn.Dropout(rate),
        nn.Linear(width, width), nn.ReLU(), nn.Dropout(rate), nn.Linear(width, 10),
    ).to(device)  # fmt: skip
    if arm == "none":
        apply(mlp, Plan.none())
    elif arm != "nn.Dropout":
        apply(mlp, Plan({site: ("controlled", rate) for site in ("2", "5")}))
    if arm == "mask":
        chains.release(mlp)  # it never looks for layers that could be smaller
    return mlp.train()


def stepper(arm: str, case: tuple, optimizer: str, device: str) -> Callable[[], float]:
    """Return a function that takes a training step and returns its seconds."""
    width, batch, rate = case
    mlp = model(arm, width, rate, device)
    steps = OPTIMIZERS[optimizer](mlp.parameters())
    x = torch.randn(batch, 784, device=device)
    y = torch.randint(10, (batch,), device=device)

    def step() -> float:
        synchronize(x)
        started = time.perf_counter()
        steps.zero_grad()
        F.cross_entropy(mlp(x), y).backward()
        steps.step()
        synchronize(x)
        return time.perf_counter() - started

    return step


def synchronize(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def measure(
    case: tuple, optimizer: str, device: str, rounds: int, arms: tuple = ARMS
) -> list[dict[str, float]]:
    """Return for each round arm -> ms a step; the first steps warm up and are left out."""
    steps = {arm: stepper(arm, case, optimizer, device) for arm in arms}
    for step in steps.values():
        step()
    taken = sum(step() for step in steps.values())
    turns = max(2, min(40, int(1.0 / taken)))
    kept = []
    for _ in range(rounds):
        lowest = dict.fromkeys(arms, float("inf"))
        for turn in range(turns):
            for arm in arms if turn % 2 == 0 else arms[::-1]:
                lowest[arm] = min(lowest[arm], steps[arm]())
        kept.append({arm: 1e3 * seconds for arm, seconds in lowest.items()})
    print(f"{optimizer}, width, batch, rate {case} measured", file=sys.stderr)
    return kept


def times(rounds: list[dict[str, float]], arm: str) -> str:
    """Return an arm's throughput as a multiple of nn.Dropout's."""
    return spread([taken["nn.Dropout"] / taken[arm] for taken in rounds], 2)


def head(results: dict, device: str, rounds: int) -> list[str]:
    lines = [
        "# Controlled dropout: training steps with smaller matrices",
        "",
        f"{date.today()}; {hardware(device)}; Python {platform.python_version()}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; n = {rounds} rounds, "
        "median (lowest to highest).",
        "",
        "Whole training steps of 784-width-width-10 with two sites, float32; `times` is the "
        f"throughput as a multiple of nn.Dropout's; `python benchmarks/controlled.py --device "
        f"{device}`.",
        "",
        f"## Width {HEADLINE[0]}, batch {HEADLINE[1]}, rate {HEADLINE[2]}",
        "",
        "| optimiser | arm | ms a step | times |",
        "|---|---|---|---|",
    ]
    for optimizer, taken in results.items():
        for arm in ARMS:
            ms = spread([ms[arm] for ms in taken], 1)
            lines.append(f"| {optimizer} | {arm} | {ms} | {times(taken, arm)} |")
    return [*lines, "", f"Goal for smaller: {GOAL} times."]


def grid(results: dict[tuple, list[dict[str, float]]], device: str) -> list[str]:
    rounds = len(next(iter(results.values())))
    lines = [
        "",
        f"## Where it pays ({OPTIMIZER}, n = {rounds} rounds)",
        "",
        "Layers 1 and 2: whether droptune uses smaller matrices there, on its own account.",
        "",
        "| width | batch | rate | nn.Dropout, ms | mask, times | smaller, times | layers 1, 2 |",
        "|---|---|---|---|---|---|---|",
    ]
    for (width, batch, rate), taken in results.items():
        layers = (nn.Linear(n, width, device=device) for n in (784, width))
        chosen = ["yes" if used(batch, layer, rate) else "no" for layer in layers]
        ms = spread([ms["nn.Dropout"] for ms in taken], 1)
        cells = [width, batch, rate, ms, times(taken, "mask"), times(taken, "smaller")]
        lines.append(f"| {' | '.join(map(str, cells))} | {', '.join(chosen)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="the first table alone")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    columns.pays = lambda *_: True
    heads = {name: measure(HEADLINE, name, args.device, args.rounds) for name in OPTIMIZERS}
    cases = [(width, batch, 0.5) for width in WIDTHS for batch in BATCHES]
    cases += [(*AT, rate) for rate in RATES]
    few = max(1, args.rounds // 3)
    arms = ("nn.Dropout", "mask", "smaller")
    grids = {
        case: measure(case, OPTIMIZER, args.device, few, arms)
        for case in ([] if args.quick else cases)
    }
    lines = head(heads, args.device, args.rounds) + (grid(grids, args.device) if grids else [])
    print("\n".join(lines))
    if args.save:
        path = Path(__file__).parent / "results" / f"controlled-{args.device.split(':')[0]}"
        path.with_suffix(".md").write_text("\n".join(lines) + "\n")
        kept = {"head": heads, "grid": {str(case): taken for case, taken in grids.items()}}
        path.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
