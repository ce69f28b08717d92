"""Draw docs/kinds.png, what each kind does to a tensor that it fits: `python docs/kinds.py`.

It needs matplotlib: `pip install -e .[docs]`.
"""

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from droptune.kinds import KINDS, Kind

RATE, SIDE, COPIES, COLUMNS = 0.3, 24, 3, 4
#: What the tensors are that a kind draws other masks for; elsewhere it is channels of a sample.
SAMPLES, CALLS = "three samples", "three calls"
UNITS = {
    "drop_path": SAMPLES, "pattern": SAMPLES, "layer_drop": CALLS, "weight_drop": CALLS,
    "embedding": CALLS, "controlled": CALLS,
}  # fmt: skip


def maps() -> Tensor:
    """Return smooth positive maps, like those behind a convolution and a ReLU."""
    coarse = torch.rand(3, COPIES, 6, 6, generator=torch.Generator().manual_seed(4))
    return interpolate(coarse, size=SIDE, mode="bicubic").clamp(min=0.02)


def noisy(kind: Kind, x: Tensor) -> tuple[str, Tensor]:
    """Return what three pictures of a kind show, and the pictures.

    Args:
        kind: in training mode.
        x: maps, samples x channels x height x width. A kind that takes none gets one channel of
            each sample: its lower side is then time, tokens, queries or rows.
    """
    unit = UNITS.get(kind.name, "three channels")
    if not kind.layouts or "NCHW" in kind.layouts:
        if unit == CALLS:
            return unit, torch.stack([kind(x)[0, 0] for _ in range(COPIES)])
        return unit, kind(x)[:, 0] if unit == SAMPLES else kind(x)[0]
    if unit == CALLS:
        return unit, torch.stack([kind(x[0, 0]) for _ in range(COPIES)])
    sequences = x[:, 0]
    if "NLL" in kind.layouts:  # weights of attention, each row of which sums to one; shown larger
        weights = sequences / sequences.sum(-1, keepdim=True)
        return SAMPLES, kind(weights) * SIDE / 2
    return SAMPLES, kind(sequences)


def pictures() -> Iterator[tuple[str, Tensor]]:
    """Yield a title and three pictures for each kind, and before these what they start from."""
    x = maps()
    yield "as it was (three channels)", x[0]
    for name in KINDS:
        kind = KINDS[name]("picture", RATE).train()
        kind.stream.seed(31)  # by which each kind shows what it does
        unit, images = noisy(kind, x)
        yield f"{name} ({unit})", images


def main() -> None:
    drawn = list(pictures())
    rows = -(-len(drawn) // COLUMNS)
    figure = plt.figure(figsize=(2.8 * COLUMNS, 1.35 * rows), layout="constrained")
    for part, (title, images) in zip(figure.subfigures(rows, COLUMNS).flat, drawn, strict=False):
        part.suptitle(title, fontsize=8)
        for axes, image in zip(part.subplots(1, COPIES), images, strict=True):
            axes.imshow(image, cmap="viridis", vmin=-0.5, vmax=1.5, interpolation="nearest")
            axes.set_axis_off()
    figure.savefig(Path(__file__).parent / "kinds.png", dpi=110)


if __name__ == "__main__":
    main()
