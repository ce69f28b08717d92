"""AutoDropout's structured patterns: tiles of feature maps, groups of tokens."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from droptune.kinds.base import Kind
from droptune.kinds.setting import Setting
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
    https://arxiv.org/abs/2101.01761; their controller is the sampler `autodropout`. There a
    pattern is always on; here `rate` says how often. The authors' code is no longer public, so
    the settings are theirs, while the way of drawing, the units, ranges and defaults are this
    module's own. Their eighth, `residual`, is the rate at the sites of
    residual branches, which a space has where it tries this kind: 0 leaves them alone.

    Settings:
        size: side of a tile, as a part of the map's side; at least a pixel.
        stride: gap between tiles, as a part of the map's side; at least a pixel unless 0.
        repeat: tiles in a row and in a column.
        rotate: degrees.
        shear_x: pixels to the side for each pixel down.
        shear_y: pixels down for each pixel to the side.
        share_c: 1 where all channels of a sample share one window, 0 where each has its own.

    Layout NCHW, behind a norm. Sensible rates: up to 0.5; by default the grid takes about a
    quarter of the map.
    """

    name: ClassVar[str] = "pattern"
    layouts: ClassVar[frozenset[str]] = frozenset({"NCHW"})
    branches: ClassVar[bool] = True
    settings: ClassVar[Mapping[str, Setting]] = {
        "size": Setting(0.25, 0.05, 0.5, 0.05),
        "stride": Setting(0.25, 0.0, 0.5, 0.05),
        "repeat": Setting(4, 1, 8, 1, whole=True),
        "rotate": Setting(0, 0, 75, 15),
        "shear_x": Setting(0, 0, 0.25, 0.05),
        "shear_y": Setting(0, 0, 0.25, 0.05),
        "share_c": Setting(1, 0, 1, 1, whole=True),
    }

    size: Tensor
    stride: Tensor
    repeat: Tensor
    rotate: Tensor
    shear_x: Tensor
    shear_y: Tensor
    share_c: Tensor

    def drop(self, x: Tensor) -> Tensor:
        self.check_axes(x)
        samples, channels, height, width = x.shape
        spared = kept(self.stream.uniform((samples, 1, 1, 1), x.device), self.rate)
        down, side = self.stream.uniform((2, samples, channels), x.device)
        down = self.shared((down * (height + 1)).floor().long())  # a uniform number is below 1
        side = self.shared((side * (width + 1)).floor().long())
        free = 1 - self.canvas(height, width, x.device)
        count = sums(free, height, width)[down, side][..., None, None]
        mask = free.unfold(0, height, 1).unfold(1, width, 1)[down, side]
        scale = (1 - spared) * (height * width / count.clamp(min=1))
        # Where nothing would be kept the mask is 0, and the sample stays as it is.
        whole = torch.where(count > 0, spared, 1.0)
        return x * torch.addcmul(whole, mask, scale).to(x.dtype)

    def shared(self, place: Tensor) -> Tensor:
        """Give all channels the place of the first, if they share a window: (N, C)."""
        return torch.where(self.share_c > 0, place[:, :1], place)

    def canvas(self, height: int, width: int, device: torch.device) -> Tensor:
        """Return 1 where a tile lies on the canvas and 0 elsewhere.

        Each pixel of the canvas is carried back onto the straight grid.

        Args:
            height: of the map, in pixels.
            width: of the map, in pixels.
            device: where the canvas is made.

        Returns:
            A tensor (2 * height, 2 * width).
        """
        down = torch.arange(2 * height, device=device).view(-1, 1) + 0.5 - height
        side = torch.arange(2 * width, device=device) + 0.5 - width
        turn = self.rotate.double().deg2rad()  # one bit of float64 more or less is none here
        cos, sin = turn.cos().float(), turn.sin().float()
        down, side = cos * down - sin * side, sin * down + cos * side
        down = down - self.shear_y * side
        side = side - self.shear_x * down
        return self.on_grid(down, height) * self.on_grid(side, width)

    def on_grid(self, along: Tensor, length: int) -> Tensor:
        """Tell by 1 or 0 whether coordinates from the grid's centre meet a tile, on one axis."""
        tile, gap = pixels(self.size, length), pixels(self.stride, length)
        extent = self.repeat * (tile + gap) - gap
        along = along + extent / 2
        inside = (along >= 0) & (along < extent) & (along.remainder(tile + gap) < tile)
        return inside.to(along.dtype)


def pixels(part: Tensor, length: int) -> Tensor:
    """Return a part of a side in whole pixels: at least 1, unless the part is 0."""
    return torch.where(part > 0, (part * length).round().clamp(min=1), 0.0)


def sums(canvas: Tensor, height: int, width: int) -> Tensor:
    """Return the sum in every window of a canvas (2 * height, 2 * width).

    Args:
        canvas: whole numbers.
        height: of a window.
        width: of a window.

    Returns:
        A tensor (height + 1, width + 1), by the place of the window.
    """
    total = canvas.int().cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32)
    total = torch.nn.functional.pad(total, (1, 0, 1, 0))
    rows = total[height:] - total[: height + 1]
    return (rows[:, width:] - rows[:, : width + 1]).to(canvas.dtype)
