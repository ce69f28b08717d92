"""Torch's own larger modules: transformers, attention, recurrent layers."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from droptune.data import Data
from tests.thirdparty import checks

X = torch.randn(24, 5, 8, generator=torch.Generator().manual_seed(0))


class Encoder(nn.Module):
    """A TransformerEncoder, its three rates told apart.

    Args:
        options: of TransformerEncoderLayer.
    """

    def __init__(self, **options) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.11, batch_first=True, **options)
        layer.self_attn.dropout, layer.dropout2.p = 0.12, 0.13
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class Decoder(nn.Module):
    """A whole Transformer, with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Transformer(8, 2, 1, 1, 16, 0.11, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return self.head(self.body(x, x, tgt_mask=mask, tgt_is_causal=True).mean(1))


class Attention(nn.Module):
    """A MultiheadAttention that returns its weights or does not."""

    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, 0.12, batch_first=True)
        self.need_weights, self.head = need_weights, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=self.need_weights)[0].mean(1))


class Recurrent(nn.Module):
    """An LSTM between two dropouts; the one inside of an LSTM of several layers is no site."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Dropout(0.11), nn.Dropout(0.12)
        self.rnn = nn.LSTM(8, 6, 2, dropout=0.13, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(self.rnn(self.before(x))[0][:, -1]))


MODELS = {
    "encoder": Encoder,
    "norm first": partial(Encoder, norm_first=True, activation="gelu"),
    "decoder": Decoder,
    "attention": partial(Attention, False),
    "attention with weights": partial(Attention, True),
    "lstm": Recurrent,
}
every = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


@pytest.fixture
def data() -> Data:
    y = torch.arange(24) % 3
    return Data(train=(X[:16], y[:16]), val=(X[16:], y[16:]))


@every
def test_each_dropout_that_acts_is_listed_once_with_its_rate(build):
    checks.each_dropout_that_acts_is_listed_once_with_its_rate(build, X[:4])


@every
def test_every_rate_is_applied(build):
    checks.every_rate_is_applied(build, X[:4])


@every
def test_nothing_acts_that_is_not_found(build):
    checks.nothing_acts_that_is_not_found(build, X[:4])


@every
def test_a_plan_leaves_no_trace(build):
    checks.a_plan_leaves_no_trace(build, X[:4])


@every
def test_copies_have_the_plan(build):
    checks.copies_have_the_plan(build, X[:4])


@pytest.mark.parametrize("name", MODELS)
def test_fused_follows_serial(name, data):
    checks.fused_follows_serial(MODELS[name], data)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n in ("decoder", "norm first") else ())
        for n in MODELS
    ],
)
def test_a_study_runs(name, data, tmp_path):
    checks.a_study_runs(MODELS[name], data, tmp_path, trainer="fused", slots=2)


def test_a_mask_that_nothing_lists_would_be_seen():
    class Unlisted(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * torch.empty_like(x).bernoulli_(0.9))

    for check in (
        checks.each_dropout_that_acts_is_listed_once_with_its_rate,
        checks.nothing_acts_that_is_not_found,
    ):
        with pytest.raises(AssertionError):
            check(Unlisted, X[:4])
