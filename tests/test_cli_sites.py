"""`droptune sites`: places, the kinds that fit there, remarks, and how the model trains."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from droptune import cli
from droptune.kinds import KINDS

MODELS = """
import torch
import torch
from torch import nn
import droptune as dt
from tests.branching import Model, PostNorm, data

def normed():
    return nn.Sequential(nn.Flatten(), nn.Linear(30, 8), nn.ReLU(), nn.Dropout(0.5),
                         nn.BatchNorm1d(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(6, 6), nn.Linear(6, 3), nn.Dropout(0.1)

    def forward(self, x):
        x = self.drop(self.a(self.drop(x))).mean(1)
        return self.b(x if x.sum() > 0 else -x)

def loop(model, *, seed, device):
    yield {"val_loss": 1.0}

class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)

class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.later(self.fc(x))

    def later(self, x):
        raise ValueError("not today")

norm = dt.Study("norm", model=normed, data=data())
failing = dt.Study("failing", model=Failing, data=dt.Data.digits())
noisy = dt.Study("noisy", model=lambda: nn.Sequential(Noise(), normed()), data=data())
branching = dt.Study("branching", model=Branching, data=data())
residual = dt.Study("residual", model=lambda: Model(PostNorm()), data=data())
own = dt.Study("own", model=normed, train=loop, data=data())
"""


@pytest.fixture
def target(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "models.py"
    path.write_text(MODELS)
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.main, ["sites", *map(str, arguments)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def rows(target: Path, name: str) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads(run(f"{target}:{name}", "--json"))}


def test_kinds_that_fit_are_shown(target):
    found = rows(target, "residual")
    assert {"drop_path", "layer_drop", "locked"} <= set(found["block.drop@residual"]["kinds"])
    assert "drop_path" not in found["block.drop"]["kinds"]
    assert all(set(row["kinds"]) <= set(KINDS) for row in found.values())
    assert "standard, gaussian, " in run(f"{target}:residual")


def test_the_remark_says_what_is_to_be_known(target):
    reason = "before a BatchNorm, whose statistics it shifts"
    assert {n: r["remark"] for n, r in rows(target, "norm").items()} == {
        "@input": None, "3": reason, "6": None,
    }  # fmt: skip
    assert reason in run(f"{target}:norm")
    assert rows(target, "branching")["drop"]["remark"] == "2 calls share one rate"
    remark = rows(target, "residual")["block.drop@residual"]["remark"]
    assert remark == "only where pattern_tokens or drop_path or layer_drop is asked for"


def test_one_line_says_how_the_model_trains(target):
    assert run(f"{target}:norm").endswith("\n\ntrains fused\n")
    said = run(f"{target}:branching").splitlines()[-1]
    assert said.startswith("trains serially: the model cannot be trained fused (")
    assert run(f"{target}:own").endswith("trains by its own loop (train=), one trial at a time\n")
    assert {row["trains"] for row in rows(target, "norm").values()} == {"fused"}
    assert rows(target, "branching")["drop"]["trains"] == said.removeprefix("trains ")


def test_the_keys_are_those_of_the_help(target):
    help_text = CliRunner().invoke(cli.main, ["sites", "--help"]).stdout
    (row, *_) = rows(target, "norm").values()
    assert all(key in help_text for key in row)
    assert "before_norm" not in row


def test_noise_that_no_plan_reaches_is_named(target):
    result = CliRunner().invoke(cli.main, ["sites", f"{target}:noisy"])
    assert result.exit_code == 0
    assert result.stderr.startswith("no plan reaches the noise of 0 (noise of its own, or dropout")
    table = result.stdout.split("standard, gaussian")[0]
    assert "fixed: noise of its own, or dropout of a layer that droptune does not know" in table
    row = rows(target, "noisy")["0"]
    assert (row["reach"], row["kinds"], row["depth"]) == ("fixed", [], None)
    assert row["remark"].startswith("fixed: ") and row.keys() == rows(target, "norm")["3"].keys()


def test_a_forward_that_raises_shows_the_users_own_traceback_and_then_one_line(target):
    for command in ("sites", "optimize"):
        result = CliRunner().invoke(cli.main, [command, f"{target}:failing"])
        assert result.exit_code == 1
        *traceback, line = result.stderr.splitlines()
        assert traceback[0] == "Traceback (most recent call last):"
        frames = [text for text in traceback if text.startswith("  File")]
        assert len(frames) == 2 and all(str(target) in text for text in frames)
        assert traceback[-1] == "ValueError: not today"
        assert line.startswith("Error: the model fails on a batch of shape (2, 64)")
