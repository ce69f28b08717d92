"""LayerDrop: a residual branch for the whole batch, or not at all."""

from typing import ClassVar

from torch import Tensor

from droptune.kinds.drop_path import DropPath
from droptune.kinds.standard import kept


class LayerDrop(DropPath):
    """Skip a residual branch for the whole batch: `x * m`, one m ~ Bernoulli(1 - rate) a call.

    Unscaled, as in the paper: a branch that stays is what it is in eval mode, bit for bit, and
    the mean over draws is `(1 - rate) * x`. Drop path scales, and keeps the mean.

    LayerDrop: Fan, Grave, Joulin, "Reducing Transformer Depth on Demand with Structured
    Dropout", https://arxiv.org/abs/1909.11556. There all branches of a layer are skipped
    together. Here each is by itself, attention and feed-forward of a transformer's layer too:
    what one layer is, a model does not say.

    Layouts as drop path. Sensible rates: 0.1 to 0.2; higher where layers are to be pruned.
    """

    name: ClassVar[str] = "layer_drop"

    def drop(self, x: Tensor) -> Tensor:
        return x * kept(self.stream.uniform((), x.device), self.rate).to(x.dtype)
