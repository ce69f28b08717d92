"""The masks of a forward that is run again: gradient checkpointing.

`torch.utils.checkpoint` throws away what a part of a forward has computed, and runs it again
in the backward (Chen et al., https://arxiv.org/abs/1604.06174). For that it puts torch's own
generators back, but knows of no others; drawn anew, the masks would not be those of the
output, and the gradient would be wrong. So a site notes where its streams stood at each call
that may be run again, and goes back there. A call is known again by the part that it lies in,
for parts are run again from the last to the first, and a site may be called by several, with
the same tensor. In what another part runs again there are parts that nobody has seen before,
and checkpointing that is not torch's own has none: there the tensor alone must do, and where
it does not tell, the backward is refused.
"""

import inspect
import sys
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import checkpoint

from droptune.errors import ModelError
from droptune.kinds.noise import Stream

_CALLS = 64  # noted for each site; a state of a generator on CPU takes 5 KB
_CLOSE = 1e-3  # relative; sums of a tensor that a GPU computes twice need not be equal


@dataclass
class _Call:
    """One call of a site.

    Attributes:
        shape: of the tensor that it was given.
        sums: of that tensor.
        states: where the streams stood.
        part: returns the checkpointed part that it lies in; None once that is gone.
        again: how often it was rerun.
    """

    shape: torch.Size
    sums: Tensor
    states: list[dict]
    part: Callable[[], Any]
    again: int = 0


class Memory:
    """Lets the calls of one site, run again in a backward, draw what they drew."""

    def __init__(self) -> None:
        self._calls: deque[_Call] = deque(maxlen=_CALLS)

    def run(self, act: Callable[[Tensor], Tensor], x: Tensor, streams: Sequence[Stream]) -> Tensor:
        """Return `act(x)`, where `act` draws from the streams.

        Raises:
            ModelError: it is run again, and what it drew is not known: too many calls came
                since, or there are two that may be meant.
        """
        if torch.compiler.is_compiling():
            return act(x)
        if _in_backward() and self._calls:
            return self._again(act, x, streams)
        now = part()
        if now is not None or not torch.is_grad_enabled():
            states = [stream.state(x.device) for stream in streams]
            known = (lambda: None) if now is None else weakref.ref(now)
            self._calls.append(_Call(x.shape, _sums(x), states, known))
        return act(x)

    def _again(
        self, act: Callable[[Tensor], Tensor], x: Tensor, streams: Sequence[Stream]
    ) -> Tensor:
        call = self._known(x)
        call.again += 1
        now = [stream.state(x.device) for stream in streams]
        _rewind(streams, call.states)
        try:
            return act(x)
        finally:
            _rewind(streams, now)

    def _known(self, x: Tensor) -> _Call:
        """Return the call that was given `x`; of several, the first that was rerun least."""
        sums, now, close = _sums(x), part(), []
        for call in self._calls:
            if call.shape == x.shape:
                far = float(((call.sums - sums).abs() / (call.sums.abs() + 1)).max())
                if far < _CLOSE:
                    elsewhere = now is None or call.part() is not now
                    close.append((elsewhere, far, call.again, call))
        if not close:
            raise ModelError(
                "gradient checkpointing runs a forward again whose masks are no longer known "
                f"(a site keeps its last {_CALLS} calls); call backward earlier, or checkpoint less"
            )
        best, *others = sorted(close, key=lambda known: known[:3])
        if best[0] and others and others[0][:3] == best[:3]:
            raise ModelError(
                "gradient checkpointing runs a forward again in which two calls of a site were "
                "given the same, and whose masks are whose is not known; do not nest it there"
            )
        return best[3]

    def __reduce__(self) -> tuple:
        return Memory, ()  # a copy of a model has no forward that could be run again


def _sums(x: Tensor) -> Tensor:
    """Return two numbers that tell tensors apart: of weights that sum to 1 the second does."""
    x = x.detach().to(torch.float32)
    return torch.stack([x.sum(), x.square().sum()])


def _rewind(streams: Sequence[Stream], states: Sequence[dict]) -> None:
    for stream, state in zip(streams, states, strict=True):
        stream.rewind(state)


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def part() -> Any:
    """Return what stands for the checkpointed part that now runs, or None.

    It is the same object when the part is run again.
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    if hooks and hooks[0].__module__ == checkpoint.__name__:
        pack = inspect.unwrap(hooks[0])
        names = dict(zip(pack.__code__.co_freevars, pack.__closure__, strict=True))
        if "frame" in names:
            return names["frame"].cell_contents
        return names["target_frame_ref"].cell_contents()  # it is run again
    if torch.is_grad_enabled() and not _in_backward():
        return None
    return _reentrant_part()


def _reentrant_part() -> Any:
    """Return what stands for the part with `use_reentrant=True` that now runs, or None."""
    function, frame = checkpoint.CheckpointFunction, sys._getframe()
    codes = (function.forward.__code__, function.backward.__code__)
    while frame is not None and frame.f_code not in codes:
        frame = frame.f_back
    return None if frame is None else frame.f_locals["ctx"]
