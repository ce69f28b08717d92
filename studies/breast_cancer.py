"""breast cancer: a small table, 341 rows to train on."""

from torch import nn

import droptune as dt


def build() -> nn.Module:
    return nn.Sequential(
        nn.Linear(30, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 1),
    )


study = dt.Study(
    "breast_cancer",
    model=build,
    data=dt.Data.breast_cancer(),
    loss="binary_cross_entropy",
    epochs=60,
    batch_size=32,
)
