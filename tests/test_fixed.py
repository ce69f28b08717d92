"""droptune/fixed.py: what no plan reaches, found by what it does, with the reason."""

import json

import pytest
import torch
from torch import nn

from droptune import find_fixed
from droptune.fixed import fixed_line


class Functional(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, self.training)


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class Foreign(nn.LSTM):
    """A forward of its own, of which droptune does not know what it computes."""

    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize(
    ("model", "drawing"),
    [
        (nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)), []),
        (Functional(), []),
        (Noisy(), [""]),
        (nn.TransformerEncoderLayer(6, 2, 8, dropout=0.5), []),
        (nn.LSTM(6, 6, num_layers=2, dropout=0.5), []),
        (Foreign(6, 6, num_layers=2, dropout=0.5), [""]),
        (nn.Sequential(nn.Linear(6, 6), Noisy(), nn.Dropout(0.5), Noisy()), ["1", "3"]),
    ],
)
def test_dropout_that_no_plan_reaches_is_noticed(model, drawing):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sequences = isinstance(model, nn.LSTM | Noisy)
    x = torch.randn(4, 3, 6) if sequences else torch.randn(4, 6)
    assert [fixed.path for fixed in find_fixed(model, x)] == drawing
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_the_reason_is_said_and_the_rate_where_it_is_known():
    layer = nn.Sequential(Foreign(6, 6, num_layers=2, dropout=0.5))
    x = torch.randn(4, 3, 6)
    (lstm,) = find_fixed(layer, x)
    assert (lstm.path, lstm.role, lstm.rate) == ("0", "recurrent", 0.5)
    assert lstm.reason == "its forward is not that of torch, where droptune puts dropout"
    row = lstm.described()
    assert row["remark"] == f"fixed: {lstm.reason}" and row["reach"] == "fixed"
    assert json.loads(json.dumps(row)) == row
    (scripted,) = find_fixed(nn.Sequential(nn.Linear(6, 6), torch.jit.script(nn.Dropout(0.5))), x)
    assert scripted.path == "" and scripted.reason.startswith("it has a scripted part (1)")
    (noise,) = find_fixed(Noisy(), x)
    assert noise.described()["name"] == "@model" and noise.reason.startswith("noise of its own")
    line = fixed_line([lstm, noise])
    assert line.startswith("no plan reaches the noise of 0 (its forward is not that of torch")
    assert "the forward of the model (noise of its own" in line and "\n" not in line
