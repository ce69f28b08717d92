"""Stochastic depth: whole samples of a residual branch."""

from typing import ClassVar

from torch import Tensor

from droptune.kinds.base import Kind
from droptune.kinds.standard import mask


class DropPath(Kind):
    """Drop whole samples: `x * m / (1 - rate)`, one m ~ Bernoulli(1 - rate) for each sample.

    Stochastic depth: Huang, Sun, Liu, Sedra, Weinberger, "Deep Networks with Stochastic
    Depth", https://arxiv.org/abs/1603.09382; by sample and scaled at training time as
    `drop_path` of timm.

    Right only on a residual branch, before it is added to its shortcut: anywhere else a
    dropped sample loses all it holds. Hence the role: a space tries it at no other site.
    `find_sites` lists residual branches. Any layout with samples in front. Sensible rates:
    0.1 to 0.5, the larger the model for its data the higher.
    """

    name: ClassVar[str] = "drop_path"
    roles: ClassVar[frozenset[str]] = frozenset({"residual"})
    branches: ClassVar[bool] = True

    @classmethod
    def fits(cls, layout: str, role: str) -> bool:
        return super().fits(layout, role) and layout.startswith("N")

    def drop(self, x: Tensor) -> Tensor:
        shape = (x.shape[0], *(1,) * (x.dim() - 1))
        return x * mask(self.stream.uniform(shape, x.device), self.rate).to(x.dtype)
