"""Tuning training together with dropout: a fair control, one answer, and what is refused."""

import json

import pytest
from click.testing import CliRunner

from droptune import Plan
from droptune.answer import confirmed
from droptune.cli import main
from droptune.design import Arm, Design, Outcome
from droptune.errors import StudyError
from droptune.space import AS_GIVEN, CONTROL, TUNED
from droptune.store import Queries
from droptune.verdict import Rules
from tests.small import Notes, fresh, runs, study

BOTH = ("lr", "weight_decay")
LIGHT, HEAVY = Plan({"0": ("standard", 0.1)}), Plan({"0": ("standard", 0.5)})
FASTER = Plan(training={"lr": 0.1})


def plans(url, phase):
    return [Plan.from_json(json.loads(row[-1])) for row in runs(url, phase)]


def done(url, **changes):
    return study(url, tune=BOTH, trials=14, **changes).optimize(progress=Notes())


@pytest.mark.parametrize("sampler", ["tpe", "qmc", "random", "autodropout", "gp"])
def test_trials_differ_in_training_and_some_are_without_dropout(tmp_path, sampler):
    url = fresh(tmp_path)
    done(url, sampler=sampler, confirm_blocks=0, epochs=1)
    found = plans(url, "search")
    sampled = [plan for n, plan in enumerate(found) if plan.training]
    assert len({plan.training["lr"] for plan in sampled}) >= 5
    assert [n for n, plan in enumerate(found) if not plan] == [0, 6, 9, 12]


def test_confirmation_has_the_best_plan_without_dropout_beside_the_plain_one(tmp_path):
    url = fresh(tmp_path)
    # A learning rate so small that a greater one is better; the search of this seed has one.
    result = done(url, lr=1e-4, seed=1, finalists=14, confirm_blocks=5)
    arms = {row[1]: Plan.from_json(json.loads(row[-1])) for row in runs(url, "confirm")}
    assert arms[CONTROL] == Plan.none()
    bare = [
        (row["value"], Plan.from_json(row["plan"]))
        for row in Queries(url).trials("mine")
        if not row["plan"]["sites"]
    ]
    assert arms[TUNED] == min(bare, key=lambda pair: pair[0])[1] != Plan.none()
    finalists = [plan for arm, plan in arms.items() if arm.startswith("finalist")]
    assert len(finalists) > 5 and all(finalists), "they have dropout"
    assert result.control["arm"] == TUNED
    assert result.control["trial"] == 12


