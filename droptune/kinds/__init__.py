"""The kinds of dropout, by name."""

from droptune.kinds.alpha import Alpha, FeatureAlpha
from droptune.kinds.base import Kind
from droptune.kinds.concrete import Concrete
from droptune.kinds.controlled import Controlled
from droptune.kinds.drop_block import DropBlock
from droptune.kinds.drop_key import DropKey
from droptune.kinds.drop_path import DropPath
from droptune.kinds.embedding import EmbeddingRows
from droptune.kinds.gaussian import Gaussian
from droptune.kinds.layer_drop import LayerDrop
from droptune.kinds.locked import Locked
from droptune.kinds.max_drop import MaxDrop, MaxDropChannel
from droptune.kinds.noise import Stream, derive
from droptune.kinds.pattern import Pattern
from droptune.kinds.pattern_tokens import PatternTokens
from droptune.kinds.setting import Setting
from droptune.kinds.standard import Channel, Standard
from droptune.kinds.stochastic import Stochastic
from droptune.kinds.weight_drop import WeightDrop
from droptune.kinds.zoneout import Zoneout

_ALL: tuple[type[Kind], ...] = (
    Standard, Channel, Gaussian, Alpha, FeatureAlpha, Stochastic, MaxDrop, MaxDropChannel,
    DropBlock, Locked, Pattern, PatternTokens, DropPath, LayerDrop, DropKey, Zoneout, WeightDrop,
    EmbeddingRows, Concrete, Controlled,
)  # fmt: skip

#: Every kind that a plan may name.
KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in _ALL}
Kind.known = KINDS

__all__ = [
    "KINDS",
    "Alpha",
    "Channel",
    "Concrete",
    "Controlled",
    "DropBlock",
    "DropKey",
    "DropPath",
    "EmbeddingRows",
    "FeatureAlpha",
    "Gaussian",
    "Kind",
    "LayerDrop",
    "Locked",
    "MaxDrop",
    "MaxDropChannel",
    "Pattern",
    "PatternTokens",
    "Setting",
    "Standard",
    "Stochastic",
    "Stream",
    "WeightDrop",
    "Zoneout",
    "derive",
]
