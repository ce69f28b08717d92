"""Cheap Bernoulli masks on CPU: 16 random bits an element, thresholds on the grid of 1/65536.

Drawing random numbers is most of what dropout costs on a CPU, and 24 bits each are more than a
rate needs. Here four numbers come from each 64-bit draw (`Stream.words`).
"""

from typing import Any

import torch
from torch import Tensor

#: Steps of the grid on which rates lie: the values of a word.
GRID = 1 << 16
#: Elements of which masks are made at once where there are more: what they take fits in caches.
PIECE = 1 << 20
#: From this many elements on, memory costs more than a mask made again in the backward pass.
MANY = 1 << 21


def kept_share(rate: Tensor) -> Tensor:
    """Return the share that is kept at a rate in [0, 1): 1 - rate, rounded up to the grid.

    Up as far as float32 can tell: a rate within 1e-7 of a step may fall onto it.

    Masks are scaled by this number itself, so the mean is preserved exactly. A rate below
    1/65536 keeps everything; at least 1/65536 is always kept.
    """
    return torch.rsub(rate, GRID, alpha=GRID).ceil_().mul_(1 / GRID)


def gate(words: Tensor, keep: Tensor) -> Tensor:
    """Return float32 numbers, 1 where a word is among the lower share `keep`, and 0 elsewhere.

    It never becomes boolean: on CPU a comparison and its cast take longer than all this.

    Args:
        words: int16 numbers, uniform over all their values, any shape.
        keep: from `kept_share`; a scalar.
    """
    centred = torch.rsub(keep, -0.5, alpha=-1)  # keep - 0.5, which vmap makes two calls of
    return torch.sub(centred, words, alpha=1 / GRID).ceil_()


def times_mask(x: Tensor, words: Tensor, rate: Tensor) -> Tensor:
    """Return `x * m / keep`, m ~ Bernoulli(keep) for each element, keep = `kept_share(rate)`.

    Args:
        x: any shape; on CPU.
        words: int16, of the shape of `x`; which elements are dropped follows from them.
        rate: probability of dropping, in [0, 1); a scalar.
    """
    if x.numel() >= MANY and x.is_contiguous():
        return _InPieces.apply(x, words, rate)
    return _plain(x, words, kept_share(rate))


def _mask(words: Tensor, keep: Tensor, dtype: torch.dtype) -> Tensor:
    return gate(words, keep).mul_(keep.reciprocal()).to(dtype)


def _plain(x: Tensor, words: Tensor, keep: Tensor) -> Tensor:
    return x * _mask(words, keep, x.dtype)


class _InPieces(torch.autograd.Function):
    """The same product for large tensors, bit for bit.

    No more than a piece of the mask exists at a time. The backward pass makes it again from the
    words, which take half its memory: fresh memory is what large tensors cost most.
    """

    @staticmethod
    def forward(x: Tensor, words: Tensor, rate: Tensor) -> Tensor:
        keep, result = kept_share(rate), torch.empty_like(x)
        pieces = zip(*(t.view(-1).split(PIECE) for t in (x, words, result)), strict=True)
        for given, bits, product in pieces:
            torch.mul(given, _mask(bits, keep, x.dtype), out=product)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return times_mask(gradient, *ctx.saved_tensors), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Tensor) -> tuple[Tensor, int]:
        def member(x: Tensor, words: Tensor, rate: Tensor) -> Tensor:
            return _plain(x, words, kept_share(rate))

        return torch.vmap(member, in_dims)(*inputs), 0
