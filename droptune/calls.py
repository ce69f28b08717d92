"""The calls of one forward: layers, norms, activations, dropout and additions, in their order."""

from collections import Counter
from collections.abc import Callable, Container, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from droptune.activations import ACTIVATIONS
from droptune.droppers import dropper
from droptune.errors import ModelError
from droptune.functional import Calls, Drop, ordinal
from droptune.recurrent import time_major
from droptune.residual import Tracker, pick


def call(model: nn.Module, example: Any) -> Any:
    """Call a model on an example: a tensor, a tuple of arguments, or a dict of keywords."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


@dataclass(eq=False)
class Call:
    """One call seen in a forward: of a weight layer, norm, activation, dropout or addition."""

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
    steps_first: bool = False  # (L, N, F), as recurrent and torch's attention layers take it
    ends_branch: bool = False  # of a dropout that drops paths: it ends a residual branch


def what_is(module: nn.Module) -> str | None:
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
        done: is given every function that was called, its arguments and its result.
        droppers: modules whose own calls are no sites.
    """

    def __init__(
        self,
        running: list[nn.Module],
        activation: Callable[[Any], None],
        dropout: Callable[[str, str, float, Tensor], None],
        done: Callable[[Any, Any, Any], None],
        droppers: Container[nn.Module],
    ) -> None:
        super().__init__()
        self._running, self._activation, self._dropout_seen = running, activation, dropout
        self._done, self._droppers = done, droppers

    def ours(self) -> bool:
        inside = self._running[-1] if self._running else None
        return inside is not None and inside.training and inside not in self._droppers

    def find(self, what: str, kind: str, rate: float) -> Drop:
        def look(x: Tensor) -> Tensor:
            self._dropout_seen(what, kind, rate, x)
            return x

        return look

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[override]
        result = super().__torch_function__(func, types, args, kwargs)
        if func in ACTIVATIONS:
            self._activation(result)
        self._done(func, (args, kwargs), result)
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
    """Return the calls of one forward in training mode, made on a copy of the model."""
    return _Watch(model).calls_on(example)


class _Watch:
    """Looks on while a copy of a model runs."""

    def __init__(self, model: nn.Module) -> None:
        self.copy = deepcopy(model).train()
        self.names = {module: name for name, module in self.copy.named_modules()}
        self.droppers = {m: drops for m in self.names if (drops := dropper(m))}
        self.stack: list[nn.Module] = []
        self.counts: list[Counter[str]] = []
        self.entered: Counter[nn.Module] = Counter()
        self.calls: list[Call] = []
        self.tracker = Tracker()
        self.sums: list[Call] = []

    def calls_on(self, example: Any) -> list[Call]:
        for module in self.names:
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks, and calls no Python
            module.register_forward_pre_hook(self.enter, with_kwargs=True)
            module.register_forward_hook(self.leave, with_kwargs=True)
        gpus = list({parameter.device for parameter in self.copy.parameters() if parameter.is_cuda})
        mode = _Functions(self.stack, self.activation, self.dropout, self.done, self.droppers)
        with torch.random.fork_rng(gpus), torch.no_grad(), mode:
            try:
                call(self.copy, example)
            except Exception as error:
                said = str(error).splitlines()[0] if str(error) else ""
                raise ModelError(
                    f"the model fails on a batch of shape {shape_of(example)} "
                    f"({type(error).__name__}: {said}); "
                    "check that it takes what the data holds"
                ) from error
        self.settle_branches()
        _count(self.calls, shape_of(example)[:1])
        return self.calls

    def enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.stack.append(module)
        self.counts.append(Counter())
        self.entered[module] += 1
        value = next(iter((*args, *kwargs.values())), None)
        what = "dropout" if module in self.droppers else what_is(module)
        if what is None:
            return
        if what == "weight":  # what holds other weight layers is a container
            outside = self.stack[:-1]
            self.calls[:] = [c for c in self.calls if c.what != "weight" or c.module not in outside]
        seen = Call(what, self.names[module], module, shape_of(value), (), is_floating(value))
        if what == "dropout":
            seen.kind, seen.rate = self.droppers[module].kind, self.droppers[module].rate
        self.calls.append(seen)

    def leave(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        self.stack.pop()
        self.counts.pop()
        self.tracker.left(module, output, (args, kwargs))
        for seen in self.calls:
            if seen.module is module and not seen.returned:
                seen.returned = shape_of(output)

    def activation(self, output: Any) -> None:
        inside = self.stack[-1] if self.stack and not any(self.stack[-1].children()) else None
        known = inside is not None and inside not in self.droppers and what_is(inside) is None
        path = self.names[inside] if known else None
        self.calls.append(Call("activation", path, inside, (), shape_of(output)))

    def dropout(self, what: str, kind: str, rate: float, x: Tensor) -> None:
        inside, call = self.stack[-1], f"@{ordinal(what, self.counts[-1])}"
        seen = Call(what, self.names[inside], inside, tuple(x.shape), tuple(x.shape), call=call)
        if rate > 0:
            seen.kind, seen.rate = kind, float(rate)
        if what == "dropout" and _attends(x):
            seen.what = "attention"
        self.calls.append(seen)

    def done(self, func: Any, given: Any, result: Any) -> None:
        inside = self.stack[-1] if self.stack else None
        weighted = inside is not None and parametrize.is_parametrized(inside)
        if self.tracker.called(func, given, result, weighted):
            seen = Call("residual", None, None, (), shape_of(result), call="@residual")
            self.calls.append(seen)
            self.sums.append(seen)

    def settle_branches(self) -> None:
        """Say of each sum which module ends its branch; of two branches it becomes two calls."""
        branches = dict(zip(self.sums, self.tracker.branches(), strict=True))
        chosen = pick([one for many in branches.values() for one in many], self.entered)
        settled: list[Call] = []
        for seen in self.calls:
            if seen.what != "residual":
                settled.append(seen)
            for branch in branches.get(seen, ()):
                paths = [m for m in branch.modules if self.drops_paths(m)]
                for there in self.calls if paths else ():
                    there.ends_branch |= there.module in paths and there.what == "dropout"
                if branch in chosen and not paths:
                    module = chosen[branch]
                    shape = branch.shapes[module]
                    settled.append(
                        replace(seen, path=self.names[module], module=module, given=shape)
                    )
        self.calls[:] = settled

    def drops_paths(self, module: nn.Module) -> bool:
        return module in self.droppers and self.droppers[module].kind == "drop_path"


def _attends(x: Tensor) -> bool:
    """Tell whether a tensor is the output of a softmax over positions."""
    if x.dim() < 3 or not x.numel():
        return False
    sums = x.sum(-1, dtype=torch.float32)
    return bool((x >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=0.01)


def _count(calls: list[Call], batch: tuple[int, ...]) -> None:
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
        turned = shape[:1] != batch == shape[1:2] and role != "conv"
        seen.steps_first = len(shape) == 3 and (turned or shape[:2] == sequence)
        if seen.what == "weight":
            role = role_of(seen.module)  # type: ignore[arg-type]
            if time_major(seen.module) and len(seen.returned) == 3:  # type: ignore[arg-type]
                sequence = seen.returned[:2]
