"""The masks of a forward that is run again: gradient checkpointing.

`torch.utils.checkpoint` throws away what a part of a forward has computed, and runs it again
in the backward (Chen et al., https://arxiv.org/abs/1604.06174). For that it puts torch's own
generators back, but knows of no others; drawn anew, the masks would not be those of the
output, and the gradient would be wrong. So a site notes where its streams stood at each call
that may be run again, and goes back there. A call is known again by the tensor it was given,
for parts are run again from the last to the first, and a site may be called by several.
"""

import traceback
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
    """One call of a site: what it was given, where its streams stood, how often it was rerun."""

    shape: torch.Size
    sums: Tensor
    states: list[dict]
    again: int = 0


class Memory:
    """Lets the calls of one site, run again in a backward, draw what they drew."""

    def __init__(self) -> None:
        self._calls: deque[_Call] = deque(maxlen=_CALLS)

    def run(self, act: Callable[[Tensor], Tensor], x: Tensor, streams: Sequence[Stream]) -> Tensor:
        """Return `act(x)`, where `act` draws from the streams.

        Raises:
            ModelError: it is run again, too many calls later.
        """
        if torch.compiler.is_compiling():
            return act(x)
        if torch._C._current_graph_task_id() != -1 and self._calls:  # within a backward
            return self._again(act, x, streams)
        if part() is not None or not torch.is_grad_enabled():
            states = [stream.state(x.device) for stream in streams]
            self._calls.append(_Call(x.shape, _sums(x), states))
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
        sums = _sums(x)
        alike = [call for call in self._calls if call.shape == x.shape]
        far = [float(((call.sums - sums).abs() / (call.sums.abs() + 1)).max()) for call in alike]
        best = min(range(len(alike)), key=lambda i: (far[i], alike[i].again), default=None)
        if best is None or not far[best] < _CLOSE:
            raise ModelError(
                "gradient checkpointing runs a forward again whose masks are no longer known "
                f"(a site keeps its last {_CALLS} calls); call backward earlier, or checkpoint less"
            )
        return alike[best]

    def __reduce__(self) -> tuple:
        return Memory, ()  # a copy of a model has no forward that could be run again


def _sums(x: Tensor) -> Tensor:
    """Return two numbers that tell tensors apart: of weights that sum to 1 the second does."""
    x = x.detach().to(torch.float32)
    return torch.stack([x.sum(), x.square().sum()])


def _rewind(streams: Sequence[Stream], states: Sequence[dict]) -> None:
    for stream, state in zip(streams, states, strict=True):
        stream.rewind(state)


def part() -> Any:
    """Return what stands for the checkpointed part that now runs, or None.

    None also where checkpointing is reentrant: then gradients are off.
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks[0] if hooks and hooks[0].__module__ == checkpoint.__name__ else None


def in_reentrant_part() -> bool:
    """Tell whether a part with `use_reentrant=True` runs for the first time."""
    code = checkpoint.CheckpointFunction.forward.__code__
    return any(frame.f_code is code for frame, _ in traceback.walk_stack(None))
