"""The loss of a trained member on both splits, in eval mode: what droptune/gap.py reads."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from droptune import gap
from droptune.data import Data, Split
from droptune.kinds import derive
from droptune.metrics import IGNORED
from droptune.trainers.base import EVAL_BATCHES, Loss, Task, mean_loss


def fit_metrics(
    task: Task, data: Data, seed: int, output: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """Return the metrics that tell how a member fits.

    As many training samples are looked at as there are validation samples, drawn at random.

    Args:
        task: what it was trained on.
        data: its splits, on the member's device.
        seed: of the draw.
        output: the member in eval mode; called without gradients.
    """
    loss, size = mean_loss(task.loss), EVAL_BATCHES * task.batch_size
    with torch.no_grad():
        parts = {
            name: _parts(split, len(data.val), derive(seed, "fit", name), output, loss, size)
            for name, split in (("train", data.train), ("val", data.val))
        }
    return gap.measured(parts["train"], parts["val"], constant_loss(task.loss, data.train.y))


def _parts(
    split: Split,
    most: int,
    seed: int,
    output: Callable[[Tensor], Tensor],
    loss: Loss,
    size: int,
) -> list[float]:
    """Return the mean loss of each part of a split's samples, in an order of their own.

    Args:
        split: whose samples.
        most: of them.
        seed: of their order.
        output: of samples.
        loss: of a part's outputs and targets.
        size: samples at once.
    """
    generator = torch.Generator().manual_seed(seed % 2**31)
    rows = torch.randperm(len(split), generator=generator)[:most].to(split.x.device)
    outputs = torch.cat([output(split.x[some]) for some in rows.split(size)])
    count = min(gap.PARTS, len(rows))
    pairs = zip(outputs.tensor_split(count), split.y[rows].tensor_split(count), strict=True)
    return [loss(part, y).item() for part, y in pairs]


def constant_loss(loss: str | Loss, y: Tensor) -> float | None:
    """Return the loss of the best prediction that is the same for all samples.

    The entropy of the labels' shares, or the variance; None for a loss of the user's own.

    Args:
        loss: a name or a function, as in `Task`.
        y: targets, `samples x ...`.
    """
    if not isinstance(loss, str):
        return None
    if loss == "cross_entropy":
        labels = y[y != IGNORED]
        shares = torch.bincount(labels).double() / len(labels)
        return -torch.special.xlogy(shares, shares).sum().item()
    mean = y.double().mean(0)
    if loss == "mse":
        return F.mse_loss(mean.expand(y.shape), y.double()).item()
    return F.binary_cross_entropy(mean, mean).item()
