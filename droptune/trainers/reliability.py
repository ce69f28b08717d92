"""Reliability bins: whether a member is right as often as it is sure, on the validation split."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from droptune.data import Split
from droptune.trainers.base import EVAL_BATCHES, Task, correct

BINS = 15
"""Bins of a split, of equally many samples."""

Bins = list[list[float]]


def reliability(task: Task, split: Split, forward: Callable[[Tensor], Tensor]) -> Bins:
    """Return mean confidence, accuracy and number of samples of each bin.

    Samples are sorted by confidence, the probability of the predicted class, and cut into
    bins of equal size. As the reliability diagrams of Guo et al. 2017
    (https://arxiv.org/abs/1706.04599), with bins of equal mass (Nixon et al. 2019,
    https://arxiv.org/abs/1904.01685): trained networks are sure of most samples, which would
    leave most bins of equal width nearly empty.

    Args:
        task: what is trained.
        split: on the device.
        forward: a member in eval mode, `batch x ...` inputs -> outputs.

    Returns:
        (confidence, accuracy, count) of each bin, the least confident first; nothing where the
        loss says nothing of classes, or an output is not finite.
    """
    sure, right = [], []
    size = EVAL_BATCHES * task.batch_size
    with torch.no_grad():
        for x, y in zip(split.x.split(size), split.y.split(size), strict=True):
            output = forward(x)
            hits = correct(task.loss, output, y)
            if hits is None or hits.dim() != 1 or y.dim() != 1:
                return []
            sure.append(_confidence(task.loss, output.float()))
            right.append(hits)
    confidence, hit = torch.cat(sure).cpu().double().numpy(), torch.cat(right).cpu().numpy()
    if not np.isfinite(confidence).all():
        return []
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, min(BINS, len(order))) if len(part)]
    return [[float(confidence[p].mean()), float(hit[p].mean()), len(p)] for p in parts]


def _confidence(loss: object, output: Tensor) -> Tensor:
    """Return the probability of the predicted class, `batch`."""
    if loss == "cross_entropy":
        return output.softmax(-1).amax(-1)
    chance = output.flatten().sigmoid()
    return torch.maximum(chance, 1 - chance)
