"""The calls of one forward: layers, norms, activations and dropout, in the order they are made."""

from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from droptune.errors import ModelError
from droptune.functional import Calls, Drop, ordinal
from droptune.recurrent import is_recurrent, time_major

#: Where a dropout module or a recurrent layer keeps the attribute of its rate, and the rate that
#: it was given with, while a plan is on.
GIVEN = "_droptune_given"

#: The kind of dropout that each of torch's own modules applies.
DROPOUT_MODULES: dict[type[nn.Module], str] = {
    nn.Dropout: "standard",
    nn.Dropout1d: "channel",
    nn.Dropout2d: "channel",
    nn.Dropout3d: "channel",
    nn.AlphaDropout: "alpha",
    nn.FeatureAlphaDropout: "feature_alpha",
}

_ACTIVATIONS = frozenset(
    getattr(namespace, name)
    for namespace in (torch, F, Tensor)
    for stem in (
        "relu relu6 leaky_relu prelu elu selu celu gelu silu mish tanh sigmoid "
        "hardtanh hardswish hardsigmoid softplus softsign tanhshrink logsigmoid glu"
    ).split()
    for name in (stem, stem + "_")
    if hasattr(namespace, name)
)


def dropout_kind(module: nn.Module) -> str | None:
    """Return the kind of dropout that a torch dropout module applies; None for others."""
    return DROPOUT_MODULES.get(type(module))


def rate_attribute(module: nn.Module) -> str | None:
    """Return where a layer of torch keeps the rate of its dropout; None for others."""
    if dropout_kind(module):
        return "p"
    return "dropout" if is_recurrent(module) else None


def call(model: nn.Module, example: Any) -> Any:
    """Call a model on an example: a tensor, a tuple of arguments, or a dict of keywords."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


@dataclass
class Call:
    """One call seen in a forward: of a weight layer, norm, activation or dropout."""

    what: str
    path: str | None  # None: a function called in a hand-written forward
    module: nn.Module | None
    given: tuple[int, ...] = ()
    returned: tuple[int, ...] = ()
    floating: bool = True
    first: bool = True
    count: int = 1
    role: str = field(default="hidden")
    call: str = ""  # "@dropout", "@attention" ...: of a function that drops
    kind: str | None = None
    rate: float | None = None
    steps_first: bool = False  # (L, N, F), as a recurrent layer before it has returned


def what_is(module: nn.Module) -> str | None:
    if dropout_kind(module):
        return "dropout"
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm):
        return "norm"
    if isinstance(module, parametrize.ParametrizationList):
        return None  # holds the weight of the layer it belongs to
    if parametrize.is_parametrized(module):
        return "weight"
    matrices = any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
    return "weight" if matrices else None


def role_of(module: nn.Module) -> str:
    if isinstance(module, nn.modules.conv._ConvNd):
        return "conv"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    return "recurrent" if isinstance(module, nn.RNNBase) else "hidden"


class _Functions(Calls):
    """Reports every function that is called and activates or drops, however it is reached.

    Args:
        running: the modules that run, the innermost last; kept up to date by others.
        activation: is given the output of an activation.
        dropout: is given what drops, its kind, its rate and the tensor.
    """

    def __init__(
        self,
        running: list[nn.Module],
        activation: Callable[[Any], None],
        dropout: Callable[[str, str, float, Tensor], None],
    ) -> None:
        super().__init__()
        self._running, self._activation, self._dropout_seen = running, activation, dropout

    def ours(self) -> bool:
        inside = self._running[-1] if self._running else None
        return inside is not None and inside.training and dropout_kind(inside) is None

    def find(self, what: str, kind: str, rate: float) -> Drop:
        def look(x: Tensor) -> Tensor:
            self._dropout_seen(what, kind, rate, x)
            return x

        return look

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[override]
        result = super().__torch_function__(func, types, args, kwargs)
        if func in _ACTIVATIONS:
            self._activation(result)
        return result


def first_tensor(value: Any) -> Any:
    """Return the first tensor of nested arguments, as dropout at an input takes it."""
    while isinstance(value, tuple | list | Mapping) and value:
        value = next(iter(value.values() if isinstance(value, Mapping) else value))
    return value


def shape_of(value: Any) -> tuple[int, ...]:
    value = first_tensor(value)
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def watch(model: nn.Module, example: Any) -> list[Call]:
    copy = deepcopy(model).train()
    names = {module: name for name, module in copy.named_modules()}
    stack: list[nn.Module] = []
    counts: list[Counter[str]] = []
    calls: list[Call] = []

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        stack.append(module)
        counts.append(Counter())
        value = next(iter((*args, *kwargs.values())), None)
        if what := what_is(module):
            if what == "weight":  # what holds other weight layers is a container
                calls[:] = [c for c in calls if c.what != "weight" or c.module not in stack[:-1]]
            seen = Call(what, names[module], module, shape_of(value), (), is_floating(value))
            if what == "dropout":
                seen.kind, seen.rate = dropout_kind(module), float(module.p)  # type: ignore
            calls.append(seen)

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        stack.pop()
        counts.pop()
        open_calls = [c for c in calls if c.module is module and not c.returned]
        for seen in open_calls:
            seen.returned = shape_of(output)

    def activation(output: Any) -> None:
        inside = stack[-1] if stack and not any(stack[-1].children()) else None
        path = names[inside] if inside is not None and what_is(inside) is None else None
        calls.append(Call("activation", path, inside, (), shape_of(output)))

    def dropout(what: str, kind: str, rate: float, x: Tensor) -> None:
        call = f"@{ordinal(what, counts[-1])}"
        seen = Call(what, names[stack[-1]], stack[-1], tuple(x.shape), tuple(x.shape), call=call)
        if rate > 0:
            seen.kind, seen.rate = kind, float(rate)
        if what == "dropout" and _attends(x):
            seen.what = "attention"
        calls.append(seen)

    for module in copy.modules():
        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(leave)
    gpus = list({parameter.device for parameter in copy.parameters() if parameter.is_cuda})
    with torch.random.fork_rng(gpus), torch.no_grad(), _Functions(stack, activation, dropout):
        try:
            call(copy, example)
        except Exception as error:
            raise ModelError(
                f"the model fails on a batch of shape {shape_of(example)} "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
                "check that it takes what the data holds"
            ) from error
    _count(calls)
    return calls


def _attends(x: Tensor) -> bool:
    """Tell whether a tensor is the output of a softmax over positions."""
    if x.dim() < 3 or not x.numel():
        return False
    sums = x.sum(-1, dtype=torch.float32)
    return bool((x >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=0.01)


def _count(calls: list[Call]) -> None:
    """Say of each call whether it is its module's first, and what feeds it."""
    counts = Counter((seen.path, seen.call) for seen in calls if seen.path is not None)
    met: set[tuple[str, str]] = set()
    role, sequence = "input", ()
    for seen in calls:
        if seen.path is not None:
            place = (seen.path, seen.call)
            seen.count, seen.first = counts[place], place not in met
            met.add(place)
        seen.role = role
        shape = seen.given or seen.returned
        seen.steps_first = len(shape) == 3 and shape[:2] == sequence
        if seen.what == "weight":
            role = role_of(seen.module)  # type: ignore[arg-type]
            if time_major(seen.module) and len(seen.returned) == 3:  # type: ignore[arg-type]
                sequence = seen.returned[:2]
