"""`droptune export` in its three forms."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from torch import nn

from droptune import cli
from droptune.report import tables
from tests.small import Notes, fresh, study


@pytest.fixture
def url(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    url = fresh(tmp_path)
    study(url, trials=3, confirm_blocks=2).optimize(progress=Notes())
    return url


def export(url: str, *options: str, code: int = 0):
    result = CliRunner().invoke(cli.main, ["export", "--study", "mine", "--store", url, *options])
    assert result.exit_code == code, result.output
    return result


PROGRAM = """
import torch
from tests.small import mlp
from dropout import set_dropout
print(set_dropout(mlp(0.9)).get_submodule("2").p)
"""


def test_python_is_written_for_a_file_that_ends_in_py_and_runs(url, tmp_path):
    plan = json.loads(export(url).stdout)
    said = export(url, "-o", "dropout.py")
    assert said.stdout == "" and "wrote dropout.py" in said.stderr
    code = (tmp_path / "dropout.py").read_text()
    assert code.startswith("# Dropout of study 'mine' (")
    assert export(url, "--format", "python").stdout == code
    if any(name != "2" for name in plan["sites"]):
        assert "droptune.apply" in code
        return
    path = [str(tmp_path), *sys.path]
    program = f"import sys; sys.path[:0] = {path!r}\n{PROGRAM}"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    rate = plan["sites"].get("2", {"rate": 0.0})["rate"]
    assert result.stdout.strip() == str(rate), result.stderr


def attentive() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (5, 6)),
        nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, batch_first=True),
        nn.Flatten(),
        nn.Linear(30, 2),
    )


def test_the_python_of_layers_is_written_from_what_the_store_keeps(tmp_path):
    url = fresh(tmp_path)
    study(url, model=attentive, trials=1, confirm_blocks=0).optimize(progress=Notes())
    names: dict = {}
    exec(export(url, "--format", "python").stdout, names)
    model = names["set_dropout"](attentive())
    assert model[1].self_attn.dropout == model[1].dropout1.p == 0


def test_a_table_is_for_people(url, tmp_path):
    plan = json.loads(export(url).stdout)
    text = export(url, "--format", "table").stdout
    assert text == tables.plain(tables.plan(plan))
    export(url, "-o", "plan.txt")
    assert (tmp_path / "plan.txt").read_text(encoding="utf-8") == text


def test_a_format_goes_before_the_ending_and_json_is_the_default(url, tmp_path):
    plan = json.loads(export(url).stdout)
    export(url, "-o", "plan.py", "--format", "json")
    export(url, "-o", "plan.cfg")
    for name in ("plan.py", "plan.cfg"):
        assert json.loads((tmp_path / name).read_text()) == plan


def test_an_unknown_format_is_wrong_usage(url):
    assert "'yaml' is not one of" in export(url, "--format", "yaml", code=2).stderr


@pytest.mark.parametrize("form", ["json", "python", "table"])
def test_where_nothing_can_be_written_is_said_in_one_line(url, form):
    said = export(url, "-o", "no/such/plan", "--format", form, code=1).stderr
    assert said.splitlines()[-1].startswith("Error: cannot write 'no/such/plan': ")
