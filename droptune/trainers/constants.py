"""What a traced step takes for constant: all of a model that is neither parameter nor buffer."""

import random

import numpy
import torch
from torch import Tensor, nn

from droptune.install import SiteDropout


def same_constants(one: nn.Module, other: nn.Module) -> bool:
    """Tell whether two builds of a model keep equal numbers and tensors as plain attributes."""
    for module, twin in zip(one.modules(), other.modules(), strict=True):
        for name, value in vars(module).items():
            same = vars(twin).get(name)
            if isinstance(value, Tensor):
                if not isinstance(same, Tensor) or not torch.equal(value, same):
                    return False
            elif isinstance(value, int | float) and name != "training" and value != same:
                return False
    return True


def python_state(model: nn.Module) -> list[object]:
    """Return what a forward may change outside of tensors: random states, plain numbers."""
    name, keys, *place = numpy.random.get_state()
    return [random.getstate(), name, keys.tolist(), place, _numbers(model)]


def plain_numbers(model: nn.Module) -> list[tuple[str, str, float]]:
    """Return the numbers of a model's own that a forward may count in: path, name, value."""
    ours = [path for path, m in model.named_modules() if isinstance(m, SiteDropout)]
    return [
        (path, attribute, value)
        for path, attribute, value in _numbers(model)
        if attribute != "training" and not any(f"{path}.".startswith(f"{p}.") for p in ours)
    ]


def _numbers(model: nn.Module) -> list[tuple[str, str, float]]:
    return [
        (path, attribute, value)
        for path, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, int | float)
    ]
