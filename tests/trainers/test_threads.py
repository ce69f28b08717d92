"""How many threads train: those that are fastest now, and never to another result."""

import pytest
import torch
from torch import Tensor

from droptune.plan import Plan
from droptune.trainers import FusedTrainer
from droptune.trainers.threads import Threads, counts_to_try, rehearsed, threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def trained(chosen: Threads, seconds: dict[int, float], epochs: int) -> list[int]:
    """Return the numbers chosen, where epochs take so long."""
    counts = []
    for _ in range(epochs):
        counts.append(chosen.next())
        chosen.took(counts[-1], seconds[counts[-1]])
    return counts


def test_the_fastest_of_the_rehearsal_is_used_from_the_first_epoch_on():
    seconds = {1: 3.0, 4: 1.0, 16: 2.0}
    counts = trained(Threads({count: s / 17 for count, s in seconds.items()}), seconds, 40)
    assert counts[0] == 4 and counts.count(4) >= 37


def test_the_first_epoch_does_not_count():
    chosen = Threads({1: 3.0, 2: 1.0})
    chosen.took(chosen.next(), 100.0)
    assert trained(chosen, {1: 3.0, 2: 1.0}, 10).count(2) == 10


@pytest.mark.parametrize("ratio", [1.5, 10, 200])
def test_trying_what_was_slower_takes_little_time(ratio):
    counts = trained(Threads({1: 1.0, 2: ratio}), {1: 1.0, 2: ratio}, 20000)
    assert counts.count(2) >= 4  # it is tried, for things may have changed
    assert ratio * counts.count(2) <= 0.06 * len(counts)


def test_it_turns_to_fewer_where_others_want_the_processor_and_back():
    chosen = Threads({1: 3.0, 2: 2.0})
    assert trained(chosen, {1: 3.0, 2: 2.0}, 50).count(2) >= 48
    busy = trained(chosen, {1: 3.0, 2: 300.0}, 500)
    assert busy.count(1) >= 498
    back = trained(chosen, {1: 3.0, 2: 2.0}, 2100)
    assert back[-50:].count(2) >= 48


def test_one_slow_epoch_is_soon_forgotten():
    chosen = Threads({1: 3.0, 2: 2.0})
    trained(chosen, {1: 3.0, 2: 2.0}, 30)
    trained(chosen, {1: 3.0, 2: 50.0}, 1)
    assert trained(chosen, {1: 3.0, 2: 2.0}, 40).count(2) >= 28


def test_the_setting_is_put_back(two_threads):
    with pytest.raises(ZeroDivisionError), threads(1):
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


def test_torchs_setting_is_the_most(two_threads):
    assert counts_to_try() == [1, 2]
    with threads(1):
        assert counts_to_try() == [1]


def test_only_numbers_with_the_same_results_are_used(two_threads):
    def run(by_threads: bool) -> tuple[float, list[Tensor]]:
        count = torch.get_num_threads()
        return count / 1e3, [torch.tensor(1.0 + by_threads * count * 1e-7)]

    assert rehearsed(lambda: run(False)) == {1: 1e-3, 2: 2e-3}
    assert rehearsed(lambda: run(True)) == {2: 2e-3}


def test_large_steps_take_all_threads(make_task, make_data, two_threads, monkeypatch):
    trainer = FusedTrainer(make_task(make_data(rows=40)), 2)
    trainer.rehearse(2, 4)
    assert set(trainer._threads[2]._seconds) == {1, 2}
    monkeypatch.setattr("droptune.trainers.size._SMALL", 1)
    trainer = FusedTrainer(make_task(make_data(rows=40)), 2)
    trainer.rehearse(2, 4)
    assert not trainer._threads


def test_members_trained_by_changing_numbers_of_threads_are_the_same(
    make_task, make_data, two_threads, monkeypatch
):
    task = make_task(make_data(rows=40))

    def states(counts: list[int]) -> list[Tensor]:
        given = iter(counts)
        monkeypatch.setattr(Threads, "next", lambda self: next(given))
        trainer = FusedTrainer(task, 2)
        trainer.rehearse(2, 4)
        assert set(trainer._threads[2]._seconds) == {1, 2}
        trainer.begin(3)
        trainer.start(0, Plan.none())
        trainer.start(1, Plan({"1": ("standard", 0.5)}))
        for _ in counts:
            trainer.epoch()
        assert torch.get_num_threads() == 2
        return list(trainer._stacks().values())

    one, other = states([2, 2, 2, 2]), states([2, 1, 2, 1])
    assert all(map(torch.equal, one, other))


def test_only_steps_that_were_rehearsed_have_a_choice(
    make_task, make_data, two_threads, monkeypatch
):
    asked = []
    monkeypatch.setattr(Threads, "next", lambda self: asked.append(self) or 2)
    trainer = FusedTrainer(make_task(make_data(rows=40)), 2)
    trainer.rehearse(2, 4)
    trainer.begin(3)
    trainer.start(0, Plan.none())
    trainer.epoch()
    assert not asked, "one member trains in a stack of another width"
    trainer.start(1, Plan({"1": ("standard", 0.5)}))
    trainer.epoch()
    assert len(asked) == 1
    torch.set_num_threads(1)
    trainer.epoch()
    assert len(asked) == 1, "the user's setting is another than was rehearsed"
