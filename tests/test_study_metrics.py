"""Studies with other objectives than the loss, and how the control fits."""

import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from droptune.answer import Result
from droptune.cli import main
from droptune.data import Data
from droptune.errors import StudyError
from droptune.store import Queries
from tests.small import Notes, cancer, fresh, mlp, rows, runs, sizes, study, trials


@pytest.fixture
def url(tmp_path):
    return fresh(tmp_path)


def margin(output, target):
    """Return the mean distance between the logit of the right class and of the wrong one."""
    right = output[range(len(target)), target]
    return float((2 * right - output.sum(1)).mean())


def last_metrics(url: str) -> list[dict]:
    sql = "SELECT metrics FROM droptune_curve WHERE epoch = 3 ORDER BY run_id"
    return [json.loads(text) for (text,) in rows(url, sql)]


@pytest.mark.parametrize(
    ("objective", "stored", "best"),
    [
        ("f1", "val_f1", max),
        ("val_auroc", "val_auroc", max),
        ("calibration_error", "val_calibration_error", min),
    ],
)
def test_an_objective_decides_in_its_own_direction(url, objective, stored, best):
    result = study(url, objective=objective).optimize(progress=Notes())
    assert result.objective == stored
    found = [value for (value,) in rows(url, "SELECT value FROM trial_values")]
    searched = last_metrics(url)[:6]
    assert found == [metrics[stored] for metrics in searched]
    bare = study(url, objective=objective, name="bare", confirm_blocks=0).optimize(progress=Notes())
    assert bare.best["value"] == best(found)
    assert set(result.test) == {"test_loss", "test_accuracy", stored.replace("val", "test")}
    with Queries(url) as queries:
        assert queries.best("mine") == result.to_json()
        assert queries.study("mine")["direction"] == ("maximize" if best is max else "minimize")


def test_a_function_of_ones_own_decides(url):
    one = study(url, objective=margin, direction="maximize", metrics=["f1"])
    assert one.objective == "val_margin"
    result = one.optimize(progress=Notes())
    found = [value for (value,) in rows(url, "SELECT value FROM trial_values")]
    with Queries(url) as queries:
        stored = queries.study("mine")
    assert stored["best"] == max(found)
    assert stored["definition"]["objective"] == "val_margin"
    assert stored["definition"]["training"]["objective_function"].endswith("metrics.margin")
    assert all({"val_f1", "val_margin"} <= set(metrics) for metrics in last_metrics(url))
    assert "test_margin" in result.test
    before = sizes(url)
    assert one.using(trials=6).optimize(progress=Notes()).finished_before
    assert sizes(url) == before


def test_another_function_of_the_same_name_is_another_objective(url):
    study(url, trials=1, confirm_blocks=0, objective=margin, direction="maximize").optimize(
        progress=Notes()
    )

    def twin(output, target):
        return 0.0

    twin.__name__ = "margin"
    with pytest.raises(StudyError, match=r"another objective_function \(.*margin.*twin"):
        study(url, objective=twin, direction="maximize").optimize(progress=Notes())


def test_more_may_be_recorded_when_a_study_goes_on(url):
    first = study(url, trials=2, confirm_blocks=1)
    first.optimize(progress=Notes())
    first.using(metrics=["balanced_accuracy"]).optimize(trials=3, progress=Notes())
    assert trials(url)[:3] == [(number, "COMPLETE") for number in range(3)]
    names = [set(metrics) for metrics in last_metrics(url)]
    assert "val_balanced_accuracy" in names[-1] and "val_balanced_accuracy" not in names[0]


def test_a_stopped_study_goes_on_to_the_same_answer(url, tmp_path):
    changes = {"objective": "auroc", "trainer": "fused", "slots": 2, "pruner": "median"}
    whole = study(url, **changes).optimize(progress=Notes())
    (tmp_path / "other").mkdir()
    other = fresh(tmp_path / "other")

    def stop(status):
        if len(notes.statuses) == 4:
            raise KeyboardInterrupt

    notes = Notes(stop)
    with pytest.raises(KeyboardInterrupt):
        study(other, **changes).optimize(progress=notes)
    again = study(other, **changes).optimize(progress=Notes())
    assert {state for _, state in trials(other)} <= {"COMPLETE", "PRUNED"}
    assert again.fit == whole.fit
    assert again.control["value"] == pytest.approx(whole.control["value"])


