"""Memory of the process, and its share of a GPU's."""

import ctypes
import gc

import torch


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
