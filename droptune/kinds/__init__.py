"""The kinds of dropout, by name."""

from droptune.kinds.alpha import Alpha, FeatureAlpha
from droptune.kinds.base import Kind
from droptune.kinds.controlled import Controlled
from droptune.kinds.drop_block import DropBlock
from droptune.kinds.drop_path import DropPath
from droptune.kinds.gaussian import Gaussian
from droptune.kinds.locked import Locked
from droptune.kinds.max_drop import MaxDrop, MaxDropChannel
from droptune.kinds.noise import Stream, derive
from droptune.kinds.pattern import Pattern
from droptune.kinds.standard import Channel, Standard
from droptune.kinds.stochastic import Stochastic

_ALL: tuple[type[Kind], ...] = (
    Standard, Channel, Gaussian, Alpha, FeatureAlpha, Stochastic, MaxDrop, MaxDropChannel,
    DropBlock, Locked, Pattern, DropPath, Controlled,
)  # fmt: skip

#: Every kind that a plan may name.
KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in _ALL}

__all__ = [
    "KINDS",
    "Alpha",
    "Channel",
    "Controlled",
    "DropBlock",
    "DropPath",
    "FeatureAlpha",
    "Gaussian",
    "Kind",
    "Locked",
    "MaxDrop",
    "MaxDropChannel",
    "Pattern",
    "Standard",
    "Stochastic",
    "Stream",
    "derive",
]
