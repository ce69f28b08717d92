"""Choosing a trainer: which one, and how wide, is measured and not guessed."""

from collections.abc import Callable

import torch

from droptune.errors import ModelError, TrainingError
from droptune.trainers.base import Task, Trainer, is_out_of_memory
from droptune.trainers.fused import FusedTrainer
from droptune.trainers.serial import SerialTrainer

TRAINERS = ("auto", "fused", "serial")

_STEPS = 8  # measured, after two to warm up
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
    try:
        widths = _widths(most) if slots == "auto" else [slots]
        fused, seconds = _fastest(task, widths, device)
    except ModelError as error:
        if trainer == "fused":
            raise
        say(str(error).replace("; use trainer='serial'", ", so it is trained serially"))
        return serial
    if fused is None:
        say(f"trains serially: memory ends below {widths[0]} members at once")
        return serial
    gain = ""
    if trainer == "auto" and slots == "auto" and seconds >= _FASTEST_STEP:
        alone = serial.rehearse(1, _STEPS)
        if seconds >= alone:
            say("trains serially: on this model one member at a time is fastest")
            return serial
        gain = f", {alone / seconds:.1f} times as fast as one at a time"
    say(f"trains fused, {fused.slots} members at once{gain}")
    return fused


def _fastest(
    task: Task, widths: list[int], device: torch.device | str
) -> tuple[FusedTrainer | None, float]:
    """Return the fused trainer with the least time a step and member, and that time.

    Growing stops where it gains nothing, or where memory ends; None if the first width
    does not fit.
    """
    best, least = None, float("inf")
    for width in widths:
        try:
            fused = FusedTrainer(task, width, device)
            seconds = fused.rehearse(width, _STEPS)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        if seconds >= least:
            break
        best, least = fused, seconds
    return best, least


def _widths(most: int) -> list[int]:
    """Return growing widths up to `most`, `most` among them."""
    widths = [width for width in (_GROWTH**power for power in range(1, 8)) if width < most]
    return [*widths, max(most, 1)]
