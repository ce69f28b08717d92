"""Seats: where processes work on this machine, one a GPU, or some on its CPU."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from droptune.errors import StudyError

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Seat:
    """Where one process works.

    Attributes:
        name: of its device, as this process would name it.
        device: the setting of a study there.
        environment: what the process has besides its parent's; it shows it one GPU, or none.
    """

    name: str
    device: str
    environment: Mapping[str, str]


def seats(devices: str, workers: int | None, gpus: int, cores: int) -> list[Seat]:
    """Return the seats of a machine.

    Args:
        devices: "auto" (all GPUs, else the CPU), "cpu", or numbers of GPUs such as "0,1,3", as
            this process sees them.
        workers: processes in all; None: one a GPU, one on the CPU.
        gpus: how many this process sees.
        cores: of the CPU, which processes without a GPU share.

    Raises:
        StudyError: there is no such GPU, or fewer processes than GPUs were asked for.
    """
    numbers = _numbers(devices, gpus)
    if not numbers:
        return cpu_seats(workers or 1, cores)
    count = workers or len(numbers)
    if count < len(numbers) and devices != "auto":
        raise StudyError(
            f"--workers {count} cannot use the {len(numbers)} GPUs of --devices {devices}; a "
            "process uses one, give --workers that number or more, or fewer devices"
        )
    return [_gpu_seat(numbers[n % len(numbers)]) for n in range(count)]


def cpu_seats(workers: int, cores: int) -> list[Seat]:
    """Return seats that share the cores of the CPU; one process alone has torch's own threads."""
    if workers == 1:
        return [Seat("cpu", "cpu", {VISIBLE: ""})]
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // workers)))
    return [Seat("cpu", "cpu", {VISIBLE: "", "OMP_NUM_THREADS": threads})] * workers


def _gpu_seat(number: int) -> Seat:
    """Return the seat at a GPU; where only some are visible, numbers count those."""
    shown = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
    return Seat(f"cuda:{number}", "auto", {VISIBLE: shown[number] if shown else str(number)})


def _numbers(devices: str, gpus: int) -> Sequence[int]:
    """Return the numbers of the GPUs that are asked for; none: the CPU."""
    if devices == "auto":
        return range(gpus)
    if devices == "cpu":
        return []
    try:
        numbers = [int(part) for part in devices.split(",")]
    except ValueError:
        numbers = [-1]
    if min(numbers) < 0 or len({*numbers}) < len(numbers):
        raise StudyError(
            f"--devices {devices!r}: give auto, cpu, or different numbers of GPUs, such as 0,1"
        )
    if max(numbers) >= gpus:
        there = f"GPUs 0 to {gpus - 1}" if gpus > 1 else "GPU 0 alone" if gpus else "no GPU"
        raise StudyError(f"--devices {devices!r}: this machine has {there}; or give auto or cpu")
    return numbers
