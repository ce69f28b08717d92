"""What dropout costs an element: droptune's elementwise kinds against torch's own.

    python benchmarks/masks.py                  # on CPU
    python benchmarks/masks.py --threads 1      # where other work shares the cores
    python benchmarks/masks.py --device cuda
    python benchmarks/masks.py --save           # also writes benchmarks/results/

Each figure is one forward and one backward pass over float32 numbers, in nanoseconds an element.
Within a round the arms take turns, forwards and backwards, call by call, and the lowest time of a
round counts, for what else the machine does only adds. Ratios are taken within a round; the median
of the rounds is reported with the lowest and highest.

Arms:
    F.dropout        torch's standard dropout: what all others are compared with
    F.alpha_dropout  torch's alpha dropout
    x * (1 + s n)    Gaussian noise as one would write it, with torch.randn
    standard, gaussian, alpha    droptune's kinds; each is also compared with its own peer above
    stochastic, concrete         kinds that torch has no peer for
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
from torch import Tensor

from droptune.kinds import KINDS

RATE = 0.3
PEERS = {"standard": "F.dropout", "gaussian": "x * (1 + s n)", "alpha": "F.alpha_dropout"}
KIND_ARMS = (*PEERS, "stochastic", "concrete")
SIZES = (10**5, 10**6, 10**7)
#: What standard is allowed to take, as a part of F.dropout's time.
GOALS = {"cpu": {10**5: 0.25, 10**6: 0.25, 10**7: 0.35}, "cuda": dict.fromkeys(SIZES, 1.0)}


def gaussian(x: Tensor) -> Tensor:
    return x * (1 + (RATE / (1 - RATE)) ** 0.5 * torch.randn_like(x))


def arms(device: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return arm -> a function that drops."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "F.dropout": lambda x: F.dropout(x, RATE),
        "F.alpha_dropout": lambda x: F.alpha_dropout(x, RATE, training=True),
        "x * (1 + s n)": gaussian,
    }
    for name in KIND_ARMS:
        functions[name] = KINDS[name]("site", RATE).to(device).train()
    return functions


def seconds(function: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> float:
    """Time one forward and one backward pass."""
    synchronize(x)
    started = time.perf_counter()
    function(x).backward(gradient)
    synchronize(x)
    taken = time.perf_counter() - started
    x.grad = None
    return taken


def synchronize(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def measure(size: int, device: str, rounds: int) -> list[dict[str, float]]:
    """Return for each round arm -> ns an element; a first round warms up and is left out."""
    functions = arms(device)
    x = torch.randn(size, device=device).requires_grad_()
    gradient = torch.ones_like(x)
    turns = max(8, min(100, 2 * 10**7 // size))
    kept = []
    for _ in range(rounds + 1):
        lowest = dict.fromkeys(functions, float("inf"))
        for turn in range(turns):
            for name in list(functions) if turn % 2 == 0 else list(functions)[::-1]:
                lowest[name] = min(lowest[name], seconds(functions[name], x, gradient))
        kept.append({name: 1e9 * taken / size for name, taken in lowest.items()})
    return kept[1:]


def report(results: dict[int, list[dict[str, float]]], device: str) -> str:
    rounds = len(next(iter(results.values())))
    lines = [
        "# Masks: what dropout costs an element",
        "",
        f"{date.today()}; {hardware(device)}; Python {platform.python_version()}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; n = {rounds} rounds, "
        "median (lowest to highest).",
        "",
        f"One forward and one backward pass, float32, rate {RATE}; "
        f"`python benchmarks/masks.py --device {device}`.",
        "",
        "| elements | arm | ns an element | part of F.dropout's time | part of its peer's time |",
        "|---|---|---|---|---|",
    ]
    for size, taken in results.items():
        for arm in taken[0]:
            cells = [f"{size:.0e}".replace("e+0", "e"), arm, spread([r[arm] for r in taken], 2)]
            for other in ("F.dropout", PEERS.get(arm)):
                known = other is not None and other != arm
                cells.append(spread([r[arm] / r[other] for r in taken], 3) if known else "")
            lines.append(f"| {' | '.join(cells)} |")
    goals = GOALS[device.split(":")[0]]
    allowed = ", ".join(f"{part} at {size:.0e}".replace("e+0", "e") for size, part in goals.items())
    return "\n".join([*lines, "", f"Goal for standard, as part of F.dropout: {allowed}."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {}
    for size in args.sizes:
        results[size] = measure(size, args.device, args.rounds)
        print(f"{size} elements measured", file=sys.stderr)
    text = report(results, args.device)
    print(text)
    if args.save:
        path = Path(__file__).parent / "results" / f"masks-{args.device.split(':')[0]}"
        path.with_suffix(".md").write_text(text)
        path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
