"""Models with residual branches, and dropout that is no module of torch; shared by tests."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from droptune.data import Data

SEQUENCE = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))
MAPS = torch.randn(4, 4, 7, 7, generator=torch.Generator().manual_seed(2))


class PreNorm(nn.Module):
    """A transformer's block: x + f(norm(x)), one dropout module for both branches."""

    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.attn = nn.MultiheadAttention(6, 2, rate, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
        self.drop = nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.drop(self.attn(h, h, h, need_weights=False)[0])
        return self.drop(self.mlp(self.norm2(x))) + x


class PostNorm(nn.Module):
    """norm(x + f(x)), the branch in front; each branch ends in a dropout module of its own."""

    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 12), nn.Linear(12, 6)
        self.drop, self.norm = nn.Dropout(rate), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.fc2(F.relu(self.fc1(x))))
        h += x
        return self.norm(h)


class Block(nn.Module):
    """A ResNet's block, with a BatchNorm at the end of the branch.

    Without biases in front of a norm: their gradient is rounding noise, which AdamW blows up.
    """

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Resnet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.fc = nn.Sequential(Block(), Block()), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(x).mean((2, 3)))


class DropPath(nn.Module):
    """Stochastic depth as timm writes it; the rate is in `drop_prob`."""

    def __init__(self, drop_prob: float = 0.1) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask.div_(keep)


class Scaled(nn.Module):
    """Branches with a scale of their own: one ends in a third-party DropPath, one in a view."""

    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.scale * self.a(self.norm(x)))
        return x + (self.scale * F.relu(self.b(x))).transpose(1, 2).mT


class Model(nn.Module):
    """A block, and a head over the mean of positions."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.fc = block, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(x).mean(1))


class Parallel(nn.Module):
    """Two branches from one point, summed in a chain: x + f(x) + g(x)."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(6, 6), nn.Linear(6, 6), last

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x) + x if self.last else x + self.a(x) + self.b(x)


def torchs(norm_first: bool) -> nn.Module:
    """Return one layer of torch's own transformer."""
    return nn.TransformerEncoderLayer(6, 2, 12, 0.1, batch_first=True, norm_first=norm_first)


def data(maps: bool = False) -> Data:
    """Return noisy classes of sequences, or of maps."""
    shape = MAPS.shape[1:] if maps else SEQUENCE.shape[1:]
    y = torch.arange(96) % 3
    x = torch.randn(96, *shape, generator=torch.Generator().manual_seed(0)) + y.view(
        -1, *(1,) * len(shape)
    )
    return Data(train=(x[:64], y[:64]), val=(x[64:], y[64:]))
