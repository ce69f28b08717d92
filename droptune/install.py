"""Putting a plan on a model, moving its rates, taking it off."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from droptune import chains, functional
from droptune.calls import GIVEN, dropout_kind
from droptune.errors import ModelError, PlanError, nearest
from droptune.kinds import KINDS, Kind
from droptune.plan import Entry, Plan
from droptune.sites import has_plan


class SiteDropout(nn.Module):
    """The kinds of dropout at one site, one after the other.

    A chain, because members of a fused trainer share it: a member that uses one kind has
    rate 0 in the others, where a kind is exactly the identity.
    """

    def __init__(self, site: str, kinds: Iterable[str]) -> None:
        super().__init__()
        self.site = site
        self.entry: Entry | None = None
        for name in kinds:
            self.add_module(name, KINDS[name](site))

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kinds by name, in the order they act."""
        return dict(self.named_children())  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for kind in self._acting():
            x = kind(x)
        return x

    def drop(self, x: Tensor) -> Tensor:
        """Act as in training, whatever the mode: for a call of a module that trains."""
        for kind in self._acting():
            x = kind.drop(x)
        return x

    def _acting(self) -> Iterable[Kind]:
        """Return the kinds that act: all, where the rates are known to the buffers alone."""
        kinds = self.kinds
        return kinds.values() if self.entry is None else [kinds[self.entry.kind]]

    def set(self, entry: Entry | None, progress: float = 0.0) -> None:
        """Set the rate of the entry's kind at a point of training, and 0 for the others."""
        self.entry = entry
        for name, kind in self.kinds.items():
            on = entry is not None and entry.kind == name
            kind.set_rate(entry.at(progress) if on else 0.0)  # type: ignore[union-attr]


def apply(model: nn.Module, plan: Plan, *, seed: int | None = None) -> nn.Module:
    """Put a plan on a model, in place, instead of any dropout it had.

    `state_dict` keys and eval outputs stay as they are; `remove` undoes it. The masks come
    from generators of droptune's own and leave torch's global one alone. A plan in which a
    rate moves stands at the beginning of training: call `advance` before each epoch.

    Args:
        model: the model; the plan's sites must be found in it.
        plan: what to put on; `Plan.none()` switches all dropout off.
        seed: fixes the masks; by default they follow `torch.manual_seed`.

    Returns:
        The same model.

    Raises:
        PlanError: the plan names a site that the model lacks.
    """
    install(model, {name: (entry.kind,) for name, entry in plan.items()})
    for dropout in installed(model).values():
        dropout.set(plan[dropout.site])
    if seed is not None:
        seed_noise(model, seed)
    return model


def advance(model: nn.Module, progress: float) -> None:
    """Move the rates of the plan on a model to a point of training.

    Args:
        model: with a plan on it; where all rates are constant nothing changes.
        progress: from 0 (first epoch) to 1 (last): `epoch / (epochs - 1)`.
    """
    for dropout in installed(model).values():
        dropout.set(dropout.entry, progress)


def remove(model: nn.Module) -> nn.Module:
    """Take a plan off a model, in place: it is again as it was given.

    Returns:
        The same model.
    """
    for module in list(model.modules()):
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [k for k, hook in hooks.items() if _is_ours(hook)]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
        for key in [k for k, child in module._modules.items() if isinstance(child, SiteDropout)]:
            del module._modules[key]
        if hasattr(module, GIVEN):
            module.p = getattr(module, GIVEN)
            delattr(module, GIVEN)
        chains.release(module)
        if (watched := functional.watched(module)) is not None:
            watched.let_go()
    return model


def read(model: nn.Module) -> Plan:
    """Return the plan that is on a model; without one, the dropout it was given with.

    Without a plan only dropout modules are read: which functions a forward calls, and at
    which rates, shows when it runs (`find_sites`).

    Raises:
        PlanError: the model was given with a dropout of rate 1.
    """
    ours = installed(model)
    if ours or has_plan(model):
        return Plan({site: d.entry for site, d in ours.items() if d.entry is not None})
    given = {path: (dropout_kind(m), m.p) for path, m in model.named_modules() if dropout_kind(m)}
    return Plan(given)  # type: ignore[arg-type]


