"""DropBlock: contiguous blocks of feature maps."""

from collections.abc import Sequence
from math import prod
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from droptune.kinds.base import Kind
from droptune.kinds.standard import kept


class DropBlock(Kind):
    """Drop blocks of positions, the same ones in all channels of a sample.

    Each place where a block fits into the map starts one with probability
    `gamma = rate * positions / (block * places)`, block and places counted in positions: for
    a map of H x W, `rate * H * W / b^2 / ((H - b + 1) * (W - b + 1))`. What is kept is scaled
    by positions / kept, sample by sample. Blocks overlap, so a little less than `rate` is
    dropped, and corners less often than the middle: it is a sample's mean that is kept.

    A block is `SIZE` positions a side, or the side where that is shorter. A map of at most
    two blocks a side can be dropped whole, with probability `gamma ^ corners` (only one block
    covers a corner, and those of the corners cover all): then nothing is left to be scaled,
    and the others are divided by 1 minus that to keep the mean. On a map no larger than a
    block this is drop_path; there another kind is the better choice.

    Ghiasi, Lin, Le, "DropBlock: A regularization method for convolutional networks",
    https://arxiv.org/abs/1810.12890; timm (`drop_block_2d`) and the authors' own code scale
    by batch.

    Layouts NCHW and NCL, whose blocks are intervals; in late stages of deep networks.
    Sensible rates: 0.05 to 0.25.
    """

    name: ClassVar[str] = "drop_block"
    layouts: ClassVar[frozenset[str]] = frozenset({"NCL", "NCHW"})
    #: Positions on a side of a block.
    SIZE: ClassVar[int] = 7

    def drop(self, x: Tensor) -> Tensor:
        self.check_axes(x)
        sides = x.shape[2:]
        block = [min(self.SIZE, side) for side in sides]
        places = [side - b + 1 for side, b in zip(sides, block, strict=True)]
        gamma = self.rate * (prod(sides) / (prod(block) * prod(places)))
        uniform = self.stream.uniform((x.shape[0], 1, *places), x.device)
        mask = kept(widened(uniform, block), gamma)
        count = mask.flatten(1).sum(1).clamp(min=1).view(-1, 1, *(1,) * len(sides))
        scale = prod(sides) / count / (1 - lost(gamma, sides, block))
        return x * (mask * scale).to(x.dtype)


def widened(uniform: Tensor, block: Sequence[int]) -> Tensor:
    """Return for each position the highest number of all blocks that cover it.

    Thresholding it gives the union of the blocks, at any rate: the rate need not be known,
    so members of a fused trainer share this work.

    Args:
        uniform: a number for each place of a block, (N, 1, *places).
        block: positions on each side of a block.

    Returns:
        A tensor (N, 1, *sides), side = places + block - 1.
    """
    if len(block) == 1:
        return widened(uniform.unsqueeze(-1), (*block, 1)).squeeze(-1)
    margins = [b - 1 for b in reversed(block) for _ in range(2)]
    return F.max_pool2d(F.pad(uniform, margins), tuple(block), stride=1)


def lost(gamma: Tensor, sides: Sequence[int], block: Sequence[int]) -> Tensor | float:
    """Return the probability that all of a map is dropped; 0 where corners cannot do it."""
    if any(side > 2 * b for side, b in zip(sides, block, strict=True)):
        return 0.0
    return gamma ** (2 ** sum(side > b for side, b in zip(sides, block, strict=True)))
