"""digits: an MLP on 8x8 images."""

from torch import nn

import droptune as dt


def build() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


study = dt.Study("digits", model=build, data=dt.Data.digits(), epochs=30, objective="val_loss")