def install(model: nn.Module, kinds: Mapping[str, Iterable[str]]) -> None:
    """Put kinds at rate 0 on the named sites, and switch existing dropout off.

    Dropout in function calls, too: of these, one that is named is replaced while its module
    trains, and the others do nothing.

    Args:
        model: the model, changed in place.
        kinds: site name -> the kinds that may act there.

    Raises:
        PlanError: the model has no such site.
    """
    modules = {
        path: module
        for path, module in model.named_modules()
        if not isinstance(module, SiteDropout | Kind)
    }
    for name in kinds:
        path, call = _place(name)
        if path not in modules or name == "" or (call and not functional.can_call(modules[path])):
            known = [path for path in modules if path] + ["@input"]
            raise PlanError(f"the model has no site {name!r}{nearest(name, known)}")
    remove(model)  # only now: a plan that does not fit leaves the one that is on
    for module in modules.values():
        if dropout_kind(module):
            setattr(module, GIVEN, module.p)
            module.p = 0.0
    replaced: dict[str, dict[str, functional.Drop]] = {}
    for name, allowed in kinds.items():
        path, call = _place(name)
        module = modules[path]
        dropout = SiteDropout(name, allowed).train(module.training)
        home = next(m for m in module.modules() if _can_host(m))
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        home.add_module(f"droptune {name.replace('.', '/')}", dropout.to(device))
        if call:
            replaced.setdefault(path, {})[call] = dropout.drop
        elif name.endswith("@input"):
            hook = partial(_drop_input, dropout)
            module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
        else:
            module.register_forward_hook(partial(_drop_output, dropout))
    callers = {m: replaced.get(p, {}) for p, m in modules.items() if functional.can_call(m)}
    functional.watch(callers, [m for m in modules.values() if dropout_kind(m)])
    chains.look(model)


def installed(model: nn.Module) -> dict[str, SiteDropout]:
    """Return what is installed on a model, by site name."""
    return {m.site: m for m in model.modules() if isinstance(m, SiteDropout)}


def seed_noise(model: nn.Module, seed: int, clock: int = 0) -> None:
    """Start the masks of epoch `clock` of the block with this seed."""
    for dropout in installed(model).values():
        for kind in dropout.kinds.values():
            kind.stream.seed(seed, clock)


def _place(name: str) -> tuple[str, str]:
    """Return the path of a site's module, and which call of a function it is, or ""."""
    return functional.split(name) or (name.removesuffix("@input"), "")


def _can_host(module: nn.Module) -> bool:
    """Tell whether a module can carry kinds: a leaf, which never iterates over children."""
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return False  # not even when empty, such as a shortcut of a residual block
    return all(isinstance(child, SiteDropout) for child in module.children())


def _is_ours(hook: Any) -> bool:
    return isinstance(hook, partial) and hook.func in (_drop_input, _drop_output)


# Module-level functions, so that a model with a plan can be pickled and deep-copied.
def _drop_output(dropout: SiteDropout, module: nn.Module, args: tuple, output: Any) -> Any:
    return _dropped(dropout, output)


def _drop_input(
    dropout: SiteDropout, module: nn.Module, args: tuple, kwargs: dict
) -> tuple[tuple, dict]:
    if args:
        return (_dropped(dropout, args[0]), *args[1:]), kwargs
    first = next(iter(kwargs))
    return args, {**kwargs, first: _dropped(dropout, kwargs[first])}


def _dropped(dropout: SiteDropout, value: Any) -> Tensor:
    if isinstance(value, Tensor) and value.is_floating_point():
        return dropout(value)
    what = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
    raise ModelError(
        f"site {dropout.site!r} holds a {what}, dropout needs a tensor of floats; "
        "leave this site out of the plan"
    )
