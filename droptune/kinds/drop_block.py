"""DropBlock: contiguous blocks of feature maps."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from droptune.kinds.base import Kind
from droptune.kinds.setting import Setting
from droptune.kinds.standard import kept


class DropBlock(Kind):
    """Drop blocks of positions, the same ones in all channels of a sample.

    Each place where a block fits into the map starts one with probability
    `gamma = rate * positions / (block * places)`, block and places counted in positions: for
    a map of H x W, `rate * H * W / b^2 / ((H - b + 1) * (W - b + 1))`. What is kept is scaled
    by positions / kept, sample by sample. Blocks overlap, so a little less than `rate` is
    dropped, and corners less often than the middle: it is a sample's mean that is kept.

    A block is `size` positions a side, or the side where that is shorter. A map of at most
    two blocks a side can be dropped whole, with probability `gamma ^ corners` (only one block
    covers a corner, and those of the corners cover all): then nothing is left to be scaled,
    and the others are divided by 1 minus that to keep the mean. On a map no larger than a
    block this is drop_path; there another kind is the better choice.

    Ghiasi, Lin, Le, "DropBlock: A regularization method for convolutional networks",
    https://arxiv.org/abs/1810.12890; timm (`drop_block_2d`) and the authors' own code scale
    by batch.

    Settings:
        size: positions on a side of a block; 7 in the paper, and 1 is no block but a position.

    Layouts NCHW and NCL, whose blocks are intervals; in late stages of deep networks.
    Sensible rates: 0.05 to 0.25.
    """

    name: ClassVar[str] = "drop_block"
    layouts: ClassVar[frozenset[str]] = frozenset({"NCL", "NCHW"})
    settings: ClassVar[Mapping[str, Setting]] = {"size": Setting(7, 1, 15, 2, whole=True)}

    size: Tensor

    def drop(self, x: Tensor) -> Tensor:
        self.check_axes(x)
        sides = x.shape[2:]
        block = [self.size.clamp(max=side) for side in sides]
        places = [side - b + 1 for side, b in zip(sides, block, strict=True)]
        gamma = self.rate * (prod(sides) / (prod(block) * prod(places)))
        uniform = self.stream.uniform((x.shape[0], 1, *sides), x.device)
        mask = free(1 - kept(uniform, gamma), block)
        count = mask.flatten(1).sum(1).clamp(min=1).view(-1, 1, *(1,) * len(sides))
        scale = prod(sides) / count / (1 - lost(gamma, sides, block))
        return x * (mask * scale).to(x.dtype)


def free(starts: Tensor, block: Sequence[Tensor]) -> Tensor:
    """Return 0 where a block lies and 1 elsewhere.

    Blocks are counted by differences of running sums, in whole numbers. Their size is a number
    like any other there; to a pooling it would have to be known when a step is traced.

    Args:
        starts: 1 where a block starts and 0 elsewhere, (N, 1, *sides). Blocks that would not
            fit into the map do not count.
        block: positions on each side of a block.

    Returns:
        A tensor of the shape of `starts`.
    """
    covers = starts.int()
    for axis, size in enumerate(block, start=2):
        side = starts.shape[axis]
        index = torch.arange(side, device=starts.device)
        fits = (index <= side - size).view(-1, *(1,) * (starts.dim() - axis - 1))
        total = (covers * fits).cumsum(axis, dtype=torch.int32)
        behind = total.index_select(axis, (index - size).clamp(min=0).long())
        covers = total - behind * (index >= size).view(fits.shape)
    return (covers == 0).to(starts.dtype)


def lost(gamma: Tensor, sides: Sequence[int], block: Sequence[Tensor]) -> Tensor:
    """Return the probability that all of a map is dropped; 0 where corners cannot do it."""
    corners = prod(1 + (side > b).to(gamma.dtype) for side, b in zip(sides, block, strict=True))
    enough = prod((side <= 2 * b).to(gamma.dtype) for side, b in zip(sides, block, strict=True))
    square = gamma * gamma  # a power by a tensor may differ in its last bit under vmap
    power = torch.where(corners > 2, square * square, torch.where(corners > 1, square, gamma))
    return power * enough
