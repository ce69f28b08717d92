"""A study from its definition to the answer: what is run, what is stored, what is said."""

import json

import pytest
import torch
from torch import nn

import droptune
from droptune.errors import StudyError
from droptune.plan import Entry, Plan
from droptune.store import Queries, Store
from droptune.trainers import FusedTrainer, SerialTrainer
from tests.small import Notes, cancer, fresh, mlp, plain, rows, runs, sizes, study, trials


@pytest.fixture
def url(tmp_path):
    return fresh(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that has ended: its URL and its result. To be read only."""
    url = f"sqlite:///{tmp_path_factory.mktemp('study') / 'd.db'}"
    notes = Notes()
    return url, study(url, epochs=4, confirm_blocks=3).optimize(progress=notes), notes


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The URL of a study with one trial. To be read only."""
    url = f"sqlite:///{tmp_path_factory.mktemp('stored') / 'd.db'}"
    study(url, trials=1, confirm_blocks=0).optimize(progress=Notes())
    return url


# What is stored


def test_trial_0_is_no_dropout_and_trial_1_the_model_as_given(finished):
    url, _, _ = finished
    with Queries(url) as queries:
        first, second, *others = queries.trials("mine")
    assert (first["number"], first["name"]) == (0, "no dropout")
    assert Plan.from_json(first["plan"]) == Plan.none()
    assert (second["number"], second["name"]) == (1, "as given")
    assert Plan.from_json(second["plan"]) == Plan({"2": Entry("standard", 0.2)})
    assert [trial["name"] for trial in others] == [
        "0.1 everywhere",
        "0.5 before the head",
        "0.2 input + 0.5 hidden",
        None,
    ]


def test_every_trial_has_one_run_and_every_run_a_row_an_epoch(finished):
    url, _, _ = finished
    assert trials(url) == [(number, "COMPLETE") for number in range(6)]
    assert [run[0] for run in runs(url, "search")] == list(range(6))
    curves = "SELECT run_id, group_concat(epoch) FROM droptune_curve GROUP BY run_id"
    assert {epochs for _, epochs in rows(url, curves)} == {"1,2,3,4"}
    assert len(rows(url, curves)) == sizes(url)["droptune_run"]
    (metrics,) = rows(url, "SELECT metrics FROM droptune_curve LIMIT 1")[0]
    assert set(json.loads(metrics)) == {"val_loss", "val_accuracy"}


def test_the_search_value_is_the_last_of_its_curve(finished):
    with Queries(finished[0]) as queries:
        trial = queries.trial("mine", 3)
    assert trial["curve"][-1]["metrics"]["val_loss"] == trial["value"]


def test_each_block_trains_the_controls_and_the_finalists_from_clock_0(finished):
    url, _, _ = finished
    found = rows(url, "SELECT block, arm, clock, seed FROM droptune_run WHERE phase = 'confirm'")
    arms = {"no dropout", "as given", "finalist 1"}
    for block in (1, 2, 3):
        assert {arm for number, arm, _, _ in found if number == block} == arms
        assert len({seed for number, _, _, seed in found if number == block}) == 1
    assert len(found) == 9
    assert {clock for _, _, clock, _ in found} == {0}
    seeds = "SELECT DISTINCT seed FROM droptune_run"
    assert len(rows(url, seeds)) == 4, "the search and three blocks have seeds of their own"


def test_sites_definition_and_environment_are_stored(finished):
    with Queries(finished[0]) as queries:
        stored = queries.study("mine")
    assert [site["name"] for site in stored["sites"]] == ["@input", "2"]
    assert stored["sites"][1]["rate"] == 0.2
    assert stored["definition"]["training"]["epochs"] == 4
    assert stored["definition"]["objective"] == "val_loss"
    assert stored["environment"]["torch"] == torch.__version__
    assert stored["trials"]["complete"] == 6
    assert stored["verdict"]["verdict"] == finished[1].verdict.verdict
    assert stored["verdict"]["text"] == str(finished[1].verdict)


def test_best_reads_the_answer_that_optimize_returned(finished):
    url, result, _ = finished
    with Queries(url) as queries:
        best = queries.best("mine")
    assert best == result.to_json()
    assert json.loads(json.dumps(best, allow_nan=False)) == best
    assert list(best)[:4] == ["study", "verdict", "plan", "objective"]
    numbers = {"mean", "low", "high", "p_value", "blocks", "level", "relative", "search"}
    assert set(best["difference"]) == numbers
    assert set(best["test"]) == {"test_loss", "test_accuracy"}
    assert best["control"]["arm"] == "no dropout"
    assert best["control"]["trial"] == 0


def test_the_time_is_told_apart(finished):
    seconds = finished[1].seconds
    assert set(seconds) == {"training", "search", "store"}
    assert all(value > 0 for value in seconds.values())


def test_a_model_without_dropout_has_no_arm_as_given(url):
    study(url, model=plain, trials=2, confirm_blocks=1).optimize(progress=Notes())
    assert [run[1] for run in runs(url, "search")] == ["no dropout", "0.1 everywhere"]
    assert [run[1] for run in runs(url, "confirm")] == ["no dropout", "finalist 1"]


@pytest.mark.parametrize("objective", ["val_loss", "val_accuracy"])
def test_the_best_trial_has_the_best_value(url, objective):
    result = study(url, objective=objective, confirm_blocks=0).optimize(progress=Notes())
    values = [value for (value,) in rows(url, "SELECT value FROM trial_values")]
    best = max(values) if objective == "val_accuracy" else min(values)
    assert result.best["value"] == best
    assert result.verdict.verdict == "undecided"
    assert "--confirm-blocks" in str(result.verdict)
    with Queries(url) as queries:
        assert queries.best("mine") == result.to_json()


def test_auto_measures_and_says_what_it_took(url):
    notes = Notes()
    study(url, trainer="auto", epochs=2, confirm_blocks=1).optimize(progress=notes)
    assert "trains" in notes.messages[0]
    assert trials(url) == [(number, "COMPLETE") for number in range(6)]


def test_confirmation_keeps_to_the_trainer_and_slots_that_are_given(url):
    for trainer, slots in (("serial", "auto"), ("fused", 2)):
        one = study(url, name=trainer, trainer=trainer, slots=slots, trials=3, epochs=2)
        one.using(confirm_blocks=0).optimize(progress=Notes())
        one.optimize(progress=Notes())  # confirmation alone
        found = "SELECT DISTINCT trainer, slot FROM droptune_run JOIN droptune_study s"
        where = " ON study_id = s.id WHERE s.name = ? AND phase = 'confirm' ORDER BY slot"
        width = 1 if slots == "auto" else slots
        assert rows(url, found + where, trainer) == [(trainer, slot) for slot in range(width)]


class Curious(nn.Module):
    """A network that looks at a value, which no fused trainer can map."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(30, 8), nn.Linear(8, 2)

    def forward(self, x):
        hidden = self.first(x).relu()
        return self.last(hidden if hidden.sum().item() > 0 else -hidden)


def test_a_model_that_cannot_be_fused_is_confirmed_serially_after_a_restart(url):
    one = study(url, model=Curious, trainer="auto", slots=2, trials=2, epochs=2)
    one.using(confirm_blocks=0).optimize(progress=Notes())
    one.optimize(progress=Notes())
    trainers = rows(url, "SELECT DISTINCT phase, trainer FROM droptune_run ORDER BY phase")
    assert trainers == [("confirm", "serial"), ("search", "serial")]


# Going on


def test_more_trials_go_on_and_repeat_nothing(url):
    one = study(url, trials=4)
    first = one.optimize(progress=Notes())
    assert not first.finished_before
    before = runs(url, "search"), set(runs(url, "confirm"))
    second = one.optimize(trials=8, progress=Notes())
    assert not second.finished_before
    assert trials(url) == [(number, "COMPLETE") for number in range(8)]
    assert runs(url, "search")[:4] == before[0]
    assert [run[0] for run in runs(url, "search")] == list(range(8))
    confirmed = [(block, plan) for _, _, block, _, plan in runs(url, "confirm")]
    assert len(confirmed) == len(set(confirmed)), "a plan was confirmed twice in a block"
    assert before[1] <= set(runs(url, "confirm"))
    with Queries(url) as queries:
        assert queries.best("mine") == second.to_json()


def test_a_finished_study_says_so_and_returns_its_answer(url):
    one = study(url, trials=4)
    first, before, notes = one.optimize(progress=Notes()), sizes(url), Notes()
    again = one.optimize(progress=notes)
    assert again.finished_before
    assert again.to_json() == first.to_json()
    assert str(again.verdict) == str(first.verdict)
    assert sizes(url) == before
    assert "'mine' is finished: 4 of 4 trials, 2 blocks" in notes.messages[-1]
    assert "raise --trials or --confirm-blocks" in notes.messages[-1]
    assert not notes.statuses


def test_more_blocks_train_the_new_blocks_alone(url):
    one = study(url, trials=3)
    one.optimize(progress=Notes())
    before = runs(url, "confirm")
    again = one.using(confirm_blocks=3).optimize(progress=Notes())
    after = runs(url, "confirm")
    assert after[: len(before)] == before
    assert {block for _, _, block, _, _ in after[len(before) :]} == {3}
    assert again.difference.n == 3


@pytest.mark.parametrize("fewer", [0, 1])
def test_fewer_blocks_throw_no_evidence_away(url, fewer):
    first = study(url, trials=3, confirm_blocks=3).optimize(progress=Notes())
    again = study(url, trials=3, confirm_blocks=fewer).optimize(progress=Notes())
    assert again.finished_before
    assert again.to_json() == first.to_json()


def test_a_verdict_that_a_death_kept_from_being_stored_is_stored_by_the_next_call(url, monkeypatch):
    one = study(url, trials=2, margin=1e-9, level=0.99999)  # never settled
    first = one.optimize(progress=Notes())

    save = Store.save_verdict

    def die(store, study_id, row, *place):
        if not row["details"].get("so_far"):
            raise KeyboardInterrupt
        save(store, study_id, row, *place)

    with monkeypatch.context() as patched:
        patched.setattr("droptune.store.Store.save_verdict", die)
        with pytest.raises(KeyboardInterrupt):
            one.using(confirm_blocks=4).optimize(progress=Notes())
    with Queries(url) as queries:
        so_far = queries.best("mine")["difference"]["blocks"]
    again = one.using(confirm_blocks=4).optimize(progress=Notes())
    assert again.finished_before and first.difference.n <= so_far < again.difference.n
    with Queries(url) as queries:
        assert queries.best("mine")["difference"]["blocks"] > first.difference.n
        assert queries.best("mine") == again.to_json()


def test_an_exhausted_grid_ends_the_study_and_trains_no_more(url, monkeypatch):
    one = study(url, sampler="grid", encoding="uniform", trials=99, epochs=1, confirm_blocks=1)
    one.optimize(progress=Notes())
    count = len(trials(url))
    assert count == 10  # five fixed plans and five rates
    assert {state for _, state in trials(url)} == {"COMPLETE"}
    monkeypatch.setattr("droptune.optimize.choose", None)  # nothing is measured
    notes = Notes()
    assert one.optimize(progress=notes).finished_before
    assert len(trials(url)) == count
    assert "grid" in notes.messages[-1]


def test_two_studies_share_a_store(url):
    for name in ("one", "two"):
        study(url, name=name, trials=2, confirm_blocks=0).optimize(progress=Notes())
    with Queries(url) as queries:
        assert [one["trials"]["complete"] for one in queries.studies()] == [2, 2]


CHANGES = [
    ("model", {"model": lambda: mlp(width=9)}),
    ("model", {"model": lambda: mlp(rate=0.3)}),
    ("data", {"data": cancer(garbage=True)}),
    ("space", {"encoding": "uniform"}),
    ("space", {"kinds": ["gaussian"]}),
    ("objective", {"objective": "val_accuracy"}),
    ("objective, direction", {"objective": lambda o, t: 0.0, "direction": "maximize"}),
    ("seed", {"seed": 1}),
    (r"epochs \(3, now 4\)", {"epochs": 4}),
    (r"batch_size \(64, now 16\), lr \(0.01, now 0.5\)", {"batch_size": 16, "lr": 0.5}),
    ("loss", {"loss": nn.functional.cross_entropy}),
]


@pytest.mark.parametrize(("named", "change"), CHANGES, ids=[name for name, _ in CHANGES])
def test_a_study_goes_on_only_as_it_was_defined(stored, named, change):
    before = sizes(stored)
    with pytest.raises(StudyError, match=f"another {named}.*put it back, or take a new name"):
        study(stored, **change).optimize(progress=Notes())
    assert sizes(stored) == before


@pytest.mark.parametrize(
    "change",
    [{"sampler": "tpe"}, {"trainer": "fused", "slots": 2}, {"finalists": 1}, {"device": "cpu"}],
)
def test_what_is_no_part_of_the_definition_may_change(url, change):
    study(url, trials=2, confirm_blocks=0).optimize(progress=Notes())
    study(url, trials=3, confirm_blocks=1, **change).optimize(progress=Notes())
    assert [state for _, state in trials(url)].count("COMPLETE") == 3


def test_an_address_in_the_text_of_a_model_is_no_change():
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.held = object()

        def extra_repr(self):
            return repr(self.held)

    first, second = Held(), Held()
    assert repr(first) != repr(second)
    from droptune.trainers import fingerprint

    assert fingerprint(first) == fingerprint(second)


# What goes wrong


def test_a_trial_that_diverges_fails_and_the_study_goes_on(url, monkeypatch):
    diverge(monkeypatch, lambda plan: len(plan) == 1)
    result = study(url).optimize(progress=Notes())
    states = dict(trials(url))
    assert states[1] == "FAIL", "the model as given has dropout at one site"
    assert states[0] == states[2] == "COMPLETE"
    assert len(states) == 6
    with Queries(url) as queries:
        failed = queries.trial("mine", 1)
    assert failed["message"] == "diverged: val_loss is nan at epoch 1"
    assert failed["epochs"] == 1
    assert json.dumps(failed, allow_nan=False)
    assert result.plan == Plan.none() or len(result.plan) > 1
    states = {arm: state for _, arm, _, state, _ in runs(url, "confirm")}
    assert states["as given"] == "failed"
    before = sizes(url)
    assert study(url).optimize(progress=Notes()).finished_before, "what failed is not tried again"
    assert sizes(url) == before


def diverge(monkeypatch, which) -> None:
    """Give the members with such plans a validation loss of NaN."""
    score = SerialTrainer._score

    def nan(self, model, split, prefix):
        (plan,) = [m.plan for m in self._members.values() if m.model is model]
        metrics = score(self, model, split, prefix)
        return metrics | {f"{prefix}_loss": float("nan")} if which(plan) else metrics

    monkeypatch.setattr(SerialTrainer, "_score", nan)


def test_a_study_in_which_all_diverges_is_undecided_and_says_what_to_do(url):
    result = study(url, lr=1e30, epochs=2, optimizer="sgd").optimize(progress=Notes())
    assert {state for _, state in trials(url)} == {"FAIL"}
    assert len(trials(url)) == 6
    assert result.verdict.verdict == "undecided"
    assert "no trial was complete (6 failed, 0 pruned)" in str(result.verdict)
    assert "droptune show --study mine --trial 0" in str(result.verdict)
    assert result.plan == Plan.none()
    with Queries(url) as queries:
        assert queries.best("mine") == result.to_json()


def test_a_control_that_diverges_leaves_no_number_that_is_none(url, monkeypatch):
    study(url, trials=3, confirm_blocks=0).optimize(progress=Notes())
    diverge(monkeypatch, lambda plan: not plan)
    result = study(url, trials=3).optimize(progress=Notes())
    assert result.verdict.verdict == "undecided"
    answer = result.to_json()
    assert answer["difference"] is None
    assert answer["control"]["value"] is None
    assert json.dumps(answer, allow_nan=False)
    with Queries(url) as queries:
        assert queries.best("mine") == answer


# The object


def test_the_store_is_the_environments_where_none_is_given(url, monkeypatch):
    monkeypatch.setenv("DROPTUNE_STORE", "sqlite:///there.db")
    assert study(None).url == "sqlite:///there.db"
    assert study(url).url == url


def test_the_public_names_run_the_example_of_the_docstring(url):
    one = study(url, trials=2, trainer="fused", slots=4)
    assert isinstance(one, droptune.Study)
    result = one.optimize(progress=Notes())
    model = droptune.apply(mlp(), result.plan)
    assert droptune.read(model) == result.plan
    assert rows(url, "SELECT DISTINCT trainer FROM droptune_run") == [(FusedTrainer.name,)]


def test_dropout_that_no_plan_reaches_is_said(url):
    class Functional(nn.Linear):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x, 0.5, self.training))

    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x + torch.rand_like(x))

    models = ((lambda: Noisy(30, 2), True), (lambda: Functional(30, 2), False), (mlp, False))
    for number, (model, said) in enumerate(models):
        notes, settings = Notes(), {"name": f"reach {number}", "model": model, "trials": 1}
        study(url, **settings, epochs=1, confirm_blocks=0).optimize(progress=notes)
        assert said is any("no plan reaches" in line for line in notes.messages)


def test_asked_kinds_that_are_not_tried_are_named(url):
    notes = Notes()
    asked = study(url, kinds=["standard", "drop_key"], trials=1, confirm_blocks=0)
    asked.optimize(progress=notes)
    assert [line for line in notes.messages if "drop_key" in line and "standard" not in line]
