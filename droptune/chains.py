"""Finds linear layers whose output goes to controlled dropout, and from there to a linear layer.

Whoever applies a plan has no example, so it shows in the first forward in training. That one runs
with masks, and every function that it calls is seen. Where the output of a linear layer went
through element-wise functions to the dropout, and on to a linear layer, and nowhere else, the
layer computes from then on only what is kept (`columns.Narrow`). A later forward that goes other
ways gets what it asks for, at the price of computing it.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from droptune import functional
from droptune.columns import FORM, Narrow, in_the_open, is_elementwise, is_off
from droptune.kinds.controlled import Controlled, drop_units


class Chain:
    """The way of one output of a linear layer.

    Attributes:
        module: the layer.
        end: how far it has come; None once a linear layer has read it.
        kind: the dropout that it came through.
        fits: whether it went one way only, and a way that fits.
    """

    def __init__(self, module: nn.Linear, output: Tensor) -> None:
        self.module, self.fits = module, True
        self.end: Tensor | None = output
        self.kind: Controlled | None = None

    def go(self, func: Callable, args: tuple, kwargs: dict, result: Tensor) -> None:
        """Follow a call that was given the end of the chain, as its first argument."""
        if func is drop_units and self.kind is None:
            self.end, self.kind = result, args[1]
        elif is_off(func, args, kwargs) or (is_elementwise(func, kwargs) and self.kind is None):
            self.end = result
        elif func is F.linear:
            self.end = None
        else:
            self.fits = False


class _Functions(TorchFunctionMode):
    """Follows the outputs of linear layers through a forward.

    Args:
        linears: the layers by their weights' identity.
    """

    def __init__(self, linears: dict[int, nn.Linear]) -> None:
        super().__init__()
        self._linears = linears
        self._ways: dict[int, tuple[Tensor, Chain]] = {}  # tensors too, for ids to stay theirs
        self.chains: list[Chain] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[override]
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func not in FORM:
            self._follow(func, args, kwargs, result)
        return result

    def _follow(self, func: Callable, args: tuple, kwargs: dict, result: Any) -> None:
        first = args[0] if args else None
        for value in tree_leaves((args, kwargs)):
            _, chain = self._ways.get(id(value), (None, None))
            if chain is None:
                continue
            if value is first is chain.end:
                chain.go(func, args, kwargs, result)
                self._ways[id(result)] = result, chain
            else:
                chain.fits = False
        weight = id(args[1]) if func is F.linear and len(args) > 1 else None
        if weight in self._linears:
            chain = Chain(self._linears[weight], result)
            self._ways[id(result)] = result, chain
            self.chains.append(chain)

    def found(self) -> list[Chain]:
        """Return the chains that fit, of layers and kinds that were used once."""
        layers = Counter(chain.module for chain in self.chains)
        kinds = Counter(chain.kind for chain in self.chains)
        return [
            chain
            for chain in self.chains
            if chain.fits and chain.kind is not None and chain.end is None
            if layers[chain.module] == kinds[chain.kind] == 1
        ]


class Looking:
    """A model's forward until it has been seen in training with controlled dropout on.

    Args:
        module: the model.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self.before = module, vars(module).get("forward")

    @property
    def __wrapped__(self) -> Callable:  # `inspect.signature` finds the arguments here
        return self.before or type(self.module).forward.__get__(self.module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._shows():
            return self.__wrapped__(*args, **kwargs)
        with _Functions(_linears(self.module)) as seen:
            result = self.__wrapped__(*args, **kwargs)
        self.let_go()
        for chain in seen.found():
            chain.module.forward = Narrow(chain.module, chain.kind)
        return result

    def _shows(self) -> bool:
        """Tell whether a forward made now shows what later ones will do."""
        kinds = [module for module in self.module.modules() if isinstance(module, Controlled)]
        on = any(kind.number and kind.training for kind in kinds)
        return on and torch.is_grad_enabled() and in_the_open()

    def let_go(self) -> None:
        """Give the model its own forward back."""
        if not functional.give_back(self.module, self, self.before):
            return
        watched = functional.watched(self.module)
        if watched is not None and watched not in watched.callers:
            watched.let_go()  # it wanted to go while this one stood over it


def _linears(model: nn.Module) -> dict[int, nn.Linear]:
    """Return the layers whose forward is torch's own, by the identity of their weights."""
    return {
        id(module.weight): module
        for module in model.modules()
        if isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and "forward" not in vars(module)
    }


def look(model: nn.Module) -> None:
    """Look at the first forward in training, where a model has controlled dropout on it."""
    if any(isinstance(module, Controlled) for module in model.modules()):
        model.forward = Looking(model)


def release(module: nn.Module) -> None:
    """Give a module its own forward back, if another is there for controlled dropout."""
    forward = vars(module).get("forward")
    if isinstance(forward, Looking | Narrow):
        forward.let_go()
