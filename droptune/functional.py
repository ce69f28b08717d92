"""Dropout that is a function call in a forward: how it is seen, named and replaced.

`F.dropout` and its kin, `torch.dropout`, `F.scaled_dot_product_attention` and what
`F.multi_head_attention_forward` does inside. A call is named by the module that runs and by
its place among the calls of one forward of that module: `PATH@dropout`, `PATH@dropout.1`,
and `PATH@attention` for attention weights. The rate of such a call is a Python number; that
of a site is a tensor, so that members of a fused trainer can differ in it. A call is
therefore replaced by the site's dropout, and not given another rate.

Below sites, which lists the calls, and plan, which replaces them.
"""

import inspect
import re
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from droptune import recomputation
from droptune.errors import ModelError

#: What is put in place of a call: takes the tensor, returns it with noise.
Drop = Callable[[Tensor], Tensor]

#: The functions that drop, and the kind of dropout that each applies.
FUNCTIONS: dict[Any, str] = {
    F.dropout: "standard",
    F.dropout1d: "channel",
    F.dropout2d: "channel",
    F.dropout3d: "channel",
    F.alpha_dropout: "alpha",
    F.feature_alpha_dropout: "feature_alpha",
    torch.dropout: "standard",
    torch.dropout_: "standard",
    torch.feature_dropout: "channel",
    torch.feature_dropout_: "channel",
    torch.alpha_dropout: "alpha",
    torch.alpha_dropout_: "alpha",
    torch.feature_alpha_dropout: "feature_alpha",
    torch.feature_alpha_dropout_: "feature_alpha",
}

_NAME = re.compile(r"(.*)@((?:dropout|attention)(?:\.[1-9][0-9]*)?)")
_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


def split(name: str) -> tuple[str, str] | None:
    """Return path and call of a site's name, such as "block.attn@attention"; None for others."""
    match = _NAME.fullmatch(name)
    return (match[1], match[2]) if match else None


def ordinal(what: str, calls: Counter[str]) -> str:
    """Return the name of the next call of this sort in a forward, and count it."""
    calls[what] += 1
    return what if calls[what] == 1 else f"{what}.{calls[what] - 1}"


