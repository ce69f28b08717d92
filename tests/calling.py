"""Models whose dropout is a call of a function; shared by several tests."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from droptune import find_sites
from droptune.data import Data

X = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))


class Hand(nn.Module):
    """Calls F.dropout twice, and has a dropout module between."""

    def __init__(self, rate: float = 0.3) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.rate, self.drop = rate, nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.a(x.mean(1))), self.rate, self.training)
        x = self.drop(F.relu(self.b(x)))
        return self.fc(F.dropout(x, p=self.rate, training=self.training))


class Causal(nn.Module):
    """Calls F.scaled_dot_product_attention with a causal mask."""

    def __init__(self, rate: float = 0.2) -> None:
        super().__init__()
        self.qkv, self.fc, self.rate = nn.Linear(6, 18), nn.Linear(6, 3), rate

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 2, 9).transpose(1, 2).chunk(3, -1)
        p = self.rate if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        return self.fc(y.transpose(1, 2).flatten(2).mean(1))


class Heads(nn.Module):
    """Calls nn.MultiheadAttention, which returns its weights or does not."""

    need_weights = False

    def __init__(self, rate: float = 0.2) -> None:
        super().__init__()
        self.att = nn.MultiheadAttention(6, 2, rate, batch_first=True)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.att(x, x, x, need_weights=self.need_weights)[0].mean(1))


class HeadsWithWeights(Heads):
    need_weights = True


class Encoder(nn.Module):
    """Two of torch's layers of a transformer."""

    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 12, rate, batch_first=True)
        self.enc, self.fc = nn.TransformerEncoder(layer, 2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.enc(x).mean(1))


class OneLayer(nn.Module):
    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 12, rate, batch_first=True)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(x).mean(1))


class Eager(nn.Module):
    """Attention by hand: softmax, F.dropout, product."""

    def __init__(self, rate: float = 0.2) -> None:
        super().__init__()
        self.qkv, self.fc, self.rate = nn.Linear(6, 18), nn.Linear(6, 3), rate

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        weights = F.dropout((q @ k.mT).softmax(-1), self.rate, self.training)
        return self.fc((weights @ v).mean(1))


ZOO = {cls.__name__: cls for cls in (Hand, Causal, Heads, HeadsWithWeights, OneLayer, Encoder)}


def build(cls, *args: float) -> nn.Module:
    torch.manual_seed(0)
    return cls(*args)


def places(model: nn.Module, example=X):
    """Return the sites that are calls."""
    return [site for site in find_sites(model, example) if site.reach == "function"]


def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(150, 5, 6, generator=generator)
    y = (x.mean((1, 2)) * 9).long().clamp(-1, 1) + 1
    return Data(train=(x[:100], y[:100]), val=(x[100:], y[100:]))
