"""Choosing a trainer: which one, and how wide, is measured and not guessed."""

import math
from collections.abc import Callable

import torch

from droptune.errors import ModelError, TrainingError
from droptune.trainers.base import Task, Trainer
from droptune.trainers.fused import FusedTrainer
from droptune.trainers.memory import is_out_of_memory, release_memory
from droptune.trainers.serial import SerialTrainer
from droptune.trainers.size import is_small

TRAINERS = ("auto", "fused", "serial")

_STEPS = 8  # measured, after two to warm up
_TRIES = 3  # measurements of each, of steps that are small
_GROWTH = 4  # from one width to the next; each costs the tracing of a step
#: Seconds. No step of the serial trainer is faster, for Python and torch's dispatch alone take
#: that long (measured: 0.35 ms and more, on a fast core); what is faster need not be compared.
_FASTEST_STEP = 2e-4


def choose(
    task: Task,
    *,
    trainer: str = "auto",
    slots: int | str = "auto",
    most: int = 16,
    device: torch.device | str = "cpu",
    say: Callable[[str], object] = lambda text: None,
) -> Trainer:
    """Return the trainer to search with.

    With "auto" a few steps are timed, serial and fused at growing widths, and the fastest a
    member is taken; so it is slower than serial by no more than the noise of a clock.

    Args:
        task: what is trained.
        trainer: "auto", "fused" or "serial".
        slots: how many members at once, or "auto".
        most: the widest to consider.
        device: where to train.
        say: is given one line on what was chosen, or why fused is not possible.

    Raises:
        TrainingError: an unknown trainer or number of slots.
        ModelError: `trainer="fused"` and the model cannot be mapped.
    """
    if trainer not in TRAINERS:
        raise TrainingError(f"unknown trainer {trainer!r}; allowed: {', '.join(TRAINERS)}")
    if slots != "auto" and (not isinstance(slots, int) or isinstance(slots, bool) or slots < 1):
        raise TrainingError(f"slots {slots!r}: 'auto' or a whole number from 1 is needed")
    if trainer == "serial":
        return SerialTrainer(task, 1 if slots == "auto" else slots, device)
    serial = SerialTrainer(task, 1, device)
    compared = trainer == "auto" and slots == "auto"
    small = slots == "auto" and is_small(task, most)
    # The cheapest way to know comes first: a small model's widest step, a large one's alone.
    alone = serial.rehearse(1, _STEPS) if compared and not small else math.inf
    widths = [slots] if slots != "auto" else [most] if small else _widths(most)
    try:
        fused, seconds = _fastest(task, widths, device, alone)
    except ModelError as error:
        if trainer == "fused":
            raise
        say(str(error).replace("; use trainer='serial'", ", so it is trained serially"))
        return serial
    if compared and small and fused is not None and seconds >= _FASTEST_STEP:
        seconds, alone = _compared(fused, serial, seconds)
    if fused is None and seconds == math.inf:
        say(f"trains serially: memory ends below {widths[0]} members at once")
        return serial
    if fused is None or seconds >= alone:
        say("trains serially: on this model one member at a time is fastest")
        return serial
    gain = f", {alone / seconds:.1f} times as fast as one at a time" if alone < math.inf else ""
    say(f"trains fused, {fused.slots} members at once{gain}")
    return fused


def _compared(fused: FusedTrainer, serial: SerialTrainer, seconds: float) -> tuple[float, float]:
    """Return seconds a step and member of both, the least of up to `_TRIES` measurements.

    The fused one is mostly faster where a step is small; where it is not, other processes may
    have had the processor meanwhile, so both are measured again.
    """
    alone = serial.rehearse(1, _STEPS)
    for _ in range(_TRIES - 1):
        if seconds < alone:
            break
        seconds = min(seconds, fused.rehearse(fused.slots, _STEPS))
        alone = min(alone, serial.rehearse(1, _STEPS))
    return seconds, alone


def why_not_fused(task: Task, device: torch.device | str = "cpu") -> str | None:
    """Return why a model cannot be trained fused, by tracing a step of two; None: it can."""
    try:
        FusedTrainer(task, 2, device).rehearse(2, 1)
    except ModelError as error:
        return str(error).replace("; use trainer='serial'", "")
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return "memory ends below 2 members at once"
    return None


def _fastest(
    task: Task, widths: list[int], device: torch.device | str, least: float
) -> tuple[FusedTrainer | None, float]:
    """Return the fused trainer with the least time a step and member, and that time.

    Growing stops where it gains nothing, or where memory ends.

    Args:
        least: seconds a step to beat.

    Returns:
        None if no width beats it, with the time of the first; infinite if that does not fit.
    """
    best, first = None, math.inf
    for width in widths:
        fused = None  # what was measured last is given up, unless it is the best
        try:
            fused = FusedTrainer(task, width, device)
            seconds = fused.rehearse(width, _STEPS)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        first = min(first, seconds)
        if seconds >= least:
            break
        best, least = fused, seconds
    if best is None or len(widths) > 1:  # else nothing was given up, and looking takes 0.2 s
        fused = None
        release_memory()
    return best, first if best is None else least


def _widths(most: int) -> list[int]:
    """Return growing widths up to `most`, `most` among them."""
    widths = [width for width in (_GROWTH**power for power in range(1, 8)) if width < most]
    return [*widths, max(most, 1)]
