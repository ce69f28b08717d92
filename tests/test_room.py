"""Plans that do not fit into memory even alone: told to the sampler, and not tried for ever."""

import json
from collections import Counter

import optuna
import pytest
import torch

from droptune.errors import TrainingError
from droptune.plan import Plan
from droptune.room import NO_ROOM
from droptune.store import Queries, Store
from droptune.trainers import SerialTrainer, is_out_of_memory
from tests.small import Notes, fresh, plain, rows, runs, study, trials


@pytest.fixture
def url(tmp_path):
    return fresh(tmp_path)


def too_large(monkeypatch, method: str, large) -> None:
    """Let a trainer's method run out of memory while a plan for which `large` is true trains."""
    whole = getattr(SerialTrainer, method)

    def short(self, *args):
        plans = [member.plan for member in self._members.values()]
        if any(map(large, [*plans, *(one for one in args if isinstance(one, Plan))])):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(self, *args)

    monkeypatch.setattr(SerialTrainer, method, short)


def gaussian(plan: Plan) -> bool:
    return any(entry.kind == "gaussian" for entry in plan.values())


KINDS = {"kinds": ["standard", "gaussian"], "confirm_blocks": 0}


@pytest.mark.parametrize(
    ("slots", "method"),
    [
        (1, "start"),
        (4, "epoch"),
        pytest.param(1, "epoch", marks=pytest.mark.slow),
        pytest.param(4, "start", marks=pytest.mark.slow),
    ],
)
def test_a_plan_that_does_not_fit_alone_has_failed_and_the_search_goes_on(
    url, monkeypatch, method, slots
):
    too_large(monkeypatch, method, gaussian)
    study(url, trials=16, slots=slots, **KINDS).optimize(progress=Notes())
    ended = {number: state for number, *_, state, _ in runs(url, "search")}
    plans = {n: Plan.from_json(json.loads(plan)) for n, *_, plan in runs(url, "search")}
    assert sorted(ended) == list(range(16)), "the budget is exact"
    assert any(map(gaussian, plans.values())), "the search meets none that does not fit"
    assert ended == {n: "failed" if gaussian(plan) else "complete" for n, plan in plans.items()}
    told = {number: state for number, state in trials(url)}
    assert told == {n: {"failed": "FAIL"}.get(s, "COMPLETE") for n, s in ended.items()}
    failed = [number for number, state in ended.items() if state == "failed"]
    again = Counter(number for number, *_ in runs(url, "search") if number in failed)
    assert max(again.values()) <= (1 if slots == 1 else 3), "once at each width"
    shown = Queries(url).trial("mine", failed[0])
    assert (shown["state"], shown["message"]) == ("failed", NO_ROOM)
    listed = {row["number"]: row["state"] for row in Queries(url).trials("mine")}
    assert listed == ended


def test_what_optuna_stores_of_it_says_why(url, monkeypatch):
    too_large(monkeypatch, "epoch", gaussian)
    study(url, trials=16, **KINDS).optimize(progress=Notes())
    known = optuna.load_study(study_name="mine", storage=url).trials
    failed = [trial for trial in known if trial.state == optuna.trial.TrialState.FAIL]
    for trial in failed:
        worst = max(t.value for t in known[: trial.number] if t.value is not None)
        assert trial.user_attrs["message"] == NO_ROOM
        assert trial.user_attrs["infeasible"] == [worst]


def test_the_clock_of_the_block_goes_on_behind_a_plan_that_does_not_fit(url, monkeypatch):
    too_large(monkeypatch, "epoch", gaussian)
    notes = Notes()
    study(url, trials=16, slots=2, **KINDS).optimize(progress=notes)
    assert notes.messages == ["out of memory at 2 members at once; goes on with 1"]
    assert notes.statuses[-1].failed == [run[3] for run in runs(url, "search")].count("failed")


def test_a_death_before_it_is_told_is_made_up_for(url, monkeypatch):
    too_large(monkeypatch, "epoch", gaussian)

    def dies(self, *args):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        whole = Store.end_run

        def end_run(self, run, state, **more):
            if state == "failed":
                patch.setattr("droptune.record.Record.finish", dies)
            return whole(self, run, state, **more)

        patch.setattr(Store, "end_run", end_run)
        with pytest.raises(KeyboardInterrupt):
            study(url, trials=16, **KINDS).optimize(progress=Notes())
    assert dict(trials(url)).popitem()[1] != "FAIL"
    study(url, trials=16, **KINDS).optimize(progress=Notes())
    failed = [run[0] for run in runs(url, "search") if run[3] == "failed"]
    assert len(failed) == len(set(failed)), "none is trained again"
    known = optuna.load_study(study_name="mine", storage=url).trials
    assert all("infeasible" in known[number].user_attrs for number in failed)


