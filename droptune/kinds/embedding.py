"""Embedding dropout: whole word types."""

from typing import ClassVar

from torch import Tensor

from droptune.kinds.base import Kind
from droptune.kinds.standard import mask


class EmbeddingRows(Kind):
    """Drop rows of an embedding: `E[v] * m[v] / (1 - rate)`, one m ~ Bernoulli(1 - rate) a row.

    One mask a forward: a word that is dropped is dropped wherever it occurs in the batch.

    Gal, Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural
    Networks", https://arxiv.org/abs/1512.05287; `dropoute` of the AWD-LSTM, Merity, Keskar,
    Socher, https://arxiv.org/abs/1708.02182.

    Layout VF: sites `PATH@rows` of `nn.Embedding`. Sensible rates: 0 to 0.2.
    """

    name: ClassVar[str] = "embedding"
    layouts: ClassVar[frozenset[str]] = frozenset({"VF"})

    def drop(self, x: Tensor) -> Tensor:
        self.check_axes(x)
        return x * mask(self.stream.uniform((x.shape[0], 1), x.device), self.rate).to(x.dtype)
