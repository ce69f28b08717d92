"""The activation functions of torch, however they are called."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def functions(names: str) -> frozenset[Callable]:
    """Return what torch has under these names, in place or not: in torch, F and Tensor."""
    return frozenset(
        getattr(namespace, name)
        for namespace in (torch, F, Tensor)
        for stem in names.split()
        for name in (stem, stem + "_")
        if hasattr(namespace, name)
    )


#: Those that act on each element of one tensor by itself.
ELEMENTWISE = functions(
    "relu relu6 leaky_relu elu selu celu gelu silu mish tanh sigmoid hardtanh hardswish "
    "hardsigmoid softplus softsign tanhshrink logsigmoid hardshrink softshrink threshold"
)
ACTIVATIONS = ELEMENTWISE | functions("prelu glu")