@pytest.mark.parametrize("slots", [1, 4])
def test_a_device_that_is_full_is_an_error_and_no_plan_pays_for_it(url, slots):
    """Another program takes the memory in the middle of the search."""
    with pytest.MonkeyPatch.context() as patch:
        left = [5]

        def full(plan):
            left[0] -= 1
            return left[0] < 0

        too_large(patch, "epoch", full)
        with pytest.raises(TrainingError, match="one member at a time; take a smaller batch_size"):
            study(url, trials=8, slots=slots).optimize(progress=Notes())
    assert "failed" not in {run[3] for run in runs(url, "search")}
    assert "running" not in {run[3] for run in runs(url, "search")}
    study(url, trials=8, slots=slots).optimize(progress=Notes())
    assert [state for _, state in trials(url)] == ["COMPLETE"] * 8


def test_an_arm_that_does_not_fit_in_confirmation_has_failed_there(url, monkeypatch):
    one = study(url, trials=6, slots=4, finalists=2)
    one.using(confirm_blocks=0).optimize(progress=Notes())
    best = Plan.from_json(json.loads(rows(url, _BEST)[0][0]))
    too_large(monkeypatch, "epoch", lambda plan: plan == best)
    result = one.optimize(progress=Notes())
    states = {(arm, state) for _, arm, _, state, plan in runs(url, "confirm")}
    failed = {arm for arm, state in states if state == "failed"}
    assert failed, "the best plan does not fit"
    assert ("no dropout", "complete") in states
    assert {message for (message,) in rows(url, _FAILED)} == {NO_ROOM}
    assert result.plan != best
    assert one.optimize(progress=Notes()).finished_before, "it is not tried again"


_BEST = (
    "SELECT plan FROM droptune_run r JOIN trials t ON t.number = r.trial_number "
    "JOIN trial_values v ON v.trial_id = t.trial_id WHERE plan LIKE '%rate%' ORDER BY v.value"
)
_FAILED = "SELECT message FROM droptune_run WHERE phase = 'confirm' AND state = 'failed'"


def test_members_lost_in_narrowing_go_on_from_where_they_were_kept(url, monkeypatch):
    """After epoch 4 of 6, all four are kept; at epoch 5 memory runs out, once."""
    whole, short = SerialTrainer.epoch, []
    monkeypatch.setattr("droptune.keeping.EVERY", 0.0)
    monkeypatch.setattr("droptune.keeping.Keeping.due", property(lambda self: not short))

    def epoch(self):
        if self.slots == 4 and self.clock == 4:
            short.append(self)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self)

    monkeypatch.setattr(SerialTrainer, "epoch", epoch)
    notes = Notes()
    study(url, trials=4, slots=4, epochs=6, confirm_blocks=0).optimize(progress=notes)
    assert notes.messages[0] == "out of memory at 4 members at once; goes on with 2"
    assert notes.messages[1].startswith("2 runs go on where")
    ended = rows(url, "SELECT trial_number, clock, epochs FROM droptune_run WHERE state='complete'")
    assert sorted(ended) == [(n, 0, 6) for n in range(4)]
    curves = "SELECT r.trial_number, c.epoch FROM droptune_curve c JOIN droptune_run r"
    whole_curves = rows(url, curves + " ON r.id = c.run_id WHERE r.state = 'complete'")
    assert sorted(whole_curves) == [(n, epoch) for n in range(4) for epoch in range(1, 7)]
    spent = rows(url, "SELECT sum(epochs) FROM droptune_run WHERE state = 'interrupted'")
    assert spent == [(16,)]


def test_what_memory_errors_look_like():
    for error in (
        MemoryError("Unable to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ):
        assert is_out_of_memory(error)
    assert not is_out_of_memory(ValueError("my own data set is out of memory"))


def test_a_study_in_which_only_no_dropout_fits_says_so(url, monkeypatch):
    too_large(monkeypatch, "epoch", lambda plan: plan != Plan.none())
    result = study(url, trials=4, model=plain).optimize(progress=Notes())
    assert "no plan but one could be trained, 3 failed; `droptune show" in str(result.verdict)


@pytest.mark.gpu
def test_a_gpu_of_which_little_may_be_used_trains_fewer_at_once(url):
    """A member takes 16 MB in float32: weights, gradients and two moments of AdamW each 4 MB."""
    total = torch.cuda.get_device_properties("cuda").total_memory

    def wide():
        return torch.nn.Sequential(
            torch.nn.Linear(30, 1024), torch.nn.ReLU(), torch.nn.Dropout(0.2),
            torch.nn.Linear(1024, 1024), torch.nn.Linear(1024, 2),
        )  # fmt: skip

    notes, more = Notes(), {"device": "cuda", "trainer": "fused", "gpu_memory": 2**29 / total}
    one = study(url, model=wide, slots=64, trials=64, confirm_blocks=0, **more)
    one.optimize(progress=notes)
    assert any("out of memory at 64 members at once" in text for text in notes.messages)
    assert {state for _, state in trials(url)} == {"COMPLETE"}
