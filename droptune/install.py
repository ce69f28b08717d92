"""Putting a plan on a model, moving its rates, taking it off."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from droptune import chains, functional, inside, recomputation, recurrent
from droptune.droppers import check_model, dropout_kind, dropper, switch_off, switch_on
from droptune.errors import ModelError, PlanError, nearest
from droptune.kinds import KINDS, Kind
from droptune.kinds.base import INSIDE
from droptune.kinds.noise import FIRST, Part
from droptune.plan import Entry, Plan
from droptune.sites import has_plan

#: The end of the name of a site at a residual branch.
_BRANCH = "@residual"


class SiteDropout(nn.Module):
    """The kinds of dropout at one site, one after the other.

    A chain, because members of a fused trainer share it: a member that uses one kind has
    rate 0 in the others, where a kind is exactly the identity.

    Attributes:
        mask: what stands for the kinds in a pass whose mask is given; None in all others.
    """

    def __init__(self, site: str, kinds: Iterable[str]) -> None:
        super().__init__()
        self.site = site
        self.entry: Entry | None = None
        self._memory = recomputation.Memory()
        self.mask: Tensor | None = None
        for name in kinds:
            self.add_module(name, KINDS[name](site))
        self._on = tuple(self.kinds)  # all, while the rates are known to the buffers alone

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kinds by name, in the order they act."""
        return dict(self._modules)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.mask is not None:
            return self._act(self._call, x)
        return self._call(x)

    def drop(self, x: Tensor) -> Tensor:
        """Act as in training, whatever the mode: for a call of a module that trains."""
        return self._act(self._drop, x)

    def run(self, kind: Kind, x: Tensor) -> Tensor:
        """Return what one of the kinds makes of `x`: where each is given another tensor."""
        return self._memory.run(kind, x, [kind.stream]) if self.training else kind(x)

    def matrix(self, x: Tensor, index: int) -> Tensor:
        """Act on one of several matrices; of masks that are given, each has its own."""
        return self(x) if self.mask is None else self._masked(x, self.mask[index])

    def acting(self) -> list[Kind]:
        """Return the kinds that act: until `set` says which, all of them."""
        return [self._modules[name] for name in self._on]  # type: ignore[misc]

    def _act(self, act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.mask is not None:
            return self._masked(x, self.mask)
        return self._memory.run(act, x, [kind.stream for kind in self.acting()])

    def _call(self, x: Tensor) -> Tensor:
        for kind in self.acting():
            x = kind(x)
        return x

    def _drop(self, x: Tensor) -> Tensor:
        for kind in self.acting():
            x = kind.drop(x)
        return x

    def _masked(self, x: Tensor, mask: Tensor) -> Tensor:
        if x.dim() != mask.dim() or len(x) != len(mask):
            raise ModelError(
                f"site {self.site!r} holds a tensor {tuple(x.shape)}, which has no place for a "
                f"mask {tuple(mask.shape)} of the batch; name another site in the term"
            )
        if recomputation.part() is not None:
            raise ModelError(
                f"site {self.site!r} runs under torch.utils.checkpoint, which runs it again "
                "without the mask of an adversarial term; switch it off, or use another term"
            )
        return x * mask.to(x.dtype)

    def set(self, entry: Entry | None, progress: float = 0.0) -> None:
        """Set what the entry says of its kind at a point of training, and 0 for the others."""
        self.entry = entry
        self._on = () if entry is None else (entry.kind,)
        for name, kind in self.kinds.items():
            values = buffer_values(name, entry, progress)
            kind.set_rate(values.pop("rate"))
            for buffer, value in values.items():
                kind.get_buffer(buffer).fill_(value)


def buffer_values(kind: str, entry: Entry | None, progress: float) -> dict[str, float]:
    """Return buffer -> value for a kind at a site: its rate, and all of its settings.

    Args:
        kind: its name.
        entry: what the plan says of the site; of another kind or None: the rate is 0.
        progress: from 0 (first epoch) to 1 (last).
    """
    if entry is None or entry.kind != kind:
        return {"rate": 0.0, **KINDS[kind].values({})}
    return {"rate": entry.at(progress), **KINDS[kind].values(entry.settings)}


def apply(model: nn.Module, plan: Plan, *, seed: int | None = None) -> nn.Module:
    """Put a plan on a model, in place, instead of any dropout it had.

    `state_dict` keys and eval outputs stay as they are, but for zoneout, which acts in eval
    mode, too; `remove` undoes it. The masks come from generators of droptune's own and leave
    torch's global one alone. A plan in which a rate moves stands at the beginning of training:
    call `advance` before each epoch. A term is no part of a model: what it adds to the loss
    comes from `droptune.ConsistencyLoss`, of which a warning reminds; so does one of what the
    plan says of training, which your optimizer and loss have to be told.

    Args:
        model: the model; the plan's sites must be found in it.
        plan: what to put on; `Plan.none()` switches all dropout off.
        seed: fixes the masks; by default they follow `torch.manual_seed`.

    Returns:
        The same model.

    Raises:
        ModelError: the model is no `nn.Module`, or a compiled or scripted one.
        PlanError: the plan names a site that the model lacks.
    """
    kinds = {name: (entry.kind,) for name, entry in plan.items()}
    if plan.term is not None and plan.term.site is not None:
        kinds.setdefault(plan.term.site, ())
    install(model, kinds)
    for dropout in installed(model).values():
        dropout.set(plan.get(dropout.site))
    if plan.term is not None:
        warnings.warn(
            f"the plan adds {plan.term.name} to the loss, which a model cannot do; train with the "
            "loss that droptune.ConsistencyLoss(model, plan, example) computes",
            stacklevel=2,
        )
    if plan.training:
        warnings.warn(
            f"the plan holds for training with {plan.training}, which a model cannot set; give "
            "them to your optimizer and loss",
            stacklevel=2,
        )
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
                for marks in (
                    module._forward_pre_hooks_with_kwargs,
                    module._forward_hooks_with_kwargs,
                ):
                    marks.pop(key, None)  # keys are of all hooks of a module together
        for key in [k for k, child in module._modules.items() if isinstance(child, SiteDropout)]:
            del module._modules[key]
        switch_on(module)
        chains.release(module)
        recurrent.let_go(module)
        if (watched := functional.watched(module)) is not None:
            watched.let_go()
    return model


def read(model: nn.Module) -> Plan:
    """Return the plan that is on a model; without one, the dropout it was given with.

    A term of the plan is not on the model, and not read. Without a plan only dropout modules
    are read: which functions a forward calls, and at which rates, shows when it runs
    (`find_sites`).

    Raises:
        PlanError: the model was given with a dropout of rate 1.
    """
    ours = installed(model)
    if ours or has_plan(model):
        return Plan({site: d.entry for site, d in ours.items() if d.entry is not None})
    given = {
        path: (m.kind, m.rate) for path, module in model.named_modules() if (m := dropper(module))
    }
    for path, module in model.named_modules():
        for name, place in inside.places(module).items():
            if place.kind is not None:
                given[f"{path}@{name}"] = (place.kind, place.rate)
    return Plan(given)  # type: ignore[arg-type]


def install(model: nn.Module, kinds: Mapping[str, Iterable[str]]) -> None:
    """Put kinds at rate 0 on the named sites, and switch existing dropout off.

    Dropout in function calls, too: of these, one that is named is replaced while its module
    trains, and the others do nothing.

    Args:
        model: the model, changed in place.
        kinds: site name -> the kinds that may act there.

    Raises:
        ModelError: the model is no `nn.Module`, or a compiled or scripted one.
        PlanError: the model has no such site.
    """
    check_model(model)
    modules = {
        path: module
        for path, module in model.named_modules()
        if not isinstance(module, SiteDropout | Kind)
    }
    for name, allowed in kinds.items():
        _check(name, allowed, modules)
    remove(model)  # only now: a plan that does not fit leaves the one that is on
    off = [m for m in modules.values() if recurrent.is_recurrent(m) or dropper(m)]
    for module in off:
        switch_off(module)
    replaced: dict[str, dict[str, functional.Drop]] = {}
    within: dict[str, dict[str, SiteDropout]] = {}
    for name, allowed in sorted(kinds.items(), key=_turn):
        path, call = _place(name)
        module = modules[path]
        dropout = SiteDropout(name, allowed).train(module.training)
        home = next(m for m in module.modules() if _can_host(m))
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        home.add_module(f"droptune {name.replace('.', '/')}", dropout.to(device))
        if functional.split(name):
            replaced.setdefault(path, {})[call] = dropout.drop
        elif call == "rows":
            module.register_forward_hook(partial(_drop_rows, dropout), with_kwargs=True)
        elif call:
            within.setdefault(path, {})[call] = dropout
        elif name.endswith("@input"):
            hook = partial(_drop_input, dropout)
            module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
        elif name.endswith(_BRANCH):
            module.register_forward_hook(partial(_drop_branch, dropout))
        else:
            module.register_forward_hook(partial(_drop_output, dropout))
    calling = {p: m for p, m in modules.items() if functional.can_call(m) and m not in off}
    callers = {module: replaced.get(path, {}) for path, module in calling.items()}
    functional.watch(callers, [module for module in off if dropout_kind(module)])
    for path, module in modules.items():
        if recurrent.is_recurrent(module):
            recurrent.watch(module, within.get(path, {}))
    chains.look(model)


def installed(model: nn.Module) -> dict[str, SiteDropout]:
    """Return what is installed on a model, by site name."""
    return {m.site: m for m in model.modules() if isinstance(m, SiteDropout)}


def seed_noise(model: nn.Module, seed: int, clock: int = 0) -> None:
    """Start the masks of epoch `clock` of the block with this seed."""
    for dropout in installed(model).values():
        for kind in dropout.kinds.values():
            kind.stream.seed(seed, clock)


@contextmanager
def another_pass(
    model: nn.Module, part: Part, site: str | None = None, mask: Tensor | None = None
) -> Iterator[None]:
    """Let a model draw from other streams, with a given mask for the noise of one site.

    Args:
        model: with a plan on it.
        part: which streams.
        site: where the mask acts, instead of the kinds there.
        mask: broadcastable to the tensor at the site, the batch in front; of weights,
            `matrices x rows x columns`.
    """
    places = installed(model)
    streams = [kind.stream for dropout in places.values() for kind in dropout.kinds.values()]
    try:
        for stream in streams:
            stream.part = part
        if site is not None:
            places[site].mask = mask
        yield
    finally:
        for stream in streams:
            stream.part = FIRST
        if site is not None:
            places[site].mask = None


def _turn(item: tuple[str, Any]) -> int:
    """Return when a site acts: at one module rows, then its output, then the branch it ends."""
    return item[0].endswith(_BRANCH) - item[0].endswith("@rows")


def _place(name: str) -> tuple[str, str]:
    """Return the path of a site's module, and which call in it or place inside it, or ""."""
    plain = name.removesuffix("@input").removesuffix(_BRANCH)
    return functional.split(name) or inside.split(name) or (plain, "")


def _check(name: str, kinds: Iterable[str], modules: Mapping[str, nn.Module]) -> None:
    """Check that a model has a site, and that kinds can act there.

    Raises:
        PlanError: it has no such site, or a kind is of another sort of place.
    """
    path, call = _place(name)
    known = path in modules and name != "" and any(map(_can_host, modules[path].modules()))
    places = inside.places(modules[path]) if known else {}
    if known and inside.split(name):
        known = call in places
    elif known and call:
        known = functional.can_call(modules[path])
    if not known:
        there = [f"{p}@{place}" for p, m in modules.items() for place in inside.places(m)]
        names = [path for path in modules if path not in ("", name)] + ["@input"] + there
        raise PlanError(f"the model has no site {name!r}{nearest(name, names)}")
    layout = places[call].layout if call in places else None
    for kind in kinds:
        if layout in INSIDE and not KINDS[kind].fits(layout, "recurrent"):
            allowed = ", ".join(k for k in KINDS if KINDS[k].fits(layout, "recurrent"))
            raise PlanError(f"site {name!r} cannot have kind {kind!r}; allowed there: {allowed}")
        if layout not in INSIDE and KINDS[kind].only_inside():
            raise PlanError(
                f"site {name!r} cannot have kind {kind!r}, which acts inside layers alone, at "
                f"sites such as {_example(kind)!r}; name another kind there"
            )


def _example(kind: str) -> str:
    """Return the name of a site inside a layer that a kind fits."""
    examples = {"NLS": "rnn@state", "NLM": "rnn@cell", "GS": "rnn@weights", "VF": "emb@rows"}
    return next(name for layout, name in examples.items() if layout in KINDS[kind].layouts)


def _can_host(module: nn.Module) -> bool:
    """Tell whether a module can carry kinds: a leaf, which never iterates over children."""
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return False  # not even when empty, such as a shortcut of a residual block
    return all(isinstance(child, SiteDropout) for child in module.children())


def _is_ours(hook: Any) -> bool:
    return isinstance(hook, partial) and hook.func in (
        _drop_input,
        _drop_output,
        _drop_rows,
        _drop_branch,
    )


# Module-level functions, so that a model with a plan can be pickled and deep-copied.
def _drop_output(dropout: SiteDropout, module: nn.Module, args: tuple, output: Any) -> Any:
    return _dropped(dropout, output)


def _drop_branch(dropout: SiteDropout, module: nn.Module, args: tuple, output: Any) -> Any:
    """Drop a module's output, or the first part where it returns several, as attention does."""
    if type(output) is tuple and output:
        return _dropped(dropout, output[0]), *output[1:]
    return _dropped(dropout, output)


def _drop_input(
    dropout: SiteDropout, module: nn.Module, args: tuple, kwargs: dict
) -> tuple[tuple, dict]:
    if args:
        return (_dropped_first(dropout, module, args[0]), *args[1:]), kwargs
    first = next(iter(kwargs))
    return args, {**kwargs, first: _dropped_first(dropout, module, kwargs[first])}


def _drop_rows(
    dropout: SiteDropout, module: nn.Embedding, args: tuple, kwargs: dict, output: Tensor
) -> Tensor:
    """Drop rows of an embedding where they were read: the rest of it need not be touched."""
    if not dropout.training:
        return output
    tokens = args[0] if args else next(iter(kwargs.values()))
    return output * F.embedding(tokens, dropout(output.new_ones(module.num_embeddings, 1)))


def _dropped_first(dropout: SiteDropout, module: nn.Module, value: Any) -> Tensor:
    """Drop at a module's input, with samples in front also where the layer has steps there."""
    if recurrent.time_major(module) and isinstance(value, Tensor) and value.dim() == 3:
        return _dropped(dropout, value.transpose(0, 1)).transpose(0, 1)
    return _dropped(dropout, value)


def _dropped(dropout: SiteDropout, value: Any) -> Tensor:
    if isinstance(value, Tensor) and value.is_floating_point():
        return dropout(value)
    what = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
    raise ModelError(
        f"site {dropout.site!r} holds a {what}, dropout needs a tensor of floats; "
        "leave this site out of the plan"
    )
