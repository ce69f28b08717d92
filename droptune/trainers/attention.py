"""Attention under `torch.vmap`, which has no batching rule for the fused kernels."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def mappable_attention() -> Iterator[None]:
    """Let attention be the plain arithmetic that vmap batches; fused kernels it calls in turn."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
