"""Statistics of BatchNorm, taken again without dropout.

Dropout in front of a BatchNorm changes the variance that the layer sees: in training it is
that of noisy activations, in eval mode that of clean ones, while the running statistics hold
the former (Li, Chen, Hu, Yang, https://arxiv.org/abs/1801.05134). Taken again over training
batches with dropout off, as the means of the batches' own, they fit what eval mode sees.
Weights stay as they are.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

#: More batches than these change little; where an epoch has fewer, it is one pass.
BATCHES = 200


def recalibrate(
    model: nn.Module,
    buffers: Mapping[str, Tensor],
    forward: Callable[[Tensor], object],
    order: Sequence[Tensor],
) -> None:
    """Put the means over training batches in place of the running statistics.

    Args:
        model: in training mode; left in eval mode. Layers that it keeps in eval mode stay as
            they are.
        buffers: its buffers by name, or those of several models, stacked.
        forward: runs it on the samples with these numbers; called without gradients.
        order: the numbers of the samples of each batch.
    """
    layers = norms(model)
    if not layers:
        return
    names = [f"{path}.{what}" for path in layers for what in ("running_mean", "running_var")]
    kept = {name: b.clone() for name, b in buffers.items() if name.endswith("num_batches_tracked")}
    totals = {name: torch.zeros_like(buffers[name]) for name in names}
    order = order[:BATCHES]
    with _measuring(model, layers.values()), torch.no_grad():
        for rows in order:
            forward(rows)
            for name, total in totals.items():
                total += buffers[name]
        for name, total in totals.items():
            buffers[name].copy_(total / len(order))
        for name, count in kept.items():
            buffers[name].copy_(count)


def norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that now take statistics over batches, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.training
        and module.running_mean is not None
    }


@contextmanager
def _measuring(model: nn.Module, layers: Collection[nn.Module]) -> Iterator[None]:
    """Let each forward leave its own statistics in these layers, all else being in eval mode."""
    model.eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        # Not `train()`, which reaches the dropout of a site at the layer's output.
        layer.training, layer.momentum = True, 1.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.training, layer.momentum = False, momentum
