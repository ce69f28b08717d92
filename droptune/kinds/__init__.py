"""The kinds of dropout, by name."""

from droptune.kinds.alpha import Alpha, FeatureAlpha
from droptune.kinds.base import Kind
from droptune.kinds.gaussian import Gaussian
from droptune.kinds.noise import Stream, derive
from droptune.kinds.standard import Channel, Standard

#: Every kind that a plan may name.
KINDS: dict[str, type[Kind]] = {
    kind.name: kind for kind in (Standard, Channel, Gaussian, Alpha, FeatureAlpha)
}

__all__ = [
    "KINDS",
    "Alpha",
    "Channel",
    "FeatureAlpha",
    "Gaussian",
    "Kind",
    "Standard",
    "Stream",
    "derive",
]
