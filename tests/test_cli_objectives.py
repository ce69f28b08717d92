"""Two objectives from one end of the command line to the other."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from droptune import cli
from droptune.report import figures
from droptune.report.facts import gather
from droptune.store.drawn import Drawn

ROOT = Path(__file__).parents[1]
TWO = "val_loss,val_calibration_error"
DIGITS = """
import torch
import droptune as dt

def build():
    nn = torch.nn
    return nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 10))

study = dt.Study("digits", model=build, data=dt.Data.digits(), epochs=2, trials=7,
                 confirm_blocks=3, batch_size=256, slots=7, trainer="serial", sampler="random")
"""


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(cli.main, [str(word) for word in arguments], prog_name="droptune")
    assert result.exit_code == code, (result.output, result.exception)
    return result


def data(*arguments: object):
    return json.loads(run(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder in which a study of two objectives was tuned, once for all tests."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "digits.py").write_text(DIGITS)
    store = f"sqlite:///{folder / 'droptune.db'}"
    words = ("optimize", folder / "digits.py", "--objective", TWO, "--store", store, "-q")
    text = run(*words).stdout
    assert "\non val_calibration_error " in text.replace("  ", " ")
    assert " --objective val_calibration_error\n  droptune export " in text
    return folder


@pytest.fixture
def store(home, monkeypatch) -> str:
    monkeypatch.chdir(home)
    monkeypatch.setenv("DROPTUNE_STORE", f"sqlite:///{home / 'droptune.db'}")
    return str(home / "droptune.db")


def test_the_answer_on_each_objective(store):
    low, high = data("best", "--study", "digits"), data(
        "best", "--study", "digits", "--objective", "calibration_error"
    )  # fmt: skip
    assert (low["objective"], high["objective"]) == tuple(TWO.split(","))
    assert list(low["others"]) == ["val_calibration_error"] and list(high["others"]) == ["val_loss"]
    assert low["others"]["val_calibration_error"].startswith(f"{high['verdict']}: ")
    assert list(low["best"]["others"]) == ["val_calibration_error"]
    shown = run("best", "--study", "digits", "--objective", "val_calibration_error").stdout
    assert shown.startswith(low["others"]["val_calibration_error"])
    assert low["others"]["val_calibration_error"] in run("best", "--study", "digits").stdout
    plan = json.loads(run("export", "--study", "digits", "--objective", high["objective"]).stdout)
    assert plan == high["plan"]


def test_the_listings_show_both(store):
    (study,) = data("studies")
    assert study["objectives"] == dict.fromkeys(TWO.split(","), "minimize")
    assert "val_loss, val_calibration_error" in run("studies").stdout
    rows = data("trials", "--study", "digits")
    assert [list(row["values"]) for row in rows] == [TWO.split(",")] * 7
    head, *lines = run("trials", "--study", "digits").stdout.splitlines()
    assert head.split()[2:4] == TWO.split(",")
    assert f"{rows[0]['values']['val_calibration_error']:#.4g}" in lines[1]
    one = run("show", "--study", "digits", "--trial", 0).stdout
    assert f"val_calibration_error  {rows[0]['values']['val_calibration_error']:#.4g}" in one
    whole = data("show", "--study", "digits")
    assert list(whole["verdicts"]) == TWO.split(",")
    assert whole["verdicts"]["val_loss"] == whole["verdict"]
    said = whole["verdicts"]["val_calibration_error"]["text"]
    assert said in run("show", "--study", "digits").stdout


def test_going_on_needs_both_again(store, home):
    words = ("optimize", home / "digits.py", "-q")
    text = run(*words, code=1).stderr
    assert "stored with another objective, direction" in text and text.count("\n") == 1
    again = data(*words, "--objective", TWO)
    assert again == data("best", "--study", "digits")
    text = run(*words, "--objective", f"{TWO},f1", code=1).stderr
    assert "another objective" in text
    text = run(*words, "--objective", "loss,nonsense", code=1).stderr
    assert "unknown objective 'nonsense'" in text
    text = run("best", "--study", "digits", "--objective", "f1", code=1).stderr
    assert "no objective 'f1'; it has val_loss, val_calibration_error" in text


def test_the_report_has_both(store, home):
    run("report", "--study", "digits", "-o", "r.html")
    page = (home / "r.html").read_text("utf-8")
    answer = data("best", "--study", "digits")
    assert "minimize val_loss, minimize val_calibration_error" in page
    assert answer["others"]["val_calibration_error"] in page.replace("&lt;", "<")
    with Drawn(f"sqlite:///{store}") as queries:
        facts = gather(queries, "digits")
    drawn = {trace.name: trace for trace in figures.trade_off(facts, "val_calibration_error").data}
    values = [tuple(trial["values"].values()) for trial in facts.trials]
    beaten = [v for v in values if any(o[0] < v[0] and o[1] < v[1] for o in values)]
    on_front = list(zip(drawn["Pareto front"].x, drawn["Pareto front"].y, strict=True))
    others = [*zip(drawn["other trials"].x, drawn["other trials"].y, strict=True)] if beaten else []
    assert sorted(others) == sorted(beaten) and sorted(on_front + others) == sorted(values)


def test_the_answer_still_loads_neither_torch_nor_optuna(store):
    code = (
        "import sys; from droptune.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'optuna', 'sqlalchemy'} & {*sys.modules}, 'too much'"
    )
    words = (
        "best",
        "--study",
        "digits",
        "--objective",
        "val_loss",
        "--store",
        f"sqlite:///{store}",
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
