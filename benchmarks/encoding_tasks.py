"""The tasks of encoding.py: small networks on real data, and plans trained fused."""

from collections.abc import Callable, Sequence

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import Tensor, nn

from droptune import Data, Plan, Study
from droptune.definition import all_kinds
from droptune.optimize import block_seed
from droptune.trainers import FusedTrainer, Task

#: Members trained side by side.
WIDTH = 32


class Former(nn.Module):
    """A transformer of 12 blocks that reads a digit as 8 rows of 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(8, 16)
        self.place = nn.Parameter(0.1 * torch.randn(8, 16))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True, norm_first=True)
            for _ in range(12)
        )
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x.unflatten(-1, (8, 8))) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def mlp(inputs: int, width: int, depth: int, outputs: int) -> Callable[[], nn.Module]:
    """Return what builds an MLP with dropout of 0.2 behind each hidden layer."""

    def build() -> nn.Module:
        layers: list[nn.Module] = [nn.Dropout(0.0)]
        for i in range(depth):
            layers += [nn.Linear(width if i else inputs, width), nn.ReLU(), nn.Dropout(0.2)]
        return nn.Sequential(*layers, nn.Linear(width, outputs))

    return build


def data(load: Callable, train: int, val: int, regression: bool = False) -> Data:
    """Return a set's rows in a fixed order: few to train on, so that a network overfits."""
    x, y = (torch.tensor(part, dtype=torch.float32) for part in load(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    seen = x[:train]
    x = (x - seen.mean(0)) / seen.std(0) if load is not load_digits else x / 16
    y = ((y - y[:train].mean()) / y[:train].std())[:, None] if regression else y.long()
    ends = ((0, train), (train, train + val), (train + val, len(x)))
    parts = [(x[low:high], y[low:high]) for low, high in ends]
    return Data(train=parts[0], val=parts[1], test=parts[2])


def _digits() -> dict:
    return {"model": mlp(64, 48, 6, 10), "data": data(load_digits, 300, 700), "epochs": 40}


def _cancer() -> dict:
    return {"model": mlp(30, 32, 5, 2), "data": data(load_breast_cancer, 150, 300), "epochs": 40}


def _diabetes() -> dict:
    split = data(load_diabetes, 150, 200, regression=True)
    return {"model": mlp(10, 32, 5, 1), "data": split, "epochs": 40, "loss": "mse"}


def _former() -> dict:
    # So few rows and so many steps that without dropout it overfits.
    learning = {"epochs": 40, "lr": 5e-3, "batch_size": 25}
    return {"model": Former, "data": data(load_digits, 100, 300), **learning}


TASKS = {
    "digits": ("digits, MLP of 6 layers of 48", _digits),
    "cancer": ("breast cancer, MLP of 5 layers of 32", _cancer),
    "diabetes": ("diabetes, MLP of 5 layers of 32, mse", _diabetes),
    "transformer": ("digits, transformer of 12 blocks", _former),
}


def study(task: str, encoding: str) -> Study:
    """Return the study of a task; it is not run as one, but says what the plans are."""
    settings = TASKS[task][1]()
    return Study(task, **{"batch_size": 50, "lr": 3e-3, "encoding": encoding} | settings)


class Bench:
    """Trains plans of a task, many at once."""

    def __init__(self, task: str) -> None:
        one = study(task, "site")
        fixed = one.space.fixed_plans(one.as_given()).values()
        self._task: Task = one.task(all_kinds(one.space, fixed))
        self._epochs = one.epochs
        self._trainers: dict[int, FusedTrainer] = {}

    def train(self, plans: Sequence[Plan], block: int) -> list[float]:
        """Return the validation loss after the last epoch, in the order of the plans."""
        if len(plans) > WIDTH:
            return self.train(plans[:WIDTH], block) + self.train(plans[WIDTH:], block)
        slots = next(n for n in (4, 8, 16, WIDTH) if n >= len(plans))
        if slots not in self._trainers:
            self._trainers[slots] = FusedTrainer(self._task, slots, torch.device("cpu"))
        trainer = self._trainers[slots]
        trainer.begin(block_seed(0, block))
        for slot, plan in enumerate(plans):
            trainer.start(slot, plan)
        for _ in range(self._epochs):
            scores = trainer.epoch()
        for slot in range(len(plans)):
            trainer.stop(slot)
        return [scores[slot].metrics["val_loss"] for slot in range(len(plans))]
