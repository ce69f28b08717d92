"""Noise that no plan reaches: dropout whose rate cannot be set, and a model's own.

It stays as it is in every trial. `droptune sites` lists it, with the reason.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from droptune.calls import call, role_of
from droptune.install import install


@dataclass(frozen=True)
class Fixed:
    """A module that draws random numbers in training which droptune does not reach.

    Attributes:
        path: the dotted path of the innermost module that draws; "" is the model's own forward.
        role: as of a `Site`.
        rate: the rate of dropout there, where the module is known to say it; else None.
        reason: why no plan reaches it.
    """

    path: str
    role: str
    rate: float | None
    reason: str

    def described(self) -> dict[str, Any]:
        """Return the JSON values of a row beside those of `Site.described`."""
        return {
            "name": self.path or "@model",
            "path": self.path,
            "reach": "fixed",
            "role": self.role,
            "layout": "?",
            "depth": None,
            "shape": [],
            "kind": None,
            "rate": self.rate,
            "calls": None,
            "kinds": [],
            "remark": f"fixed: {self.reason}",
        }


def find_fixed(model: nn.Module, example: Any) -> tuple[Fixed, ...]:
    """Return the modules that draw random numbers in training with every known dropout off.

    Found by running the model twice with two seeds: nothing is listed where the outputs are
    equal. The model is left as it was.

    Args:
        model: a module that is not on a plan.
        example: a batch for it: a tensor, a tuple of arguments or a dict of keywords.

    Raises:
        ModelError: the model is compiled or scripted, or fails on the example.
    """
    twin = copy.deepcopy(model).train()
    install(twin, {})
    modules = dict(model.named_modules())
    return tuple(_fixed(path, modules[path]) for path in _drawing(twin, example))


def fixed_line(found: Iterable[Fixed]) -> str:
    """Return what to say of modules from `find_fixed`."""
    each = ", ".join(f"{f.path or 'the forward of the model'} ({f.reason})" for f in found)
    return f"no plan reaches the noise of {each}; it stays as it is in all trials"


def _fixed(path: str, module: nn.Module) -> Fixed:
    """Return why a module that draws cannot be reached."""
    scripted = [n for n, m in module.named_children() if isinstance(m, torch.jit.ScriptModule)]
    if scripted:  # they take no hooks, so what they draw shows in the module around them
        reason = f"it has a scripted part ({', '.join(scripted)}), or noise of its own"
        return Fixed(path, "hidden", None, reason)
    if isinstance(module, nn.RNNBase):
        reason = "its forward is not that of torch, where droptune puts dropout"
        return Fixed(path, role_of(module), float(module.dropout) or None, reason)
    reason = "noise of its own, or dropout of a layer that droptune does not know"
    return Fixed(path, role_of(module), None, reason)


def _drawing(twin: nn.Module, example: Any) -> list[str]:
    """Return the paths of the innermost modules of a model to spoil that draw."""
    state = copy.deepcopy(twin.state_dict())
    drawing, outputs = _note_draws(twin), []
    gpus = range(torch.cuda.device_count())
    with torch.random.fork_rng(gpus), torch.no_grad():
        for seed in (1, 2):
            torch.manual_seed(seed)
            twin.load_state_dict(state)  # statistics of norms move with every forward
            outputs.append(tree_leaves(call(twin, example)))
    differ = any(
        isinstance(one, Tensor) and not torch.equal(one.nan_to_num(), other.nan_to_num())
        for one, other in zip(*outputs, strict=True)
    )
    return list(dict.fromkeys(drawing)) if differ else []


def _note_draws(model: nn.Module) -> list[str]:
    """Return a list that receives the innermost modules that move torch's generator."""
    found: list[str] = []
    before: list[tuple[Tensor, int]] = []  # the generator's state, and how many were found

    def enter(module: nn.Module, args: tuple) -> None:
        before.append((_generators(), len(found)))

    def leave(name: str, module: nn.Module, args: tuple, output: object) -> None:
        state, known = before.pop()
        if len(found) == known and not torch.equal(_generators(), state):
            found.append(name)

    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(partial(leave, name))
    return found


def _generators() -> Tensor:
    """Return the states of torch's global generators, of GPUs where they are in use."""
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.cat([torch.get_rng_state(), *gpus])
