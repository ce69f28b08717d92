"""AutoDropout's patterns for sequences: groups of tokens, hit together."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from droptune.kinds.base import Kind
from droptune.kinds.setting import Setting
from droptune.kinds.standard import mask


class PatternTokens(Kind):
    """Drop elements of groups of tokens: `size` tokens in a row are hit, `stride` are not.

    The groups lie at a random place in each sample. In a token that is hit, an element is
    `x * m / (1 - rate)`, m ~ Bernoulli(1 - rate); all others stay as they are, so the mean of
    each element is kept. The tokens of a group share their m if `share_t` is 1, and the
    channels of a token if `share_c` is 1; with both a group goes or stays as a whole. Without
    gaps and sharing this is standard dropout; `locked` shares over a whole sequence.

    The form that Pham, Le, "AutoDropout: Learning Dropout Patterns to Regularize Deep
    Networks", https://arxiv.org/abs/2101.01761, give to patterns in Transformers. The settings
    are theirs; that `rate` is the rate of the noise inside the groups, the units, ranges and
    defaults are this module's own. Their `residual` is the rate at residual
    branches, as of `pattern`.

    Settings:
        size: tokens of a group.
        stride: tokens between two groups.
        share_t: 1 where the tokens of a group share their noise, else 0.
        share_c: 1 where the channels of a token share their noise, else 0.

    Layout NLF. Sensible rates: up to 0.5; by default half of the tokens are hit.
    """

    name: ClassVar[str] = "pattern_tokens"
    layouts: ClassVar[frozenset[str]] = frozenset({"NLF"})
    branches: ClassVar[bool] = True
    settings: ClassVar[Mapping[str, Setting]] = {
        "size": Setting(4, 1, 16, 1, whole=True),
        "stride": Setting(4, 0, 16, 1, whole=True),
        "share_t": Setting(1, 0, 1, 1, whole=True),
        "share_c": Setting(0, 0, 1, 1, whole=True),
    }

    size: Tensor
    stride: Tensor
    share_t: Tensor
    share_c: Tensor

    def drop(self, x: Tensor) -> Tensor:
        self.check_axes(x)
        samples, tokens, _ = x.shape
        period = self.size + self.stride
        place = (self.stream.uniform((samples, 1), x.device) * period).floor()
        token = torch.arange(tokens, device=x.device)
        along = token + place
        hit = along.remainder(period) < self.size
        # The tokens of group g take the noise of token g, and there are no more groups than
        # tokens; a token that is not hit takes it, too, and has no use for it.
        group = torch.div(along, period, rounding_mode="floor").long()
        source = torch.where(self.share_t > 0, group, token)
        row = torch.arange(samples, device=x.device).view(-1, 1)
        uniform = self.stream.uniform(x.shape, x.device)[row, source]
        uniform = torch.where(self.share_c > 0, uniform[..., :1], uniform)
        return x * torch.where(hit[..., None], mask(uniform, self.rate), 1.0).to(x.dtype)
