"""Modules that drop: torch's own by their type, others by what they do.

Class names say little ("Drop" stands in many a container's name, and DropPath keeps its rate in
`drop_prob`), so a module of unknown type is tried on a tensor of ones: without parameters, it
must be the identity in eval mode, and in training set elements, channels or samples to zero and
scale the others alike. The numbers among its attributes are moved to see which sets the rate.

Dropout by a function that `functional` sees is no matter of this module: it is off while one
is tried.
"""

import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from droptune.errors import ModelError
from droptune.functional import Calls, Drop, give_back
from droptune.recurrent import is_recurrent

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

#: Ones of these shapes are tried, in this order: so many that a rate of 1 % shows.
_SHAPES = ((4096, 4, 2, 2), (4096, 4, 4), (4096, 16))
#: How far a share of 4096 may be from its probability: five standard deviations.
_NEAR = 0.04


def check_model(model: Any) -> None:
    """Check that a model is one whose modules can be watched and changed.

    Raises:
        ModelError: it is no `nn.Module`, or a scripted or compiled one.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is a {type(model).__name__}; droptune needs a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "the model is scripted or traced (torch.jit), its forward cannot be reached; "
            "give the torch.nn.Module that it was made from"
        )
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise ModelError(
            "the model is compiled (torch.compile), its forward cannot be watched; "
            "give the torch.nn.Module itself, and compile it with the plan on"
        )


@dataclass(frozen=True)
class Dropper:
    """What a module does that drops.

    Attributes:
        kind: "standard", "channel", "drop_path" ...
        rate: probability of dropping, as the module is now.
    """

    kind: str
    rate: float


def dropout_kind(module: nn.Module) -> str | None:
    """Return the kind of dropout that a torch dropout module applies; None for others."""
    return DROPOUT_MODULES.get(type(module))


def dropper(module: nn.Module) -> Dropper | None:
    """Return what a module does if all it does is drop; None for others.

    The module is left as it was, and so are the global generators.
    """
    kind = dropout_kind(module)
    if kind is not None:
        return Dropper(kind, float(module.p))  # type: ignore[arg-type]
    if not _may_drop(module):
        return None
    for shape in _SHAPES:
        try:
            with _aside():
                return _tried(deepcopy(module), shape)
        except Exception:  # whatever a forward may raise at a shape that it does not take
            continue
    return None


def switch_off(module: nn.Module) -> None:
    """Keep a module that `dropper` knows, or a recurrent layer, from dropping until `switch_on`."""
    if (attribute := _rate_attribute(module)) is not None:
        setattr(module, GIVEN, (attribute, getattr(module, attribute)))
        setattr(module, attribute, 0.0)
    else:
        module.forward = Idle(vars(module).get("forward"))


def switch_on(module: nn.Module) -> None:
    """Undo `switch_off`, where it was called."""
    if hasattr(module, GIVEN):
        setattr(module, *getattr(module, GIVEN))
        delattr(module, GIVEN)
    idle = vars(module).get("forward")
    if isinstance(idle, Idle):
        give_back(module, idle, idle.before)


def is_off(module: nn.Module) -> bool:
    """Tell whether `switch_off` was called."""
    return hasattr(module, GIVEN) or isinstance(vars(module).get("forward"), Idle)


def _rate_attribute(module: nn.Module) -> str | None:
    """Return where a layer of torch keeps the rate of its dropout; None for others."""
    if dropout_kind(module):
        return "p"
    return "dropout" if is_recurrent(module) else None


class Idle:
    """Stands in the forward of a dropout module that is off: returns what it is given.

    A class and no function made at run time, so that the model can be pickled. Not every such
    module has a rate that can be set to 0, and all are the identity without one.

    Args:
        before: what stood there on the module itself, or None.
    """

    def __init__(self, before: Any) -> None:
        self.before = before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return next(iter((*args, *kwargs.values())))


# Trying a module


class _Off(Calls):
    """Switches off the calls of functions that drop."""

    def ours(self) -> bool:
        return True

    def find(self, what: str, kind: str, rate: float) -> Drop | None:
        return None


@contextmanager
def _aside() -> Iterator[None]:
    """Try something out with random numbers of its own."""
    states = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng([]), torch.no_grad(), _Off():
            torch.default_generator.manual_seed(0)  # of the CPU alone: GPUs have theirs
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])


def _may_drop(module: nn.Module) -> bool:
    """Tell whether a module is worth a try: a leaf of the user's own, without weights.

    It must take one argument: what else one may be given, such as a shortcut, is not tried.
    """
    home = type(module).__module__
    if home.startswith("torch.nn.modules.") or isinstance(module, torch.jit.ScriptModule):
        return False
    if list(module.children()) or list(module.parameters()):
        return False
    try:
        return len(inspect.signature(module.forward).parameters) == 1
    except (TypeError, ValueError):  # a forward that is not written in Python
        return False


def _tried(module: nn.Module, shape: tuple[int, ...]) -> Dropper | None:
    """Return what a module does that may be spoilt, on tensors of a shape."""
    module.eval()
    for x in (torch.ones(shape, device="cpu"), torch.randn(shape, device="cpu")):
        if not torch.equal(module(x), x):
            return None
    module.train()
    today = _noise(module, shape)
    for name, value in list(vars(module).items()):
        if type(value) in (int, float) and 0 <= value <= 1:
            found = _moved(module, shape, name)
            if found is not None:
                kind, is_rate = found
                return Dropper(kind, float(value if is_rate else round(1 - value, 9)))
    return today


def _moved(module: nn.Module, shape: tuple[int, ...], name: str) -> tuple[str, bool] | None:
    """Return the kind, and whether the attribute is the rate or what is kept; None: neither."""
    value, seen = getattr(module, name), []
    for trial in (0.5, 0.25):
        setattr(module, name, trial)
        seen.append(_noise(module, shape))
    setattr(module, name, value)
    half, quarter = seen
    if half is None or quarter is None or half.rate != 0.5 or quarter.rate not in (0.25, 0.75):
        return None
    return quarter.kind, quarter.rate == 0.25


def _noise(module: nn.Module, shape: tuple[int, ...]) -> Dropper | None:
    """Return what a module does to ones: some become zero, the others 1 / (1 - rate)."""
    y = module(torch.ones(shape, device="cpu"))
    if not isinstance(y, Tensor) or y.shape != shape:
        return None
    gone = y == 0
    kept = y[~gone]
    if not gone.any() or not len(kept) or not torch.allclose(kept, kept[0]) or kept[0] <= 1:
        return None
    rate = round(1 - 1 / kept[0].item(), 6)
    kind, units = _units(gone)
    return Dropper(kind, rate) if _are_independent(units, rate) else None


def _units(gone: Tensor) -> tuple[str, Tensor]:
    """Return the kind of dropout that sets these elements to zero, and what it drops as one."""
    samples = gone.flatten(1)
    if torch.equal(samples.any(1), samples.all(1)):
        return "drop_path", samples[:, 0]
    channels = gone.flatten(2) if gone.dim() > 2 else gone[..., None]
    if gone.dim() > 2 and torch.equal(channels.any(2), channels.all(2)):
        return "channel", channels[:, :, 0]
    return "standard", gone


def _are_independent(units: Tensor, rate: float) -> bool:
    """Tell whether units are dropped at a rate, and each by itself: not in blocks or rows."""
    numbers = units.float()
    seen = [(numbers.mean(), rate)]
    for axis in range(units.dim()):
        length = units.shape[axis] - 1
        pairs = numbers.narrow(axis, 0, length) * numbers.narrow(axis, 1, length)
        seen.append((pairs.mean(), rate * rate))
    return all(abs(found.item() - expected) < _NEAR for found, expected in seen)