def constant(rows: int, value: float, floats: bool = False) -> Data:
    y = torch.full((rows,), value) if floats else torch.full((rows,), int(value))
    x = torch.randn(rows, 30)
    mixed = torch.arange(rows) % 2
    return Data((x, mixed.float() if floats else mixed), (x, y))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objective": "auroc", "data": constant(20, 1)}, r"one label \(1\); draw the splits"),
        ({"objective": "r2"}, "val_r2 .*targets that are classes; use val_loss, val_accuracy"),
        (
            {"objective": "accuracy", "loss": "mse", "data": constant(20, 0.5, floats=True)},
            "val_accuracy .*numbers; use val_loss, val_r2 or val_rmse",
        ),
        (
            {"objective": "r2", "loss": "mse", "data": constant(20, 0.5, floats=True)},
            "all targets are equal; use val_rmse",
        ),
        ({"metrics": ["rmse"]}, "val_rmse .*classes"),
        ({"objective": lambda o, t: float("nan"), "direction": "maximize"}, "val_lambda is nan"),
    ],
)
def test_what_says_nothing_is_refused_before_anything_is_stored(url, changes, says):
    out = 1 if changes.get("loss") == "mse" else 2
    model = {"model": lambda: nn.Sequential(nn.Linear(30, 4), nn.Dropout(0.1), nn.Linear(4, out))}
    before = sizes(url)
    with pytest.raises(StudyError, match=says) as caught:
        study(url, **model, **changes).optimize(progress=Notes())
    assert "\n" not in str(caught.value)
    assert sizes(url) == before


def test_the_command_line_takes_an_objective(tmp_path):
    file = tmp_path / "task.py"
    file.write_text(
        "from tests.small import study\n"
        f"study = study('sqlite:///{tmp_path}/d.db', trials=2, confirm_blocks=1)\n"
    )
    run = CliRunner().invoke(main, ["optimize", str(file), "--objective", "f1", "--json", "-q"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["objective"] == "val_f1"
    bad = CliRunner().invoke(main, ["optimize", str(file), "--objective", "f2", "--study", "x"])
    assert bad.exit_code == 1 and "unknown objective 'f2'; allowed: val_loss" in bad.stderr


# How the control fits


def overfitting(url: str, **changes):
    """Return a study on labels that are half noise, which a wide network learns by heart."""
    data = cancer()
    generator = torch.Generator().manual_seed(1)
    for split in (data.train, data.val):
        noisy = torch.rand(len(split), generator=generator) < 0.4
        split.y.copy_(torch.where(noisy, 1 - split.y, split.y))
    settings = {"epochs": 60, "model": lambda: mlp(width=64), "data": data, "trials": 2}
    return study(url, **settings | {"confirm_blocks": 1} | changes)


@pytest.mark.parametrize("trainer", ["serial", "fused"])
def test_a_control_that_overfits_is_said_to(url, trainer):
    notes = Notes()
    result = overfitting(url, trainer=trainer).optimize(progress=notes)
    (said,) = notes.fits
    assert "overfits" in said and "regularisation can help" in said
    assert result.fit["reading"] == "overfits"
    assert result.fit["gap"] == pytest.approx(result.fit["val_loss"] - result.fit["train_loss"])
    assert result.fit["val_loss"] == result.control["search_value"]
    assert 0 < result.fit["low"] < result.fit["gap"] < result.fit["high"]
    with Queries(url) as queries:
        assert queries.best("mine") == result.to_json()
    shown = CliRunner().invoke(main, ["best", "--study", "mine", "--store", url])
    assert said in shown.stdout
    data = CliRunner().invoke(main, ["best", "--study", "mine", "--store", url, "--json"])
    assert json.loads(data.stdout)["fit"]["reading"] == "overfits"


def test_a_control_that_has_not_learned_underfits(url):
    notes = Notes()
    result = study(url, lr=1e-4, confirm_blocks=0, trials=1).optimize(progress=notes)
    assert result.fit["reading"] == "underfits"
    assert "an early schedule" in notes.fits[0]
    with Queries(url) as queries:
        assert queries.best("mine")["fit"] == result.fit


def test_the_fit_is_of_the_control_alone_and_once(url):
    notes = Notes()
    study(url).optimize(progress=notes)
    assert len(notes.fits) == 1
    arms = rows(
        url,
        "SELECT r.phase, r.arm, c.epoch FROM droptune_run r JOIN droptune_curve c "
        "ON c.run_id = r.id WHERE c.metrics LIKE '%fit_train_loss%'",
    )
    assert arms == [("search", "no dropout", 3)]


def test_a_study_stored_before_there_was_a_fit_has_none_and_goes_on(url, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr("droptune.trainers.SerialTrainer.fit", lambda self, slot: {})
        old = study(url, trials=3).optimize(progress=Notes())
    assert old.fit is None
    with Queries(url) as queries:
        assert queries.best("mine")["fit"] is None
    assert isinstance(study(url, trials=4).optimize(progress=Notes()), Result)
    assert len(runs(url, "search")) == 4


def test_memory_that_ends_while_the_fit_is_looked_at_starts_the_members_again(url, monkeypatch):
    from droptune.trainers import FusedTrainer

    fit, calls = FusedTrainer.fit, []

    def full(self, slot):
        calls.append(self.slots)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no more")
        return fit(self, slot)

    monkeypatch.setattr(FusedTrainer, "fit", full)
    result = study(url, trainer="fused", slots=4, trials=4).optimize(progress=Notes())
    assert calls == [4, 2] and result.fit is not None
    assert trials(url)[:4] == [(number, "COMPLETE") for number in range(4)]
