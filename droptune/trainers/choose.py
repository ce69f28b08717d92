"""Choosing a trainer: which one, and how wide, is measured and not guessed."""

import copy
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from droptune.data import Data, Split
from droptune.errors import ModelError, TrainingError
from droptune.plan import Plan
from droptune.trainers.base import Task, Trainer
from droptune.trainers.fused import FusedTrainer
from droptune.trainers.serial import SerialTrainer

TRAINERS = ("auto", "fused", "serial")

_STEPS = 8  # a measured epoch, in steps
_WORTH = 0.95  # a wider trainer must cost at most this part of the time a member


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
    member is taken; so it is never slower than serial by more than the noise of a clock.

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
    if slots != "auto" and (not isinstance(slots, int) or slots < 1):
        raise TrainingError(f"slots {slots!r}: 'auto' or a whole number from 1 is needed")
    if trainer == "serial":
        return SerialTrainer(task, 1 if slots == "auto" else slots, device)
    if trainer == "fused" and slots != "auto":
        return FusedTrainer(task, slots, device)
    widths = _widths(most) if slots == "auto" else [slots]
    seconds = measure(task, widths, device, say if trainer == "auto" else None)
    if trainer == "auto" and slots == "auto":
        seconds[0] = seconds_a_step(SerialTrainer(_small(task), 1, device), 1)
    width = min(seconds, key=seconds.get, default=0)  # type: ignore[arg-type]
    if width == 0:
        say("trains serially, one member at a time")
        return SerialTrainer(task, 1, device)
    gain = f", {seconds[0] / seconds[width]:.1f} times as fast as serial" if 0 in seconds else ""
    say(f"trains fused, {width} members at once{gain}")
    return FusedTrainer(task, width, device)


def measure(
    task: Task,
    widths: list[int],
    device: torch.device | str,
    say: Callable[[str], object] | None,
) -> dict[int, float]:
    """Return width -> seconds a step and member of the fused trainer.

    Growing stops when memory ends, or after two widths that are no gain.

    Args:
        say: is given the reason if the model cannot be mapped; None: raise instead.
    """
    seconds: dict[int, float] = {}
    misses = 0
    for width in widths:
        try:
            now = seconds_a_step(FusedTrainer(_small(task), width, device), width)
        except ModelError as error:
            if say is None:
                raise
            say(f"{error}".replace("; use trainer='serial'", ""))
            break
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        misses = 0 if now < _WORTH * min(seconds.values(), default=now * 2) else misses + 1
        seconds[width] = now
        if misses == 2:
            break
    return seconds


def seconds_a_step(trainer: Trainer, members: int) -> float:
    """Return seconds a step and member, the better of two epochs after one to warm up."""
    trainer.begin(seed=0)
    for slot in range(members):
        trainer.start(slot, Plan.none())
    trainer.epoch()
    times = []
    for _ in range(2):
        started = time.perf_counter()
        trainer.epoch()  # its scores are read back, so the device has finished
        times.append(time.perf_counter() - started)
    return min(times) / (_STEPS * members)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _widths(most: int) -> list[int]:
    widths = [1 << power for power in range(1, max(most, 1).bit_length())]
    return widths if not widths or widths[-1] == most else [*widths, most]


def _small(task: Task) -> Task:
    """Return the task on a few batches of its data."""
    data: Data = copy.copy(task.data)
    train, val = data.train, data.val
    rows = min(len(train), _STEPS * task.batch_size)
    data.train = Split(train.x[:rows], train.y[:rows])
    data.val = Split(val.x[: task.batch_size], val.y[: task.batch_size])
    return replace(task, data=data)
