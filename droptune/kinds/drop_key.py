"""DropKey: keys that attention does not see."""

from typing import ClassVar

import torch
from torch import Tensor

from droptune.kinds.base import Kind
from droptune.kinds.standard import kept


class DropKey(Kind):
    """Hide keys from a query: `w * m / sum(w * m) * sum(w)` along each row of weights.

    m ~ Bernoulli(1 - rate) for each sample, head, query and key. On weights w = softmax(s) it is
    softmax(s) with s set to -inf where m is 0. A row that would lose all its keys is left as it
    is. What is preserved is the sum of each row; a single weight has another mean than w.

    DropKey: Li, Hu, Nie, Han, Jiang, Guo, Liu, Yan, "DropKey for Vision Transformer", CVPR 2023,
    https://arxiv.org/abs/2208.02646, which masks before the softmax.

    Layouts NLL, NHLL, role attention: anywhere else no axis is one of keys. Sensible rates: 0.1
    to 0.3, in the first layers rather than the last.
    """

    name: ClassVar[str] = "drop_key"
    layouts: ClassVar[frozenset[str]] = frozenset({"NLL", "NHLL"})
    roles: ClassVar[frozenset[str]] = frozenset({"attention"})

    def drop(self, x: Tensor) -> Tensor:
        self.check_axes(x)
        mask = kept(self.stream.uniform(x.shape, x.device), self.rate).to(x.dtype)
        left = (x * mask).sum(-1, keepdim=True)
        lost = (x * (1 - mask)).sum(-1, keepdim=True)
        some = left > 0
        # sum(w) / sum(w * m), written so that it is exactly 1 where nothing is lost.
        scale = 1 + lost / torch.where(some, left, 1)
        return x * torch.where(some, mask * scale, 1)
