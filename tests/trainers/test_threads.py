"""How many threads train: those that are fastest now, and never to another result."""

import pytest
import torch
from torch import Tensor

from droptune.plan import Plan
from droptune.trainers import FusedTrainer
from droptune.trainers.threads import SHORT_STEP, Threads, counts_to_try, rehearsed, threads


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


def test_all_numbers_are_tried_and_the_fastest_stays():
    chosen = Threads([1, 4, 16])
    counts = trained(chosen, {1: 3.0, 4: 1.0, 16: 2.0}, 40)
    assert counts[0] == 16 and set(counts[1:4]) == {1, 4, 16}
    assert counts[4:].count(4) >= 30


def test_the_first_epoch_does_not_count():
    chosen = Threads([1, 2])
    chosen.took(chosen.next(), 100.0)
    assert trained(chosen, {1: 3.0, 2: 1.0}, 10).count(2) >= 7


def test_a_slower_number_is_tried_again_less_and_less_often():
    counts = trained(Threads([1, 2]), {1: 3.0, 2: 1.0}, 300)
    tried = [epoch for epoch, count in enumerate(counts) if count == 1][1:]
    pauses = [b - a for a, b in zip(tried, tried[1:], strict=False)]
    assert 3 <= len(tried) <= 6 and pauses == sorted(pauses)


def test_it_turns_to_fewer_where_others_want_the_processor_and_back():
    chosen = Threads([1, 2])
    trained(chosen, {1: 3.0, 2: 2.0}, 50)
    busy = trained(chosen, {1: 3.0, 2: 20.0}, 30)
    assert busy.count(1) >= 26
    assert trained(chosen, {1: 3.0, 2: 2.0}, 40)[-8:].count(2) >= 7


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

    assert rehearsed(lambda: run(False)) == (1e-3, [1, 2])
    assert rehearsed(lambda: run(True)) == (2e-3, [2])


def test_long_steps_take_all_threads(two_threads):
    runs = []
    seconds = 2 * SHORT_STEP
    assert rehearsed(lambda: runs.append(1) or (seconds, [])) == (seconds, [2])
    assert len(runs) == 2


def test_members_trained_by_changing_numbers_of_threads_are_the_same(
    make_task, make_data, two_threads, monkeypatch
):
    task = make_task(make_data(rows=40))
    monkeypatch.setattr("droptune.trainers.threads.SHORT_STEP", 60.0)  # others may be at work

    def states(counts: list[int]) -> list[Tensor]:
        given = iter(counts)
        monkeypatch.setattr(Threads, "next", lambda self: next(given))
        trainer = FusedTrainer(task, 2)
        trainer.rehearse(2, 4)
        assert trainer._counts == [1, 2]
        trainer.begin(3)
        trainer.start(0, Plan.none())
        trainer.start(1, Plan({"1": ("standard", 0.5)}))
        for _ in counts:
            trainer.epoch()
        assert torch.get_num_threads() == 2
        return list(trainer._stacks().values())

    one, other = states([2, 2, 2, 2]), states([2, 1, 2, 1])
    assert all(map(torch.equal, one, other))
