"""Find the places of a model where dropout acts, or could.

`find_sites` watches one real forward in training mode: which layers are called, in which
order, with tensors of which shape, and where activations and dropout lie between them.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from droptune.errors import ModelError
from droptune.functional import Calls, Drop, leaks, ordinal, watched
from droptune.kinds.base import CHANNELS_FIRST, Kind

#: Where a dropout module keeps the rate it was given with while a plan is on.
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


@dataclass(frozen=True)
class Site:
    """One place of a model where dropout can act.

    Attributes:
        name: what a plan calls it: the module's dotted path; with "@input" behind it when
            the place is the module's input; "@input" alone is the input of the model. With
            "@dropout" or "@attention" behind it, the call of a function in that module's
            forward; "@dropout.1" is the second such call.
        path: the dotted path of the module it is reached by; "" is the model itself.
        reach: "module" (an existing dropout module), "output" or "input" (of the module),
            "function" (a call in its forward).
        role: "input", "embedding", "hidden", "conv", "recurrent", "attention" (weights
            of attention) or "head".
        layout: the axes of the tensor, such as "NF" or "NCHW": N sample, C channel,
            F feature, L position, D, H, W space, ? unknown; "NHLL" and "NLL" are weights
            of attention, H the head.
        depth: the place in call order, from 0.
        shape: the tensor's shape without the batch axis.
        kind: the kind of dropout found there, or None.
        rate: the rate found there, or None.
        calls: how often it is called in one forward; above 1 the calls share one rate. For
            the call of a function: how often its module makes it.
    """

    name: str
    path: str
    reach: str
    role: str
    layout: str
    depth: int
    shape: tuple[int, ...]
    kind: str | None = None
    rate: float | None = None
    calls: int = 1

    @property
    def default_kind(self) -> str:
        """The kind found there; else channel for convolutions, standard for the rest."""
        if self.kind is not None:
            return self.kind
        return "channel" if self.layout in CHANNELS_FIRST and self.role == "conv" else "standard"

    def to_json(self) -> dict[str, Any]:
        """Return the site as JSON values."""
        return {**asdict(self), "shape": list(self.shape)}


def dropout_kind(module: nn.Module) -> str | None:
    """Return the kind of dropout that a torch dropout module applies; None for others."""
    return DROPOUT_MODULES.get(type(module))


def call(model: nn.Module, example: Any) -> Any:
    """Call a model on an example: a tensor, a tuple of arguments, or a dict of keywords."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def find_sites(model: nn.Module, example: Any) -> tuple[Site, ...]:
    """Return the sites of a model, in call order.

    Listed are the model's input, the place after each hidden activation, the place before
    the head, every dropout module of torch that is called, and every call of a function that
    drops, inside attention too. Where a norm follows an activation the place is behind the
    norm: noise in front of a BatchNorm shifts its statistics (Li et al.,
    https://arxiv.org/abs/1801.05134).

    The model is left as it was: a copy of it runs, and torch's global generator is put
    back.

    Args:
        model: any module.
        example: a batch of at least two samples: a tensor, a tuple of arguments or a dict
            of keyword arguments.

    Raises:
        ModelError: the model is no `nn.Module`, has a plan on it, or fails on the example.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is a {type(model).__name__}; droptune needs a torch.nn.Module")
    if has_plan(model):
        raise ModelError("the model has a plan on it; take it off first: droptune.remove(model)")
    calls = _watch(model, example)
    found = _existing(calls) + _model_input(calls, example) + _insertions(calls)
    sites = sorted(found, key=lambda place: place[0])
    return tuple(replace(site, depth=depth) for depth, (_, site) in enumerate(sites))


def find_leaks(model: nn.Module, example: Any) -> list[str]:
    """Return where functions drop in eval mode, too, as "PATH@dropout" or "PATH@attention"."""
    return leaks(model, lambda copy: call(copy, example))


def has_plan(model: nn.Module) -> bool:
    """Tell whether a plan is on a model, "no dropout" included where it switches any off."""
    return any(
        isinstance(m, Kind) or hasattr(m, GIVEN) or watched(m) is not None for m in model.modules()
    )


@dataclass
class _Call:
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


def _what(module: nn.Module) -> str | None:
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


def _role(module: nn.Module) -> str:
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


def _first(value: Any) -> Any:
    """Return the first tensor of nested arguments, as dropout at an input takes it."""
    while isinstance(value, tuple | list | Mapping) and value:
        value = next(iter(value.values() if isinstance(value, Mapping) else value))
    return value


def _shape(value: Any) -> tuple[int, ...]:
    value = _first(value)
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _watch(model: nn.Module, example: Any) -> list[_Call]:
    copy = deepcopy(model).train()
    names = {module: name for name, module in copy.named_modules()}
    stack: list[nn.Module] = []
    counts: list[Counter[str]] = []
    calls: list[_Call] = []

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        stack.append(module)
        counts.append(Counter())
        value = next(iter((*args, *kwargs.values())), None)
        if what := _what(module):
            if what == "weight":  # what holds other weight layers is a container
                calls[:] = [c for c in calls if c.what != "weight" or c.module not in stack[:-1]]
            seen = _Call(what, names[module], module, _shape(value), (), _floating(value))
            if what == "dropout":
                seen.kind, seen.rate = dropout_kind(module), float(module.p)  # type: ignore
            calls.append(seen)

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        stack.pop()
        counts.pop()
        open_calls = [c for c in calls if c.module is module and not c.returned]
        for seen in open_calls:
            seen.returned = _shape(output)

    def activation(output: Any) -> None:
        inside = stack[-1] if stack and not any(stack[-1].children()) else None
        path = names[inside] if inside is not None and _what(inside) is None else None
        calls.append(_Call("activation", path, inside, (), _shape(output)))

    def dropout(what: str, kind: str, rate: float, x: Tensor) -> None:
        call = f"@{ordinal(what, counts[-1])}"
        seen = _Call(what, names[stack[-1]], stack[-1], tuple(x.shape), tuple(x.shape), call=call)
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
                f"the model fails on a batch of shape {_shape(example)} "
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


def _count(calls: list[_Call]) -> None:
    """Say of each call whether it is its module's first, and which role feeds it."""
    counts = Counter((seen.path, seen.call) for seen in calls if seen.path is not None)
    met: set[tuple[str, str]] = set()
    role = "input"
    for seen in calls:
        if seen.path is not None:
            place = (seen.path, seen.call)
            seen.count, seen.first = counts[place], place not in met
            met.add(place)
        seen.role = role
        if seen.what == "weight":
            role = _role(seen.module)  # type: ignore[arg-type]


