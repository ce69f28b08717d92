"""The tasks of pruning.py, and how their full curves are recorded.

Each task has 40 plans: no dropout, droptune's other fixed plans, and random plans of its space.
In each block all of them are trained to the end by the fused trainer, as a study without pruning
trains them: in waves of 8 that start at clock 0, E, 2E ... of the block, the control in the
first. Which plan is in which wave is drawn anew in each block.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

PLANS, BLOCKS, WAVE = 40, 10, 8
METRICS = ("val_loss", "val_accuracy")


@dataclass(frozen=True)
class Recorded:
    """A task: how its data and model are made, and how it is trained."""

    data: Callable
    model: Callable
    epochs: int
    lr: float = 1e-3
    loss: str = "cross_entropy"
    lr_schedule: str = "constant"


def mlp(inputs: int, outputs: int, width: int = 128, depth: int = 2) -> Callable:
    from torch import nn

    def build() -> nn.Sequential:
        widths = [inputs, *[width] * depth]
        hidden = [(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
        return nn.Sequential(*chain(*hidden), nn.Linear(width, outputs))

    return build


def cnn() -> Callable:
    from torch import nn

    return lambda: nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def few(name: str, rows: int):
    """Return a built-in set with so many training rows, and at most 1000 to validate."""
    from droptune import Data

    full = getattr(Data, name)()
    return Data(
        train=(full.train.x[:rows].flatten(1), full.train.y[:rows]),
        val=(full.val.x[:1000].flatten(1), full.val.y[:1000]),
    )


def friedman():
    """Return a regression on ten inputs, five of them idle; 400 rows to train, 1000 to validate."""
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(1400, 10, noise=1.0, random_state=0)
    y = (y - y[:400].mean()) / y[:400].std()
    return _drawn(x, y[:, None].astype(np.float32), 400)


def classes():
    """Return four classes, a tenth of the labels wrong; 500 rows to train, 1000 to validate."""
    from sklearn.datasets import make_classification

    made = make_classification(
        1500, 20, n_informative=6, n_redundant=4, n_classes=4, flip_y=0.1, class_sep=1.5,
        random_state=0,
    )  # fmt: skip
    return _drawn(*made, 500)


def _drawn(x: np.ndarray, y: np.ndarray, train: int):
    from droptune import Data

    x = ((x - x[:train].mean(0)) / x[:train].std(0)).astype(np.float32)
    return Data(train=(x[:train], y[:train]), val=(x[train:], y[train:]))


TASKS = {
    "digits-mlp": Recorded(lambda: few("digits", 1100), mlp(64, 10), 60),
    "breast-cancer-mlp": Recorded(lambda: few("breast_cancer", 400), mlp(30, 2), 60),
    "digits-cnn": Recorded(lambda: few("digits", 400), cnn(), 50),
    "fashion-mlp": Recorded(lambda: few("fashion_mnist", 500), mlp(784, 10, 64), 40),
    "diabetes-mlp": Recorded(lambda: few("diabetes", 300), mlp(10, 1, 64), 60, 3e-3, "mse"),
    "digits-mlp-cosine": Recorded(
        lambda: few("digits", 500), mlp(64, 10), 60, lr_schedule="cosine"
    ),
    "wine-mlp": Recorded(lambda: few("wine", 120), mlp(13, 3, 32), 60, 3e-3),
    "digits-small": Recorded(lambda: few("digits", 300), mlp(64, 10, 64), 60, 3e-3),
    "digits-deep": Recorded(lambda: few("digits", 700), mlp(64, 10, 48, 4), 30),
    "diabetes-cosine": Recorded(
        lambda: few("diabetes", 300), mlp(10, 1), 50, loss="mse", lr_schedule="cosine"
    ),
    "friedman-mlp": Recorded(friedman, mlp(10, 1, 64), 50, 3e-3, "mse"),
    "classes-mlp": Recorded(classes, mlp(20, 4, 96), 50),
}


def plans_of(task: Recorded, data) -> tuple[list, dict]:
    """Return the plans, no dropout first, and the kinds at each site."""
    import optuna

    from droptune import Plan, Space, find_sites
    from droptune.definition import all_kinds

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = Space(find_sites(task.model(), data.example()))
    plans = list(space.fixed_plans(Plan.none()).values())
    sampler = optuna.samplers.PartialFixedSampler(
        dict(space.settled), optuna.samplers.RandomSampler(seed=0)
    )
    study = optuna.create_study(sampler=sampler)
    while len(plans) < PLANS:
        if (plan := space.suggest(study.ask())) not in plans:
            plans.append(plan)
    assert plans[0] == Plan.none()
    return plans, all_kinds(space, plans)


def record(name: str, say: Callable[[str], object]) -> dict[str, np.ndarray]:
    """Train all plans of a task in all blocks.

    Returns:
        metric -> values of shape `(blocks, plans, epochs)`; what diverged is NaN from there on;
        plans -> the plans, as JSON text.
    """
    from droptune.optimize import block_seed
    from droptune.trainers import FusedTrainer, Task

    recorded, data = TASKS[name], TASKS[name].data()
    plans, kinds = plans_of(recorded, data)
    task = Task(
        recorded.model, data, kinds, recorded.loss, recorded.epochs, 64,
        lr=recorded.lr, lr_schedule=recorded.lr_schedule,
    )  # fmt: skip
    curves = {m: np.full((BLOCKS, len(plans), recorded.epochs), np.nan) for m in METRICS}
    trainer = FusedTrainer(task, WAVE, "cpu")
    for block in range(BLOCKS):
        order = [0, *(1 + np.random.default_rng(block).permutation(len(plans) - 1))]
        for wave in range(0, len(plans), WAVE):
            trainer.begin(block_seed(0, block), wave // WAVE * recorded.epochs)
            members = dict(enumerate(order[wave : wave + WAVE]))
            for slot, plan in members.items():
                trainer.start(slot, plans[plan])
            for epoch in range(recorded.epochs):
                for slot, scores in trainer.epoch().items():
                    for metric in METRICS:
                        value = np.nan if scores.failed else scores.metrics.get(metric, np.nan)
                        curves[metric][block, members[slot], epoch] = value
            for slot in members:
                trainer.stop(slot)
        say(f"{name}: block {block + 1} of {BLOCKS}")
    found = {m: v.astype(np.float32) for m, v in curves.items() if not np.isnan(v).all()}
    return found | {"plans": np.array([json.dumps(plan.to_json()) for plan in plans])}
