"""Which trainer is chosen, and how wide."""

import pytest
import torch
from torch import nn

from droptune.errors import ModelError, TrainingError
from droptune.plan import Plan
from droptune.trainers import (
    FusedTrainer,
    SerialTrainer,
    choose,
    is_out_of_memory,
    size,
    why_not_fused,
)


class Peeking(nn.Module):
    """Looks at a value of its activations, which no batched model can."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, x):
        out = self.inner(x)
        return out * 2 if out.mean().item() > 0 else out


class Branching(Peeking):
    """Goes two ways, by its activations."""

    def forward(self, x):
        out = self.inner(x)
        return out if out.sum() > 0 else out + 1


class PeekingInEval(Peeking):
    """Looks at a value only when it is scored."""

    def forward(self, x):
        return self.inner(x) if self.training else super().forward(x)


@pytest.fixture
def timed(monkeypatch):
    """Return a function that fakes the seconds a step: of one member, and by width."""

    def fake(alone, widths, small=-1):
        tried = []

        def rehearse(self, members, steps):
            tried.append(members)
            seconds = widths(members)
            if isinstance(seconds, Exception):
                raise seconds
            return seconds

        monkeypatch.setattr(size, "_SMALL", small)
        monkeypatch.setattr(SerialTrainer, "rehearse", lambda *args: alone)
        monkeypatch.setattr(FusedTrainer, "rehearse", rehearse)
        return tried

    return fake


@pytest.mark.parametrize("model", [Peeking, Branching, PeekingInEval])
def test_a_model_that_cannot_be_mapped_is_trained_serially_and_one_line_says_why(make_task, model):
    said = []
    trainer = choose(make_task(model=model, kinds={}), say=said.append)
    assert isinstance(trainer, SerialTrainer) and trainer.slots == 1
    assert len(said) == 1 and "\n" not in said[0]
    assert said[0].startswith("the model cannot be trained fused (")
    assert said[0].endswith(", so it is trained serially")
    trainer.begin(0)
    trainer.start(0, Plan.none())
    assert trainer.epoch()[0].failed is None


def test_who_asks_for_fused_is_told_that_it_cannot_be(make_task):
    with pytest.raises(ModelError, match="cannot be trained fused .*; use trainer='serial'$"):
        choose(make_task(model=Peeking, kinds={}), trainer="fused")


@pytest.mark.parametrize("most", [1, 2, 5, 16])
@pytest.mark.parametrize("trainer", ["auto", "fused"])
def test_automatic_slots_stay_within_bounds(make_task, most, trainer):
    said = []
    chosen = choose(make_task(), trainer=trainer, most=most, say=said.append)
    assert 1 <= chosen.slots <= most
    assert len(said) == 1
    if trainer == "fused":
        assert isinstance(chosen, FusedTrainer)
    chosen.begin(0)
    for slot in range(chosen.slots):
        chosen.start(slot, Plan.none())
    assert sorted(chosen.epoch()) == list(range(chosen.slots))


def test_the_width_grows_while_it_gains(make_task, timed):
    tried = timed(1.0, lambda width: {4: 0.5, 16: 0.3}.get(width, 0.4))
    said = []
    trainer = choose(make_task(), most=200, say=said.append)
    assert isinstance(trainer, FusedTrainer) and trainer.slots == 16
    assert tried == [4, 16, 64]
    assert said == ["trains fused, 16 members at once, 3.3 times as fast as one at a time"]


def test_a_small_model_goes_straight_to_the_widest(make_task, timed):
    tried = timed(1.0, lambda width: 1e-5, small=1e9)
    assert choose(make_task(), most=64).slots == 64
    assert tried == [64]


def test_a_moment_without_the_processor_does_not_make_a_small_model_serial(make_task, timed):
    seconds = iter([0.009, 0.0004])
    timed(alone=0.001, widths=lambda width: next(seconds), small=1e12)
    trainer = choose(make_task(), most=16)
    assert isinstance(trainer, FusedTrainer) and trainer.slots == 16


def test_serial_is_chosen_where_it_is_fastest(make_task, timed):
    timed(1.0, lambda width: 1.5)
    said = []
    assert isinstance(choose(make_task(), say=said.append), SerialTrainer)
    assert said == ["trains serially: on this model one member at a time is fastest"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 TB"),
    ],
)
def test_growth_ends_where_memory_does(make_task, timed, error):
    tried = timed(1.0, lambda width: error if width > 4 else 0.5)
    assert choose(make_task(), most=64).slots == 4
    assert tried == [4, 16]


def test_memory_too_small_for_the_first_width_means_serial(make_task, timed):
    timed(1.0, lambda width: torch.OutOfMemoryError("CUDA out of memory"))
    said = []
    assert isinstance(choose(make_task(), most=64, say=said.append), SerialTrainer)
    assert said == ["trains serially: memory ends below 4 members at once"]


def test_any_other_error_while_measuring_is_not_hidden(make_task, timed):
    timed(1.0, lambda width: RuntimeError("cuDNN error"))
    with pytest.raises(RuntimeError, match="cuDNN error"):
        choose(make_task())


@pytest.mark.parametrize(
    ("trainer", "slots", "kind", "expected"),
    [
        ("serial", "auto", SerialTrainer, 1),
        ("serial", 3, SerialTrainer, 3),
        ("fused", 3, FusedTrainer, 3),
        ("auto", 3, FusedTrainer, 3),
    ],
)
def test_what_is_asked_for_is_given(make_task, trainer, slots, kind, expected):
    chosen = choose(make_task(), trainer=trainer, slots=slots)
    assert isinstance(chosen, kind) and chosen.slots == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": "parallel"}, "unknown trainer 'parallel'; allowed: auto, fused, serial"),
        ({"slots": 0}, "slots 0: 'auto' or a whole number from 1"),
        ({"slots": "many"}, "slots 'many': 'auto' or a whole number from 1"),
        ({"slots": True}, "slots True: 'auto' or a whole number from 1"),
    ],
)
def test_a_bad_wish_says_what_is_allowed(make_task, changes, message):
    with pytest.raises(TrainingError, match=message):
        choose(make_task(), **changes)


@pytest.mark.parametrize("trainer", [SerialTrainer, FusedTrainer])
def test_a_rehearsal_leaves_no_trace_in_the_next_block(make_task, trainer):
    def first_epoch(rehearsed):
        mine = trainer(make_task(), 2)
        if rehearsed:
            assert mine.rehearse(2, 2) > 0
        mine.begin(4)
        mine.start(1, Plan({"1": ("standard", 0.5)}))
        return mine.epoch()[1][:2]

    assert first_epoch(True) == first_epoch(False)


def test_out_of_memory_is_told_from_other_errors():
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize("model", [Peeking, Branching, PeekingInEval])
def test_why_a_model_is_not_trained_fused_is_said_without_a_trainer(make_task, model):
    said = why_not_fused(make_task(model=model, kinds={}))
    assert said.startswith("the model cannot be trained fused (") and said.endswith(")")
    assert why_not_fused(make_task()) is None


def test_memory_too_small_for_two_members_is_a_reason_and_other_errors_are_not(make_task, timed):
    timed(1.0, lambda width: torch.OutOfMemoryError("CUDA out of memory"))
    assert why_not_fused(make_task()) == "memory ends below 2 members at once"
    timed(1.0, lambda width: RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        why_not_fused(make_task())
