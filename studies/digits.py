"""digits: an MLP on 8x8 images, 1079 of them to train on.

Found: dropout helps. 0.10 at the input, 0.12 and 0.10 after the hidden layers take the validation
loss from 0.0862 to 0.0771: -0.0092 nats, 95 % interval [-0.0153, -0.0031], p = 0.0066 over 8
paired seeds (corrected for 3 finalists). On the test split the loss falls by 0.0133 [0.0075,
0.0191]; the accuracy, 0.9645, does not change [-0.0065, +0.0065]. 64 trials of 30 epochs and 32
runs of confirmation on 2 cores of an AMD EPYC (Zen 5), torch 2.13.0: 10 s.
"""

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


# 359 rows to validate on say little a seed, and a run takes a tenth of a second: twice the seeds.
study = dt.Study(
    "digits",
    model=build,
    data=dt.Data.digits(),
    epochs=30,
    objective="val_loss",
    confirm_blocks=16,
)