class Calls(TorchFunctionMode, ABC):
    """Sees the calls of functions that drop, however they are reached.

    A subclass says in `ours` whether the module that now runs is one whose calls count, and
    in `find` what to do with a call: nothing else of a model's calls is touched.
    """

    def __init__(self) -> None:
        super().__init__()
        #: Ids of tensors that a dropout, switched off, has returned as they are.
        self.passed: set[int] = set()

    @abstractmethod
    def ours(self) -> bool:
        """Tell whether calls made now are sites."""

    @abstractmethod
    def find(self, what: str, kind: str, rate: float) -> Drop | None:
        """Return what is put in place of a call; None: it is switched off.

        Args:
            what: "dropout", or "attention" for attention weights.
            kind: the kind of dropout that the function applies.
            rate: the rate that it is called with.
        """

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[override]
        kwargs = kwargs or {}
        if func in FUNCTIONS and self.ours():
            return self._dropout(func, *args, **kwargs)
        if func == F.scaled_dot_product_attention and self.ours():
            return self._attention(*args, **kwargs)
        if func is F.multi_head_attention_forward and self.ours():
            return self._multi_head(*args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(
        self,
        func: Any,
        input: Tensor,
        p: float = 0.5,
        training: bool = False,
        inplace: bool = False,
        *,
        train: bool = False,  # as torch.dropout calls it
        what: str = "dropout",
    ) -> Tensor:
        training = training or train  # F.dropout hands its defaults on, torch.dropout has none
        if not training:
            return func(input, p, training, inplace) if inplace else func(input, p, training)
        drop = self.find(what, FUNCTIONS[func], p)
        if drop is None:
            self.passed.add(id(input))
            return input  # as with p = 0
        # What a dropout has passed on is memory of the layer before it; as given, it was new.
        writes = (inplace or func.__name__.endswith("_")) and id(input) not in self.passed
        return input.copy_(drop(input)) if writes else drop(input)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Tensor:
        drop = self.find("attention", "standard", dropout_p)
        if drop is None:  # the fast kernels, as with dropout_p = 0
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, 0.0, is_causal, **options
            )
        if is_causal and attn_mask is not None:
            raise ModelError(
                "scaled_dot_product_attention is given attn_mask and is_causal=True, and torch "
                "takes only one of them; put the causal mask into attn_mask"
            )
        return attention(query, key, value, drop, attn_mask, is_causal, **options)

    def _multi_head(self, *args: Any, **kwargs: Any) -> Any:
        """Run torch's function, with its own calls of dropout and attention seen."""
        given = _SIGNATURE.bind(*args, **kwargs)
        given.apply_defaults()
        given = given.arguments
        if not given["training"]:
            return F.multi_head_attention_forward(*args, **kwargs)
        rate = given["dropout_p"]
        # Without a rate it would leave out the call for which a site may stand.
        given["dropout_p"] = rate or 0.5

        def dropout(weights: Tensor, p: float) -> Tensor:
            return self._dropout(F.dropout, weights, rate, True, what="attention")

        def inner(query: Tensor, key: Tensor, value: Tensor, mask: Any, p: float, causal: bool):
            return self._attention(query, key, value, mask, rate, causal)

        # Called as it is, the function would hand itself to this mode without end; with the
        # mode off, as here, its calls would go unseen. So it runs on names of ours; asked
        # whether another mode is on (tracing is one), it must say no, or that one calls it.
        names = {
            **vars(F),
            "dropout": dropout,
            "scaled_dot_product_attention": inner,
            "has_torch_function": lambda tensors: False,
        }
        body = FunctionType(F.multi_head_attention_forward.__code__, names)
        return body(**given)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    drop: Drop,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return scaled dot product attention with dropout of its weights by `drop`.

    Vaswani et al., https://arxiv.org/abs/1706.03762; arguments and arithmetic are those of
    `F.scaled_dot_product_attention` on its math path, which scales both sides by the root.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    root = abs(scale) ** 0.5
    if is_causal:
        ones = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
        attn_mask = ones.tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        off = torch.zeros(attn_mask.shape, dtype=query.dtype, device=query.device)
        attn_mask = off.masked_fill(attn_mask.logical_not(), float("-inf"))
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = (query * (root if scale >= 0 else -root)) @ (key.transpose(-2, -1) * root)
    if attn_mask is None:
        return drop(torch.softmax(scores, -1)) @ value
    scores = scores + attn_mask
    # A row with every place masked attends to nothing; softmax alone would make it NaN.
    blank = (scores == float("-inf")).all(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(blank, 0.0), -1).masked_fill(blank, 0.0)
    return drop(weights) @ value


