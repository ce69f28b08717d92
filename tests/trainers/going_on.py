"""Tasks that use every kind of dropout; as a program, it goes on with what a folder holds.

python -m tests.trainers.going_on FOLDER     prints case -> slot -> rows of scores, as JSON
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from droptune import find_sites
from droptune.checkpoints import Checkpoints
from droptune.consistency import Term
from droptune.data import Data
from droptune.kinds import KINDS
from droptune.plan import Entry, Plan
from droptune.trainers import FusedTrainer, SerialTrainer, Task, Trainer
from tests.recurring import TOKENS, inside, next_token, words
from tests.trainers.conftest import make_data

EPOCHS = 2
TRAINERS = {"serial": SerialTrainer, "fused": FusedTrainer}


def fitting(layout: str) -> list[str]:
    return [name for name, kind in KINDS.items() if kind.fits(layout, "residual")]


def flat() -> tuple[Task, list[Plan]]:
    """Vectors: kinds of single units, learned rates, terms, training settings, schedules."""
    kinds = {"1": fitting("NF"), "3": ["standard"]}
    model = lambda: nn.Sequential(  # noqa: E731
        nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    task = Task(model, make_data(), kinds, epochs=8, batch_size=16, lr=0.02, lr_schedule="cosine")
    steps = ((0.0, 0.2), (0.4, 0.5))
    plans = [Plan({"1": (kind, 0.3)}) for kind in kinds["1"]]
    plans += [Plan({"1": ("concrete", 0.3)}, Term(name, 0.5)) for name in ("r_drop", "fraternal")]
    plans += [Plan({"3": ("standard", 0.2)}, Term("adversarial", 0.5, 0.2, 0.2))]
    plans += [Plan({"1": Entry("standard", 0, "steps", steps=steps)})]
    plans += [Plan({"1": Entry("gaussian", 0.4, how, 0.6)}) for how in ("early", "late", "ramp")]
    said = {"label_smoothing": 0.1, "lr": 0.01, "weight_decay": 0.2}
    return task, [*plans, Plan({"3": ("standard", 0.1)}, training=said)]


def images() -> tuple[Task, list[Plan]]:
    """Maps, behind a norm whose statistics are taken again; momentum."""
    kinds = {"2": fitting("NCHW")}
    model = lambda: nn.Sequential(  # noqa: E731
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(147, 3),
    )  # fmt: skip
    task = Task(
        model, make_data(shape=(1, 11, 11)), kinds, epochs=8, batch_size=16, lr=0.02,
        optimizer="sgd", recalibrate=True,
    )  # fmt: skip
    return task, [Plan.none(), *(Plan({"2": (kind, 0.4)}) for kind in kinds["2"])]


def sentences() -> tuple[Task, list[Plan]]:
    """Recurrent layers, with every kind at every place inside them."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(11, (32, 7), generator=generator)
    x, y = tokens[:, :-1], tokens[:, 1:]
    data = Data((x[:24], y[:24]), (x[24:], y[24:]))
    build = partial(words, dtype=torch.float64)
    kinds = inside(build(), TOKENS)
    plans = [Plan({site: (kind, 0.4)}) for site, fit in kinds.items() for kind in fit]
    sites = find_sites(build(), TOKENS)
    kinds |= {site.name: ["standard"] for site in sites if site.name not in kinds}
    task = Task(build, data, kinds, loss=next_token, epochs=8, batch_size=8, lr=0.02)
    return task, [Plan.none(), *plans]


CASES: dict[str, Callable[[], tuple[Task, list[Plan]]]] = {
    "flat": flat,
    "images": images,
    "sentences": sentences,
}


def scores(trainer: Trainer) -> dict[str, list]:
    """Train on; return slot -> one row an epoch: train loss, then the metrics."""
    found: dict[str, list] = {}
    for _ in range(EPOCHS):
        for slot, score in trainer.epoch().items():
            assert score.failed is None
            found.setdefault(str(slot), []).append([score.train_loss, *score.metrics.values()])
    return found


def main(folder: Path) -> None:
    kept, found = Checkpoints(folder), {}
    for name in kept.names():
        case, _, how = name.partition("-")
        task, plans = CASES[case]()
        trainer = TRAINERS[how](task, len(plans))
        saved, about = kept.load(name)
        assert about == {"case": case}
        trainer.restore(saved)
        found[name] = scores(trainer)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
