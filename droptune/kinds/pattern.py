"""AutoDropout's structured patterns: a grid of tiles, turned, sheared and moved at random."""

from math import cos, radians, sin
from typing import ClassVar

import torch
from torch import Tensor

from droptune.errors import PlanError
from droptune.kinds.base import Kind
from droptune.kinds.standard import kept


class Pattern(Kind):
    """Drop a grid of tiles from a sample, with probability `rate` for each sample.

    The grid has `repeat` x `repeat` tiles with gaps between them, its centre at the middle of
    a canvas of twice the map's sides; it is sheared to the side, then down, and turned about
    that centre. Each sample sees the canvas through a window of the map's size at a random
    place. What the window keeps is scaled by positions / kept, so that the sample's mean
    stays. A sample that would lose everything is left as it is, for drawing until something
    is kept would depend on what was drawn; and so is a sample that gets no pattern.

    Pham, Le, "AutoDropout: Learning Dropout Patterns to Regularize Deep Networks",
    https://arxiv.org/abs/2101.01761, without its controller. There a pattern is always on;
    here `rate` says how often. The authors' code is no longer public, so the parameters are
    theirs, while the way of drawing, the units and the defaults are this module's own. Their
    eighth parameter, `residual`, is left to the choice of sites.

    Layout NCHW, behind a norm. Sensible rates: up to 0.5; by default the grid takes about a
    quarter of the map.

    Args:
        site: the site's name.
        rate: probability that a sample gets a pattern, in [0, 1).
        size: side of a tile, as a part of the map's side; at least a pixel, 0 is no tile.
        stride: gap between tiles, as a part of the map's side; at least a pixel unless 0.
        repeat: tiles in a row and in a column.
        rotate: degrees.
        shear_x: pixels to the side for each pixel down.
        shear_y: pixels down for each pixel to the side.
        share_c: whether all channels of a sample share one window.

    Raises:
        PlanError: size, stride or repeat is negative.
    """

    name: ClassVar[str] = "pattern"
    layouts: ClassVar[frozenset[str]] = frozenset({"NCHW"})

    def __init__(
        self,
        site: str,
        rate: float = 0.0,
        *,
        size: float = 0.25,
        stride: float = 0.25,
        repeat: int = 4,
        rotate: float = 0.0,
        shear_x: float = 0.0,
        shear_y: float = 0.0,
        share_c: bool = True,
    ) -> None:
        super().__init__(site, rate)
        if min(size, stride, repeat) < 0:
            raise PlanError(
                f"size {size}, stride {stride}, repeat {repeat}: a pattern needs numbers from 0 on"
            )
        self.size, self.stride, self.repeat = size, stride, repeat
        self.rotate, self.shear_x, self.shear_y = rotate, shear_x, shear_y
        self.share_c = share_c

    def drop(self, x: Tensor) -> Tensor:
        self.check_axes(x)
        samples, channels, height, width = x.shape
        spared = kept(self.stream.uniform((samples, 1, 1, 1), x.device), self.rate)
        windows = (2, samples, 1 if self.share_c else channels, 1, 1)
        mask = 1 - self.tiles(self.stream.uniform(windows, x.device), height, width)
        count = mask.sum((2, 3), keepdim=True)
        mask = torch.where(count > 0, mask * (height * width / count.clamp(min=1)), 1.0)
        return x * (spared + (1 - spared) * mask).to(x.dtype)

    def tiles(self, uniform: Tensor, height: int, width: int) -> Tensor:
        """Return 1 where a tile lies in a window and 0 elsewhere.

        The canvas is never made: each pixel of a window is carried back onto the straight grid.

        Args:
            uniform: where windows lie, down and to the side, (2, *windows, 1, 1) in [0, 1).
            height: of the windows, in pixels.
            width: of the windows, in pixels.

        Returns:
            A tensor (*windows, height, width).
        """
        down = torch.arange(height, device=uniform.device).view(-1, 1) + 0.5 - height
        side = torch.arange(width, device=uniform.device) + 0.5 - width
        down = down + (uniform[0] * (height + 1)).floor()  # from the centre of the canvas
        side = side + (uniform[1] * (width + 1)).floor()
        turn = radians(self.rotate)
        down, side = cos(turn) * down - sin(turn) * side, sin(turn) * down + cos(turn) * side
        down = down - self.shear_y * side
        side = side - self.shear_x * down
        return self.on_grid(down, height) * self.on_grid(side, width)

    def on_grid(self, along: Tensor, length: int) -> Tensor:
        """Tell by 1 or 0 whether coordinates from the grid's centre meet a tile, on one axis."""
        tile = max(1, round(self.size * length)) if self.size else 0
        gap = max(1, round(self.stride * length)) if self.stride else 0
        extent = self.repeat * (tile + gap) - gap
        along = along + extent / 2
        inside = (along >= 0) & (along < extent) & (along.remainder(tile + gap) < tile)
        return inside.to(along.dtype)
