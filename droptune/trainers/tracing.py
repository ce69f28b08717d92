"""Tracing a step of many members: what a forward may not do, and the words that say so.

Part of fused.py, the only module that imports this one.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from droptune.errors import ModelError, TrainingError
from droptune.install import installed
from droptune.trainers.attention import mappable_attention
from droptune.trainers.constants import python_state
from droptune.trainers.hoisting import Stands
from droptune.trainers.memory import is_out_of_memory
from droptune.trainers.place import why
from droptune.trainers.program import Program, trace
from droptune.trainers.stacked_terms import refuse_own_noise


def traced(
    function: Callable[..., Sequence[Tensor]],
    flat: Sequence[Tensor],
    standing: Sequence[Stands],
    model: nn.Module,
    gpus: Sequence[torch.device],
    passes_again: bool,
) -> Program:
    """Trace a step; random numbers are left where they stood.

    Args:
        function: the step, of tensors.
        flat: its first inputs; they stay as they are.
        standing: what stands still of the first of them.
        model: whose forward it calls.
        gpus: whose generators it may use.
        passes_again: whether it passes a batch more than once.

    Raises:
        ModelError: a forward cannot be mapped; the message names the reason.
    """
    streams = [k.stream for d in installed(model).values() for k in d.kinds.values()]
    states = [stream.__getstate__() for stream in streams]
    before = python_state(model)
    with torch.random.fork_rng(gpus), mappable_attention():
        try:
            with refuse_own_noise(gpus if passes_again else None):
                program = trace(function, [tensor.clone() for tensor in flat], standing)
            if python_state(model) != before:
                # Python in a forward runs only now: what it changes would stand still.
                raise ModelError(
                    "the model cannot be trained fused (its forward changes an attribute, or "
                    "draws from Python's or NumPy's random numbers); use trainer='serial'"
                )
            return program
        except (ModelError, TrainingError):
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(
                f"the model cannot be trained fused ({why(error)}); use trainer='serial'"
            ) from error
        finally:
            for stream, state in zip(streams, states, strict=True):
                stream.rewind(state)
