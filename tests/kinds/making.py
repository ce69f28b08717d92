"""What the tests of kinds share: kinds at the start of an epoch, and tensors that suit them."""

import torch
from torch import Tensor

from droptune.kinds import KINDS, Kind
from droptune.kinds.alpha import SATURATION
from droptune.kinds.base import INSIDE
from droptune.kinds.coarse import kept_share

ALPHA = {"alpha", "feature_alpha"}
#: A tensor of each layout.
LAYOUTS = {
    "NF": (4, 3), "NLF": (4, 3, 5), "NCL": (4, 3, 5), "NHWF": (4, 3, 5, 5), "NCHW": (4, 3, 5, 5),
    "NCDHW": (4, 3, 2, 5, 5), "NLL": (4, 5, 5), "NHLL": (4, 3, 5, 5),
    "NLS": (4, 3, 5), "NLM": (4, 3, 5), "GS": (8, 2), "VF": (7, 3),
}  # fmt: skip
#: Those of tensors that are handed from layer to layer.
BETWEEN_LAYERS = set(LAYOUTS) - INSIDE
#: Shapes of a batch that a kind can act on, where it is no maps.
SUITED = {
    "locked": (32, 9, 3), "pattern_tokens": (32, 9, 3), "zoneout": (32, 9, 3),
    "weight_drop": (32, 9), "embedding": (32, 9),
}  # fmt: skip
#: The role at which a kind is tried: of the kinds for residual branches, and of all but these.
ROLES = {"drop_key": "attention"}
#: Shapes at which a kind draws thousands of numbers.
MANY = {
    "locked": (64, 2, 800), "drop_path": (50_000, 1), "max_drop": (64, 800, 2, 2),
    "max_drop_channel": (64, 3, 20, 40), "drop_block": (500, 2, 16, 16), "pattern": (9000, 1, 4, 4),
    "pattern_tokens": (300, 40, 20),
    "weight_drop": (200, 250), "embedding": (50_000, 1),
    "drop_key": (25, 5, 400),
    "controlled": (2, 1, 4000),
}  # fmt: skip


def make(name: str, rate: float = 0.5, seed: int = 0, clock: int = 0, site: str = "fc") -> Kind:
    """Return a kind in training mode, its noise at the start of an epoch."""
    return started(KINDS[name](site, rate), seed, clock)


def started(kind: Kind, seed: int = 0, clock: int = 0) -> Kind:
    """Put a kind in training mode, its noise at the start of an epoch."""
    kind.train().stream.seed(seed, clock)
    return kind


def role(name: str) -> str:
    """Return a role that the kind fits."""
    return ROLES.get(name, "residual")


def several(kind: Kind, x: Tensor, calls: int = 40) -> Tensor:
    """Return what so many calls make of a tensor, stacked."""
    return torch.stack([kind(x) for _ in range(calls)])


def batch(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def suited(name: str, seed: int = 0) -> Tensor:
    """Return a batch that the kind can act on: sequences and matrices, maps for the others."""
    return batch(*SUITED.get(name, (32, 3, 9, 9)), seed=seed)


def many(name: str) -> Tensor:
    """Return a large batch without zeros that the kind can act on."""
    return batch(*MANY.get(name, (200, 250, 1))).abs() + 1


def dropped(name: str, rate: float, x: Tensor) -> Tensor:
    """Return where elements were dropped; alpha sets them all to one value, the others to 0."""
    y = make(name, rate)(x)
    if name not in ALPHA:
        return y == 0
    if name == "alpha":
        rate = 1 - kept_share(torch.tensor(rate)).item()
    scale = (1 - rate + SATURATION**2 * rate * (1 - rate)) ** -0.5
    value = scale * SATURATION - scale * rate * SATURATION
    return (y - value).abs() < 1e-5
