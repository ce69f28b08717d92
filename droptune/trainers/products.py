"""Matrix products on CPU, by the library that uses all of the processor.

torch multiplies matrices of float32 with MKL, which keeps to AVX2 on processors that are not
Intel's. oneDNN, which torch carries too, uses AVX-512 there, and takes half the time.
"""

import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

#: oneDNN is asked for by allowing it bfloat16, which it uses where the processor has matrix
#: tiles for it (AMX). Elsewhere its products are float32's; how much more their error may be.
_AS_EXACT = 4


@contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """Let products of float32 on CPU be oneDNN's where they are as exact as MKL's, and faster.

    Which it is depends on the processor and on torch alone, so a run that is repeated on a
    machine multiplies as it did. What the user has set stands.

    Args:
        device: where the products are; on others than a CPU nothing changes.
    """
    if not are_fast(device):
        yield
        return
    _SWITCH.on()
    try:
        yield
    finally:
        _SWITCH.off()


def are_fast(device: torch.device) -> bool:
    """Tell whether `fast_products` changes anything on a device."""
    return device.type == "cpu" and _pays()


class _Switch:
    """The setting, which is one for the process, for as long as any thread wants it."""

    def __init__(self) -> None:
        self._lock, self._wanted, self._set = threading.Lock(), 0, False

    def on(self) -> None:
        with self._lock:
            self._wanted += 1
            if self._wanted == 1:
                self._set = _setting().fp32_precision == "none"
                if self._set:
                    _setting().fp32_precision = "bf16"

    def off(self) -> None:
        with self._lock:
            self._wanted -= 1
            if not self._wanted and self._set and _setting().fp32_precision == "bf16":
                _setting().fp32_precision = "none"


_SWITCH = _Switch()


def _setting() -> Any:
    """Return what holds the precision of oneDNN's products; None before torch 2.9."""
    return getattr(torch.backends.mkldnn, "matmul", None)


@cache
def _pays() -> bool:
    """Tell whether oneDNN's products use more of this processor than MKL's, and are as exact."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    if not wide or _is_intels() or not hasattr(_setting(), "fp32_precision"):
        return False
    draw = torch.Generator("cpu").manual_seed(0)
    kind = {"generator": draw, "dtype": torch.float32, "device": "cpu"}
    a, b = (torch.randn(shape, **kind) for shape in ((8, 64, 128), (8, 128, 64)))
    true, usual = torch.bmm(a.double(), b.double()), torch.bmm(a, b)
    _SWITCH.on()
    try:
        found = torch.bmm(a, b)
    finally:
        _SWITCH.off()
    return bool((found - true).abs().max() <= _AS_EXACT * (usual - true).abs().max())


def _is_intels() -> bool:
    about = Path("/proc/cpuinfo")
    said = about.read_text() if about.exists() else platform.processor()
    return "GenuineIntel" in said