def _layout(shape: tuple[int, ...], role: str) -> str:
    channels_first = role == "conv"
    names = {2: "NF", 3: "NCL" if channels_first else "NLF", 5: "NCDHW"}
    names[4] = "NCHW" if channels_first else "NHWF"
    return names.get(len(shape), "N" + "?" * (len(shape) - 1))


def _head(calls: list[_Call]) -> int:
    """Return the index of the last weight layer, or -1."""
    return max((i for i, seen in enumerate(calls) if seen.what == "weight"), default=-1)


def _is_before_head(calls: list[_Call], index: int) -> bool:
    """Tell whether only the head, and no other weight layer, follows."""
    return index > _head(calls) or not any(
        seen.what == "weight" for seen in calls[index + 1 : _head(calls)]
    )


def _existing(calls: list[_Call]) -> list[tuple[float, Site]]:
    found = []
    for index, seen in enumerate(calls):
        if seen.what not in ("dropout", "attention") or not seen.first:
            continue
        role, layout = _role_and_layout(calls, index)
        site = Site(
            name=f"{seen.path}{seen.call}",
            path=seen.path,
            reach="function" if seen.call else "module",
            role=role,
            layout=layout,
            depth=0,
            shape=seen.given[1:],
            kind=seen.kind,
            rate=seen.rate,
            calls=seen.count,
        )
        found.append((index, site))
    return found


def _role_and_layout(calls: list[_Call], index: int) -> tuple[str, str]:
    """Return what is said of the place of a dropout that is there."""
    seen = calls[index]
    if seen.what == "attention":
        layouts = {3: "NLL", 4: "NHLL"}
        return "attention", layouts.get(len(seen.given), _layout(seen.given, "hidden"))
    role = seen.role
    layout = _layout(seen.given, _consumer(calls, index) if role == "input" else role)
    role = _settled(role, layout)
    if role == "hidden" and _is_before_head(calls, index):
        role = "head"
    return role, layout


def _consumer(calls: list[_Call], index: int) -> str:
    """Return the role of the next weight layer."""
    return next((_role(c.module) for c in calls[index:] if c.what == "weight"), "hidden")


def _settled(role: str, layout: str) -> str:
    """Return the role of a place; maps that were flattened are no longer a convolution's."""
    return "hidden" if role == "conv" and layout not in CHANNELS_FIRST else role


def _model_input(calls: list[_Call], example: Any) -> list[tuple[float, Site]]:
    """Return the model's input, unless it holds no floats or meets a dropout first."""
    first = next((i for i, seen in enumerate(calls) if seen.what == "weight"), None)
    if first is None or not calls[first].floating or not _floating(_first(example)):
        return []
    if any(seen.what == "dropout" for seen in calls[:first]):
        return []
    shape = _shape(example)
    layout = _layout(shape, _role(calls[first].module))
    if shape != calls[first].given:
        layout = "N" + "?" * (len(shape) - 1)  # reshaped before a layer says what the axes are
    return [(-1.0, Site("@input", "", "input", "input", layout, 0, shape[1:]))]


def _insertions(calls: list[_Call]) -> list[tuple[float, Site]]:
    weights = [i for i, seen in enumerate(calls) if seen.what == "weight"]
    found = []
    for start, stop in zip(weights, weights[1:], strict=False):
        between = calls[start + 1 : stop]
        if any(seen.what == "dropout" for seen in between):
            continue
        producer = _role(calls[start].module)
        site = _after_activation(between, calls[stop], producer)
        before_head = stop == weights[-1]
        same_tensor = site is not None and site.shape == calls[stop].given[1:]
        if site is not None:
            role = "head" if before_head and same_tensor and site.role == "hidden" else site.role
            found.append((stop - 0.5, replace(site, role=role)))
        if before_head and not same_tensor:
            head = _at_input(calls[stop], "head")
            if head is not None:
                found.append((stop - 0.25, head))
    return found


def _after_activation(between: list[_Call], consumer: _Call, producer: str) -> Site | None:
    """Return the site after the last activation between two weight layers."""
    last = max((i for i, c in enumerate(between) if c.what == "activation"), default=None)
    if last is None:
        return None
    norms = [seen for seen in between[last + 1 :] if seen.what == "norm"]
    place = norms[-1] if norms else between[last]
    if place.path is None or place.count > 1:
        # A function, or one module for several places: reach the place from behind it.
        return _at_input(consumer, producer)
    layout = _layout(place.returned, producer)
    return Site(place.path, place.path, "output", producer, layout, 0, place.returned[1:])


def _at_input(consumer: _Call, role: str) -> Site | None:
    if consumer.count > 1 or consumer.path is None or not consumer.floating:
        return None
    layout = _layout(consumer.given, _role(consumer.module))
    name = f"{consumer.path}@input"
    return Site(name, consumer.path, "input", _settled(role, layout), layout, 0, consumer.given[1:])
