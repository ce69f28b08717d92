"""What every kind of dropout is: a small module with a rate, and noise of its own."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from droptune.errors import PlanError
from droptune.kinds.noise import Stream


class Kind(nn.Module, ABC):
    """Base of the kinds. Identity in eval mode, and at rate 0 also in training.

    The rate is a buffer, so it is data: members of a fused trainer share one module and
    differ in the value of this buffer alone. It is not persistent, so that no
    `state_dict` changes. A kind defines `drop`, which preserves the mean of `x` over masks,
    of each element or of a whole sample; alpha keeps mean and variance instead, and max_drop,
    which takes away maxima and scales nothing, lowers the mean a little.

    Args:
        site: the site's name; the kind's noise is a function of it.
        rate: probability of dropping, in [0, 1).
    """

    name: ClassVar[str]
    #: Layouts of the tensors this kind can act on; empty means all.
    layouts: ClassVar[frozenset[str]] = frozenset()
    #: Roles of the sites where a space may try this kind; empty means all.
    roles: ClassVar[frozenset[str]] = frozenset()

    rate: Tensor

    def __init__(self, site: str, rate: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("rate", torch.tensor(float(rate)), persistent=False)
        self.site = site
        self.stream = Stream(f"{site}/{self.name}")

    @classmethod
    def fits(cls, layout: str, role: str) -> bool:
        """Tell whether this kind is right for tensors of this layout at a site of this role."""
        return (not cls.layouts or layout in cls.layouts) and (not cls.roles or role in cls.roles)

    def set_rate(self, rate: float) -> None:
        """Set the rate, in place."""
        self.rate.fill_(rate)

    def check_axes(self, x: Tensor) -> None:
        """Refuse a tensor of another number of axes than the kind's layouts have.

        Raises:
            PlanError: it has more or fewer.
        """
        if x.dim() not in map(len, self.layouts):
            raise PlanError(
                f"site {self.site!r} holds a tensor of {x.dim()} axes, kind {self.name!r} needs "
                f"{' or '.join(sorted(self.layouts))}; name another kind there"
            )

    def _apply(self, fn: Callable, recurse: bool = True) -> "Kind":
        rate = self.rate
        super()._apply(fn, recurse)
        if self.rate.dtype != rate.dtype:  # model.bfloat16() is for weights: 0.1 must stay 0.1
            self.rate = rate.to(self.rate.device)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x) if self.training else x

    @abstractmethod
    def drop(self, x: Tensor) -> Tensor:
        """Return `x` (batch first, any further shape) with noise; called in training only."""

    def extra_repr(self) -> str:
        return f"rate={self.rate.item():g}" if self.rate.dim() == 0 else "rate=stacked"


#: Layouts that have channels on axis 1 and something to share a mask over behind it.
CHANNELS_FIRST = frozenset({"NCL", "NCHW", "NCDHW"})


def channel_shape(x: Tensor) -> tuple[int, ...]:
    """Return the shape of one number per sample and channel, broadcastable to `x`."""
    return (*x.shape[:2], *(1,) * (x.dim() - 2))
