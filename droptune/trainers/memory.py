"""Memory of the process, and its share of a GPU's."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: What messages say where memory ends: of torch on a CPU, on other devices, of cuBLAS.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on a GPU or on the CPU."""
    said = str(error) if isinstance(error, RuntimeError) else ""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(text in said for text in _OUT_OF_MEMORY)


def keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks of memory, as torch's GPU allocator does.

    By default it returns large blocks to the system, and every step pays page faults for
    the same megabytes anew: measured, a quarter to a third of a fused step on CPU. Does
    nothing where the C library has no `mallopt`.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)
    mallopt(top_pad, 64 << 20)


def release_memory() -> None:
    """Give back what dropped trainers held; on a GPU others have the use of it.

    A traced step holds on to itself in circles, which only the garbage collector finds.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


_OF_FREE = 0.9  # the rest is left to others, whose use grows and shrinks


@contextmanager
def gpu_share(device: torch.device, share: float | None) -> Iterator[None]:
    """Let this process use no more than a share of a GPU's memory meanwhile.

    Whoever measures how much fits, finds the share and not the whole. On other devices than
    CUDA's it does nothing.

    Args:
        device: to train on.
        share: above 0, up to 1; None: nine tenths of what is free now, with what this process
            holds already.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_per_process_memory_fraction(device)
    if share is None:
        free, total = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device)
        share = min(before, (held + _OF_FREE * free) / total)
    torch.cuda.set_per_process_memory_fraction(share, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device)
        torch.cuda.empty_cache()
