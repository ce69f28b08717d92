"""`droptune report`, `droptune show --importance` and `droptune dashboard`."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from droptune import cli
from droptune.dashboard import HOST, dashboard
from droptune.errors import StudyError
from tests.report.storing import whole

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('made') / 'droptune.db'}"
    whole(url)
    return url


def run(*words: object, code: int = 0):
    result = CliRunner().invoke(cli.main, [str(w) for w in words], prog_name="droptune")
    assert result.exit_code == code, (result.output, result.exception)
    return result


# The report


def test_the_report_is_written_and_said(url, tmp_path):
    pytest.importorskip("plotly")
    path = tmp_path / "out.html"
    result = run("report", "--study", "mine", "--store", url, "-o", path)
    assert result.stderr == f"wrote {path}\n" and result.stdout == ""
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_report_that_cannot_be_written_is_one_line(url, tmp_path):
    pytest.importorskip("plotly")
    said = run("report", "--study", "mine", "--store", url, "-o", tmp_path / "no/x.html", code=1)
    assert said.stderr.count("\n") == 1 and "cannot write" in said.stderr


def test_without_plotly_the_command_says_what_to_install(url, tmp_path, monkeypatch):
    for name in ("plotly", "plotly.offline"):
        monkeypatch.setitem(sys.modules, name, None)
    path = tmp_path / "out.html"
    said = run("report", "--study", "mine", "--store", url, "-o", path, code=1)
    assert "pip install 'droptune[report]'" in said.stderr and not path.exists()


def test_a_study_that_is_not_there_is_one_line(url, tmp_path):
    said = run("report", "--study", "nine", "--store", url, "-o", tmp_path / "x.html", code=1)
    assert "no study 'nine'" in said.stderr and said.stderr.count("\n") == 1


# Importance


def test_importance_is_a_bar_a_parameter(url):
    text = run("show", "--study", "mine", "--importance", "--store", url).stdout
    assert "rate.hidden" in text and "█" in text and "best tenth of 23 trials" in text


def test_importance_as_json(url):
    row = json.loads(
        run("show", "--study", "mine", "--importance", "--store", url, "--json").stdout
    )
    assert list(row) == ["parameters", "places", "trials", "remark"]
    assert sum(row["parameters"].values()) == pytest.approx(1)
    assert set(row["places"]) == {"hidden", "head"}


def test_importance_of_few_trials_is_a_line_that_says_so(tmp_path):
    few = f"sqlite:///{tmp_path / 'few.db'}"
    whole(few, trials=5)
    text = run("show", "--study", "mine", "--importance", "--store", few).stdout
    assert text == "no importance: 4 complete trials, 20 are needed\n"


def test_importance_of_one_trial_is_wrong_usage(url):
    run("show", "--study", "mine", "--importance", "--trial", 1, "--store", url, code=2)


def test_the_report_loads_no_torch_and_show_no_optuna(url, tmp_path):
    program = (
        "import sys; from droptune.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: print(sorted({'torch', 'optuna', 'plotly'} & {*sys.modules}))"
    )

    def loaded(*words: str) -> str:
        words = ("-c", program, *words, "--study", "mine", "--store", url)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, *words], env=environment, capture_output=True, text=True
        )
        return done.stdout.splitlines()[-1]

    assert loaded("show") == "[]"
    assert loaded("show", "--importance") == "['optuna']"
    if find_spec("plotly"):
        assert loaded("report", "-o", str(tmp_path / "x.html")) == "['optuna', 'plotly']"


# The dashboard


def asked(port: int) -> dict:
    with urllib.request.urlopen(f"http://{HOST}:{port}/api/studies", timeout=30) as answer:
        return json.load(answer)


def test_the_dashboard_shows_the_studies_to_this_machine_alone(url):
    pytest.importorskip("optuna_dashboard")
    with dashboard(url, 0) as server:
        assert server.server_address[0] == "127.0.0.1"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            names = [s["study_name"] for s in asked(server.server_port)["study_summaries"]]
        finally:
            server.shutdown()
            thread.join()
    assert names == ["mine"]


def test_a_port_that_is_taken_is_said(url):
    pytest.importorskip("optuna_dashboard")
    with dashboard(url, 0) as server, pytest.raises(StudyError, match="give another with --port"):
        with dashboard(url, server.server_port):
            pass


def test_without_the_extra_it_says_what_to_install(url, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    said = run("dashboard", "--store", url, code=1).stderr
    assert "pip install 'droptune[dashboard]'" in said and said.count("\n") == 1


def test_no_database_is_made(tmp_path):
    path = tmp_path / "none.db"
    run("dashboard", "--store", f"sqlite:///{path}", code=1)
    assert not path.exists()


def test_it_says_its_address_and_ends_on_ctrl_c(url):
    pytest.importorskip("optuna_dashboard")
    words = ["-c", "from droptune.cli import main; main()", "dashboard", "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DROPTUNE_STORE": url}
    process = subprocess.Popen(
        [sys.executable, *words],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background of a shell have Ctrl-C switched off.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        said = process.stderr.readline()
        assert said.startswith("http://127.0.0.1:") and "Ctrl-C" in said
        assert asked(int(said.split(":")[2].split("/")[0]))["study_summaries"]
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=30)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and rest == "Interrupted\n"


def test_a_password_is_not_shown():
    said = run("dashboard", "--store", "postgresql://me:hush@127.0.0.1:1/x", code=1)
    assert "hush" not in said.output
