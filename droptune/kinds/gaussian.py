"""Multiplicative Gaussian noise."""

from typing import ClassVar

from torch import Tensor

from droptune.kinds.base import Kind


class Gaussian(Kind):
    """Multiply by noise: `x * (1 + sqrt(rate / (1 - rate)) * n)`, n ~ N(0, 1).

    It has the mean and variance of standard dropout at the same rate. Srivastava et al.,
    JMLR 15 (2014), section 10.
    """

    name: ClassVar[str] = "gaussian"

    def drop(self, x: Tensor) -> Tensor:
        spread = (self.rate / (1 - self.rate)).sqrt()
        noise = self.stream.normal(x.shape, x.device).mul(spread).add(1)
        return x * noise.to(x.dtype)
