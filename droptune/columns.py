"""Controlled dropout without the dropped units: linear layers that multiply smaller matrices.

A linear layer in front of controlled dropout computes only the units that will be kept. What it
returns stands for its whole output (`Columns`): the activation behind it acts on what is there,
and the linear layer behind the dropout reads only these columns of its weight. Any other function
that meets it, wherever it is called, gets the whole tensor, computed then and there.

Gradients flow into the whole weights, with zeros for what took no part, so that optimisers see
what they see with a mask. AdamW therefore moves dropped units too, by weight decay and by moments
that decay, and so does SGD with momentum: the one as with the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from droptune import recomputation
from droptune.activations import ELEMENTWISE
from droptune.errors import ModelError
from droptune.kinds.controlled import Controlled, count_kept, drop_units

#: What asks for a tensor's form, and not for its elements.
FORM = frozenset(
    [Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.__len__, torch.numel]
    + [Tensor.is_floating_point, torch.is_floating_point]
    + [
        getattr(Tensor, name).__get__
        for name in ("shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_cuda")
    ]
)

#: Samples times rate from which smaller matrices can pay.
FEWEST = 16
#: Multiplications that a layer must spare in a forward pass for smaller matrices to pay.
LEAST = 2**23


def is_elementwise(func: Callable, kwargs: dict) -> bool:
    """Tell whether a call acts on each element of its first argument, and writes nowhere else."""
    return func in ELEMENTWISE and "out" not in kwargs


def is_off(func: Callable, args: tuple, kwargs: dict) -> bool:
    """Tell whether a call is of dropout that does nothing."""
    if func is not F.dropout:
        return False
    given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
    return given.get("p", 0.5) == 0 or not given.get("training", True)


@dataclass
class Draw:
    """The units that a site will keep, drawn before it is reached.

    Attributes:
        kind: the kind at the site.
        kept: which units, ascending.
        scale: what they are multiplied by, a scalar.
        before: where the kind's stream stood; what is drawn holds if the site finds it there.
        after: where to leave it.
    """

    kind: Controlled
    kept: Tensor
    scale: Tensor
    before: Tensor
    after: Tensor

    @classmethod
    def ahead(cls, kind: Controlled, units: int, device: torch.device) -> "Draw":
        """Draw, and put the stream back."""
        count = count_kept(torch.tensor(kind.number), units)  # the arithmetic of the mask
        before = kind.stream.position(device)
        kept = kind.order(units, device)[: int(count)].sort().values
        after = kind.stream.position(device)
        kind.stream.go(device, before)
        return cls(kind, kept, units / count, before, after)

    def holds(self, kind: Controlled) -> bool:
        """Tell whether this is what a kind would draw now."""
        now = self.kind.stream.position(self.kept.device)
        return kind is self.kind and torch.equal(now, self.before)


class Columns(Tensor):
    """The output of a linear layer of which only the columns to be kept exist.

    It has the form of the whole and no memory of its own. Autograd sees what exists, or the
    whole, and never this tensor.

    Args:
        there: the columns that exist, `... x k`.
        draw: which they are.
        whole: computes the whole, as far as it has come.
        dropped: whether the dropout has been; the other columns are then 0.
    """

    @staticmethod
    def __new__(
        cls, there: Tensor, units: int, draw: Draw, whole: Callable[[], Tensor], dropped: bool
    ) -> "Columns":
        self = Tensor._make_wrapper_subclass(
            cls,
            (*there.shape[:-1], units),
            dtype=there.dtype,
            device=there.device,
            requires_grad=there.requires_grad,
        )
        if there.requires_grad:
            with torch._C.DisableTorchFunctionSubclass():
                self.register_hook(_refuse)
        return self

    def __init__(
        self, there: Tensor, units: int, draw: Draw, whole: Callable[[], Tensor], dropped: bool
    ) -> None:
        self._there, self._units, self._draw = there, units, draw
        self._compute, self._dropped, self._whole = whole, dropped, None

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in FORM:
                return func(*args, **kwargs)
            x = args[0] if args else None
            if isinstance(x, Columns) and x._whole is None:
                if is_off(func, args, kwargs):
                    return x
                if is_elementwise(func, kwargs) and not x._dropped:
                    return x._map(func, args[1:], kwargs)
                if func is drop_units and not x._dropped and x._draw.holds(args[1]):
                    return x._drop()
                if func is F.linear and x._dropped:
                    return x._linear(*args[1:], **kwargs)
            args, kwargs = tree_map_only(Columns, Columns.whole, (args, kwargs))
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        return _refuse(None)

    def _map(self, func: Callable, rest: tuple, kwargs: dict) -> "Columns":
        there, so_far = func(self._there, *rest, **kwargs), self._compute

        def whole() -> Tensor:
            return func(so_far(), *rest, **kwargs)

        if there is self._there:  # written in place
            self._compute = whole
            return self
        return Columns(there, self._units, self._draw, whole, False)

    def _drop(self) -> "Columns":
        draw, there = self._draw, self._there
        draw.kind.stream.go(draw.kept.device, draw.after)
        there = there * draw.scale.to(there.dtype)
        shape = (*there.shape[:-1], self._units)

        def whole() -> Tensor:
            return there.new_zeros(shape).index_copy(-1, draw.kept, there)

        return Columns(there, self._units, draw, whole, True)

    def _linear(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(self._there, weight.index_select(1, self._draw.kept), bias)

    def whole(self) -> Tensor:
        """Return the whole tensor; this one is no more than a name for it from then on."""
        if self._whole is None:
            with torch.enable_grad():
                self._whole = self._compute().to(self.dtype)
        return self._whole


def _refuse(*_: Any) -> None:
    raise ModelError(
        "a function that torch cannot override was given the output of a layer in front of "
        "controlled dropout, of which not all is computed; use kind 'standard' there"
    )


class Narrow:
    """The forward of a linear layer in front of controlled dropout.

    In training it computes the units that will be kept. It gives way to the layer's own forward
    for good as soon as the whole is asked for before the dropout: that is computed in addition.

    Args:
        module: the layer.
        kind: at the site behind it.
    """

    def __init__(self, module: nn.Linear, kind: Controlled) -> None:
        self.module, self.kind = module, kind

    @property
    def __wrapped__(self) -> Callable:  # `inspect.signature` finds the arguments here
        return type(self.module).forward.__get__(self.module)

    def __call__(self, input: Tensor) -> Tensor:
        if not self._acts(input):
            return self.__wrapped__(input)
        weight, bias, units = self.module.weight, self.module.bias, self.module.out_features
        draw = Draw.ahead(self.kind, units, input.device)
        some = None if bias is None else bias.index_select(0, draw.kept)
        there = F.linear(input, weight.index_select(0, draw.kept), some)
        used = [tensor for tensor in (input, weight, bias) if tensor is not None]
        versions = [_version(tensor) for tensor in used]

        def whole() -> Tensor:
            self.let_go()
            if versions != [_version(tensor) for tensor in used]:
                raise ModelError(
                    "the output of a layer in front of controlled dropout was asked for after "
                    "its weights changed, and not all is computed; ask before optimizer.step()"
                )
            return F.linear(input, weight, bias)

        return Columns(there, units, draw, whole, False)

    def _acts(self, input: Tensor) -> bool:
        kind = self.kind
        return (
            kind.training
            and bool(kind.number)
            and torch.is_grad_enabled()
            and in_the_open()
            and pays(input.numel() // input.shape[-1], self.module, kind.number)
            and recomputation.part() is None  # what is run again must do the same as before
        )

    def let_go(self) -> None:
        """Give the layer its own forward back."""
        if vars(self.module).get("forward") is self:
            del self.module.forward


def _version(tensor: Tensor) -> int:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor._version


def in_the_open() -> bool:
    """Tell whether what runs is what is meant, and not compiled, traced or mapped."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
    )


def pays(samples: int, layer: nn.Linear, rate: float) -> bool:
    """Tell whether smaller matrices save more time than making them takes.

    To copy weights and scatter gradients takes about as long as to multiply by what is left out
    for `FEWEST` samples; and every site costs some calls, whatever its size, in whose time
    `LEAST` multiplications are made. Measured on a CPU: benchmarks/controlled.py. Other devices
    use the mask: nothing has been measured there.
    """
    spared, weight = samples * rate, layer.weight
    return weight.device.type == "cpu" and spared >= FEWEST and spared * weight.numel() >= LEAST