class _Leaks(Calls):
    """Notes calls that drop although the model is in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[str] = []
        self.found: dict[str, None] = {}

    def ours(self) -> bool:
        return bool(self.running)

    def find(self, what: str, kind: str, rate: float) -> Drop | None:
        if rate > 0:
            self.found[f"{self.running[-1]}@{what}"] = None
        return None


def leaks(model: nn.Module, run: Callable[[nn.Module], Any]) -> list[str]:
    """Return where functions drop in eval mode, as "PATH@dropout" or "PATH@attention".

    No plan changes what eval mode does, so a score of such a model is one with dropout.

    Args:
        model: left as it was; a copy runs.
        run: calls a model on an example.
    """
    copy, mode = deepcopy(model).eval(), _Leaks()
    names = {module: name for name, module in copy.named_modules()}

    def enter(module: nn.Module, args: tuple) -> None:
        mode.running.append(names[module])

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        mode.running.pop()

    for module in names:
        if not isinstance(module, torch.jit.ScriptModule):  # takes no hooks, and calls no Python
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(leave)
    with torch.no_grad(), mode:
        run(copy)
    return list(mode.found)


# A plan's sites in a model that runs

_LOCAL = threading.local()


class _Replacing(Calls):
    """Puts sites in place of calls; on while a watched module runs in training."""

    def __init__(self) -> None:
        super().__init__()
        #: Module, its calls so far, and the checkpointed part that it runs in.
        self.running: list[tuple[Watched, Counter[str], Any]] = []
        self.ran: set[Watched] = set()

    def ours(self) -> bool:
        watched = self.running[-1][0]
        return watched.sites is not None and watched.module.training

    def find(self, what: str, kind: str, rate: float) -> Drop | None:
        watched, calls, part = self.running[-1]
        name = ordinal(what, calls)
        if not watched.looked:
            watched.made.add(name)
        drop = watched.sites.get(name)
        if (drop or rate) and recomputation.part() not in (None, part):  # it started since
            raise ModelError(
                f"the call @{name} of a {type(watched.module).__name__} lies in a function that "
                "torch.utils.checkpoint runs again, unseen by droptune; checkpoint a module instead"
            )
        return drop


class Watched:
    """A module's forward in which calls of dropout are replaced, while the module trains.

    It stands in the module's `forward` and not in hooks: any hook keeps torch from its fast
    path for transformers in eval mode, and none is sure to run when a forward fails. It
    holds no function made at run time, so that the model can be pickled and deep-copied.

    Args:
        module: where it stands.
        sites: name of the call, such as "dropout.1" -> what takes its place; None for a
            dropout module, whose own call of a function is no site.
        callers: all of a model that are watched for their calls.
    """

    def __init__(
        self, module: nn.Module, sites: Mapping[str, Drop] | None, callers: "list[Watched]"
    ) -> None:
        self.module, self.sites, self.callers = module, sites, callers
        self.before = vars(module).get("forward")
        self.made: set[str] = set()
        self.looked = sites is None
        if sites is not None:
            callers.append(self)

    @property
    def __wrapped__(self) -> Callable:  # `inspect.signature` finds the arguments here
        return self.before or type(self.module).forward.__get__(self.module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mode = getattr(_LOCAL, "mode", None)
        if mode is not None:
            return self._run(mode, args, kwargs)
        if self.sites is None and not self.callers:
            self.let_go()
        if self.sites is None or not self.module.training:
            return self.__wrapped__(*args, **kwargs)
        _LOCAL.mode = mode = _Replacing()
        try:
            with mode:
                result = self._run(mode, args, kwargs)
        finally:
            _LOCAL.mode = None
        for one in mode.ran:
            one.look()
        return result

    def _run(self, mode: _Replacing, args: tuple, kwargs: dict) -> Any:
        mode.running.append((self, Counter(), recomputation.part()))
        try:
            result = self.__wrapped__(*args, **kwargs)
            if self.sites is None and any(result is given for given in (*args, *kwargs.values())):
                mode.passed.add(id(result))
            return result
        finally:
            mode.running.pop()
            if self.module.training and not self.looked:
                mode.ran.add(self)

    def look(self) -> None:
        """Look at the calls that the first forward in training has made.

        Whoever applies a plan has no example, so every module that might call a function is
        watched at first. One that did not is let go here: it costs nothing from then on,
        and a call that it makes only later goes unseen.

        Raises:
            ModelError: the plan names a call that was not made.
        """
        if missing := self.sites.keys() - self.made:
            raise ModelError(
                f"the plan names the call @{min(missing)} of a {type(self.module).__name__}, and "
                "its forward makes no such call; droptune.find_sites lists the sites of a model"
            )
        self.looked = True
        if not self.made:
            self.let_go()

    def let_go(self) -> None:
        """Give the module its own forward back."""
        if self in self.callers:
            self.callers.remove(self)
        give_back(self.module, self, self.before)


def give_back(module: nn.Module, forward: Callable, before: Callable | None) -> bool:
    """Put back what stood in a module's forward before ours, None being the class's own.

    Returns:
        False where ours does not stand there: somebody put another one over it.
    """
    if vars(module).get("forward") is not forward:
        return False
    if before is None:
        del module.forward
    else:
        module.forward = before
    return True


def can_call(module: nn.Module) -> bool:
    """Tell whether a module's own forward might call a function that drops.

    Of torch's layers only those for attention do, and a transformer's activation may.
    """
    home = type(module).__module__
    if isinstance(module, torch.jit.ScriptModule):
        return False  # nothing in it calls Python
    if home == "torch.nn.modules.transformer" or type(module) is nn.MultiheadAttention:
        return True
    if not home.startswith("torch.nn.modules."):
        return True
    ours = watched(module)  # else a forward that somebody put on this one module
    return (ours.before if ours else vars(module).get("forward")) is not None


def watch(
    callers: Mapping[nn.Module, Mapping[str, Drop]], droppers: Iterable[nn.Module] = ()
) -> None:
    """Replace the named calls of functions in training, and switch the others off.

    Args:
        callers: a model's modules that may call functions -> what takes the place of which.
        droppers: its dropout modules.
    """
    watching: list[Watched] = []
    for module, sites in callers.items():
        module.forward = Watched(module, sites, watching)
    for module in droppers if watching else ():
        module.forward = Watched(module, None, watching)


def watched(module: nn.Module) -> Watched | None:
    """Return what stands in a module's forward, if it is ours."""
    forward = vars(module).get("forward")
    return forward if isinstance(forward, Watched) else None
