"""The commands that train, from one end to the other on a small study."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from droptune import cli

ROOT = Path(__file__).parents[1]
BEST_KEYS = "study verdict plan objective best control difference test fit others".split()
DIGITS = """
import torch
import droptune as dt

print("noise of the user's own")

def build():
    nn = torch.nn
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 10))

study = dt.Study("digits", model=build, data=dt.Data.digits(), epochs=3, trials=6,
                 confirm_blocks=2, batch_size=256, slots=6)
"""


@pytest.fixture
def digits(tmp_path, monkeypatch) -> Path:
    """A file that defines a small study, in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("DROPTUNE_STORE", raising=False)
    path = tmp_path / "digits.py"
    path.write_text(DIGITS)
    return path


def run(*arguments: object, code: int = 0):
    """Run the command line in this process and expect this exit code."""
    result = CliRunner().invoke(cli.main, [str(word) for word in arguments], prog_name="droptune")
    assert result.exit_code == code, (result.output, result.exception)
    return result


def data(*arguments: object):
    """Run a command with --json and return what it prints; stdout holds JSON alone."""
    return json.loads(run(*arguments, "--json").stdout)


def test_a_study_is_tuned_and_asked_for_its_answer(digits):
    result = run("optimize", "digits.py")
    verdict = result.stdout.splitlines()[1]  # after the noise
    assert verdict.split(":")[0] in ("helps", "no benefit", "hurts", "undecided")
    assert result.stdout.endswith(
        "next:\n  droptune best --study digits\n  droptune export --study digits -o plan.json\n"
    )
    assert "search 6/6" in result.stderr
    assert run("best", "--study", "digits").stdout.splitlines()[0] == verdict
    assert len(data("trials", "--study", "digits")) == 6

    again = run("optimize", "digits.py", "--quiet")
    assert "nothing was left to do" in again.stderr
    assert again.stdout == result.stdout
    assert data("optimize", "digits.py") == data("best", "--study", "digits")


def test_options_override_the_file_and_json_is_alone_on_stdout(digits):
    options = ["--trials", 3, "--confirm-blocks", 0, "--study", "other", "--slots", 3, "--seed", 1]
    options += ["--sampler", "random", "--encoding", "uniform", "--trainer", "serial"]
    options += ["--store", "sqlite:///other.db", "--device", "cpu", "--time", "5m", "-q"]
    options += ["--recalibrate", "--patience", 20]
    answer = data("optimize", "digits.py", *options)
    assert list(answer) == BEST_KEYS
    assert (answer["study"], answer["verdict"]) == ("other", "undecided")
    (study,) = data("studies", "--store", "sqlite:///other.db")
    assert study["trials"]["complete"] == 3
    shown = data("show", "--study", "other", "--store", "sqlite:///other.db")
    assert shown["definition"]["training"]["recalibrate"] is True
    said = run("optimize", "digits.py", *options).stdout
    assert "droptune best --study other --store sqlite:///other.db" in said


def test_sites_of_a_target(digits):
    rows = data("sites", "digits.py")
    assert {"name", "path", "reach", "role", "layout", "depth", "shape", "kind", "rate"} <= set(
        rows[0]
    )
    assert [row["kind"] for row in rows if row["kind"]] == ["standard"]
    assert "standard 0.3" in run("sites", "digits.py").stdout


def test_a_bad_setting_is_one_line(digits):
    result = run("optimize", "digits.py", "--sampler", "tbe", code=1)
    assert result.stderr.startswith("Error: unknown sampler 'tbe'")
    for option, value, allowed in (
        ("trials", 0, 1),
        ("confirm-blocks", -1, 0),
        ("patience", -5, 0),
    ):
        said = run("optimize", "digits.py", f"--{option}", value, code=1).stderr
        name = option.replace("-", "_")
        assert said == f"Error: {name} {value}: a whole number from {allowed} is needed\n"
    missing = run("optimize", "digit.py", code=1).stderr
    assert "there is no file 'digit.py'" in missing and "nearest: digits.py" in missing


@pytest.mark.slow
def test_a_run_that_is_interrupted_goes_on_with_the_same_command(digits):
    words = [sys.executable, "-c", "from droptune.cli import main; main()"]
    words += [
        "optimize",
        "digits.py",
        "--trials",
        "100000",
        "--slots",
        "2",
        "--confirm-blocks",
        "0",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not _complete():
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("Interrupted: what has finished is kept")
    assert "Traceback" not in said
    before = _complete()
    assert before > 0
    options = ["--trials", before + 2, "--confirm-blocks", 0, "--slots", 2]
    run("optimize", "digits.py", *options)
    assert _complete() == before + 2


def _complete() -> int:
    """Return how many trials of the study are complete, 0 before there is one."""
    if not Path("droptune.db").exists():
        return 0
    result = CliRunner().invoke(cli.main, ["studies", "--json"])
    rows = json.loads(result.stdout) if result.exit_code == 0 else []
    return rows[0]["trials"]["complete"] if rows else 0