def test_one_go_and_an_interrupted_one_give_the_same(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    url, other = fresh(tmp_path / "a"), fresh(tmp_path / "b")
    whole = done(url)
    for trials in (8, 14):  # random sampling moves on with its seed, so plans may differ
        study(other, tune=BOTH, trials=trials, confirm_blocks=0).optimize(progress=Notes())
    resumed = done(other)
    assert [bool(plan) for plan in plans(other, "search")] == [
        bool(plan) for plan in plans(url, "search")
    ]
    again = done(url)
    assert again.finished_before and again.to_json() == whole.to_json()
    assert resumed.control["arm"] in (CONTROL, TUNED)


def test_fused_and_serial_studies_agree(tmp_path):
    values = []
    for trainer in ("serial", "fused"):
        (tmp_path / trainer).mkdir()
        url = fresh(tmp_path / trainer)
        tune = (*BOTH, "label_smoothing")
        study(url, tune=tune, trials=9, trainer=trainer, slots=9, confirm_blocks=0).optimize(
            progress=Notes()
        )
        values.append([row["value"] for row in Queries(url).trials("mine")])
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def judged(columns, direction="minimize"):
    """Return the answer to values by arm and block."""
    arms = {CONTROL: Plan.none(), TUNED: FASTER, AS_GIVEN: LIGHT, "finalist 1": HEAVY}
    ended = {
        (block, arms[arm]): {"state": "complete", "metrics": {"val_loss": value}, "test": {}}
        for arm, values in columns.items()
        for block, value in enumerate(values, 1)
    }
    blocks = len(columns[CONTROL])
    design = Design(Rules("val_loss", direction, blocks), {arm: Arm(arms[arm]) for arm in columns})
    chosen = "finalist 1" if "finalist 1" in columns else AS_GIVEN
    return confirmed("s", Outcome(design, chosen, range(1, blocks + 1), ended))


NOISE = [0.0, 0.01, -0.01, 0.02, 0.0, 0.01]


def around(mean, noise=NOISE):
    return [mean + e for e in noise]


def test_dropout_has_to_beat_the_tuned_control():
    columns = {CONTROL: around(1.0), "finalist 1": around(0.8, NOISE[::-1])}
    assert judged(columns).verdict.verdict == "helps"
    answer = judged(columns | {TUNED: around(0.7)})
    assert answer.verdict.verdict == "no benefit"
    assert answer.plan == FASTER and answer.control["arm"] == TUNED


def test_dropout_has_to_beat_the_plain_control_too():
    # The tuned control was lucky in the search, and is the worse one on fresh seeds.
    columns = {CONTROL: around(0.7), TUNED: around(1.0), "finalist 1": around(0.8, NOISE[::-1])}
    answer = judged(columns)
    assert answer.verdict.verdict == "no benefit" and answer.plan == Plan.none()
    # Better than either by the mean, but not surely than the plain one.
    wild = [0.9, 1.3, 0.7, 1.2, 0.65, 1.25]
    columns = {CONTROL: wild, TUNED: around(0.95), "finalist 1": around(0.8, NOISE[::-1])}
    answer = judged(columns)
    assert answer.verdict.verdict == "undecided" and answer.control["arm"] == CONTROL


def test_the_model_as_given_is_blamed_for_its_dropout_and_not_for_its_training():
    given = {CONTROL: around(0.9), "as given": around(1.0, NOISE[::-1])}
    assert judged(given).verdict.verdict == "hurts"
    assert judged(given | {TUNED: around(0.5)}).verdict.verdict != "hurts"


def test_best_says_how_to_train(tmp_path):
    url = fresh(tmp_path)
    done(url, lr=1e-4, seed=1)
    row = Queries(url).best("mine")
    assert row["plan"]["training"]["lr"] > 1e-4
    shown = CliRunner().invoke(main, ["best", "--study", "mine", "--store", url])
    assert f"trained with: lr {row['plan']['training']['lr']:.4g}" in shown.output
    code = CliRunner().invoke(
        main, ["export", "--study", "mine", "--store", url, "--format", "python"]
    )
    assert "# The plan holds for training with lr" in code.stdout


def test_the_command_line_tunes_and_trains_a_population(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = fresh(tmp_path)
    (tmp_path / "mine.py").write_text(
        f"from tests.small import study\nstudy = study({url!r}, trials=30, confirm_blocks=0)\n"
    )
    options = ["--tune", "lr, weight_decay", "--strategy", "pbt", "--slots", "10", "--quiet"]
    result = CliRunner().invoke(main, ["optimize", "mine.py", *options])
    assert result.exit_code == 0, result.output
    found = Queries(url).trials("mine")
    assert any("copy of trial" in (row["name"] or "") for row in found)
    assert any({*row["plan"].get("training", {})} == {*BOTH} for row in found)
    refused = CliRunner().invoke(main, ["optimize", "mine.py", "--tune", "rate"])
    assert refused.exit_code == 1 and "cannot tune 'rate'" in refused.output


def test_an_untuned_study_is_defined_as_before(tmp_path):
    assert "tune" not in study(fresh(tmp_path)).definition()["space"]


def loop(model, *, seed, device):
    yield {"val_loss": 1.0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tune": ["momentum"]}, "cannot tune 'momentum'"),
        ({"tune": "lr"}, "tune 'lr': give a list"),
        ({"tune": ["lr"], "lr": 0}, "lr 0 cannot be tuned"),
        ({"tune": ["lr"], "sampler": "grid"}, "take sampler 'qmc'"),
        ({"tune": ["lr"], "train": loop}, "train= sets these itself"),
        ({"tune": ["label_smoothing"], "loss": "mse"}, "has no labels to smooth"),
    ],
)
def test_what_cannot_be_tuned_is_told_before_anything_is_stored(tmp_path, changes, said):
    with pytest.raises(Exception, match=said) as caught:
        study(f"sqlite:///{tmp_path / 'd.db'}", **changes).optimize(progress=Notes())
    assert isinstance(caught.value, StudyError) or "tune" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
