"""Draw docs/kinds.png, what each kind does to feature maps: `python docs/kinds.py`.

It needs matplotlib: `pip install -e .[docs]`.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from droptune.kinds import KINDS

RATE, SIDE, CHANNELS = 0.3, 24, 3
#: Of which one sample says little: they drop it whole, or leave it, three samples are drawn.
BY_SAMPLE = ("drop_path", "pattern")


def maps() -> Tensor:
    """Return smooth positive maps, like those behind a convolution and a ReLU."""
    coarse = torch.rand(3, CHANNELS, 6, 6, generator=torch.Generator().manual_seed(4))
    return interpolate(coarse, size=SIDE, mode="bicubic").clamp(min=0.02)


def noisy(name: str, x: Tensor) -> Tensor:
    """Return three pictures: channels of a sample, or samples where these are the unit."""
    kind = KINDS[name]("picture", RATE).train()
    kind.stream.seed(31)  # by which each kind shows what it does
    if name == "locked":  # the map's lower side is time, its other side the features
        return kind(x[:, 0])
    y = kind(x)
    return y[:, 0] if name in BY_SAMPLE else y[0]


def main() -> None:
    names, x = list(KINDS), maps()
    columns = 4
    rows = -(-(len(names) + 1) // columns)
    figure = plt.figure(figsize=(2.8 * columns, 1.35 * rows), layout="constrained")
    parts = figure.subfigures(rows, columns).flat
    for part, name in zip(parts, ["as it was", *names], strict=False):
        images = x[0] if name == "as it was" else noisy(name, x)
        unit = "three samples" if name in (*BY_SAMPLE, "locked") else "three channels"
        part.suptitle(f"{name} ({unit})", fontsize=8)
        for axes, image in zip(part.subplots(1, CHANNELS), images, strict=True):
            axes.imshow(image, cmap="viridis", vmin=-0.5, vmax=1.5, interpolation="nearest")
            axes.set_axis_off()
    figure.savefig(Path(__file__).parent / "kinds.png", dpi=110)


if __name__ == "__main__":
    main()
