"""droptune/autodropout/policy.py: what is proposed, how likely, and what is learned."""

import copy
from functools import cache
from itertools import product
from math import exp, log

import pytest
import torch

from droptune.autodropout import policy as module
from droptune.autodropout.policy import CLIP, Lesson, Policy

SIZES = (3, 2, 4)


def taught() -> Policy:
    """Return a policy that has learned that choices of 1 are good, and others are not."""
    return copy.deepcopy(teach(0))


@cache
def teach(seed: int) -> Policy:
    policy = Policy(SIZES, seed)
    for step in range(6):
        lessons = []
        for i in range(8):
            choices, log_p = policy.propose(8 * step + i)
            lessons.append(Lesson(choices, [True] * 3, log_p, float(choices.count(1) - 1)))
        policy.learn(lessons)
    return policy


def log_probability(policy: Policy, choices: list[int], free=(True, True, True)) -> float:
    with torch.no_grad():
        log_p = policy._net(torch.tensor([choices]))[0].log_softmax(1)
    return sum(log_p[i, c].item() for i, c in enumerate(choices) if free[i])


def test_an_untaught_policy_is_uniform():
    for seed in range(3):
        _, log_p = Policy(SIZES, seed).propose(seed)
        assert log_p == pytest.approx(-log(24), abs=1e-5)


def test_the_probabilities_of_all_proposals_sum_to_1_and_are_what_is_told():
    policy = taught()
    every = [list(choices) for choices in product(*map(range, SIZES))]
    assert sum(exp(log_probability(policy, choices)) for choices in every) == pytest.approx(1)
    drawn = [policy.propose(seed) for seed in range(1500)]
    for choices, log_p in drawn[:50]:
        assert log_p == pytest.approx(log_probability(policy, choices), abs=1e-4)
    likely = max(every, key=lambda choices: log_probability(policy, choices))
    share = sum(choices == likely for choices, _ in drawn) / len(drawn)
    assert share == pytest.approx(exp(log_probability(policy, likely)), abs=0.04)
    assert likely == [1, 1, 1] and share > 0.3


def test_a_choice_depends_on_those_before_it_and_on_none_behind_it():
    policy = taught()
    torch.nn.init.normal_(policy._net.head)
    with torch.no_grad():
        one, other, late = (
            policy._net(torch.tensor([c]))[0] for c in ([0, 1, 2], [2, 1, 2], [0, 1, 3])
        )
    assert torch.equal(one[0], other[0]) and torch.equal(one, late)
    assert not torch.equal(one[1, :2], other[1, :2]) and not torch.equal(one[2], other[2])


def test_what_is_given_is_taken_and_not_counted():
    policy = taught()
    choices, log_p = policy.propose(3, {0: 2, 2: 3})
    assert choices[0] == 2 and choices[2] == 3
    assert log_p == pytest.approx(log_probability(policy, choices, (False, True, False)), abs=1e-5)
    assert policy.propose(3, {0: 0, 1: 0, 2: 0}) == ([0, 0, 0], 0.0)


def test_proposals_are_a_function_of_both_seeds_and_leave_torchs_generators_alone(monkeypatch):
    torch.manual_seed(1)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", (seeded := []).append)
    before = torch.get_rng_state()
    assert teach.__wrapped__(0).propose(5) == taught().propose(5)
    assert len({tuple(taught().propose(seed)[0]) for seed in range(20)}) > 1
    assert torch.equal(torch.get_rng_state(), before) and not seeded


@pytest.fixture
def step(monkeypatch):
    """Return a function: lessons -> what one step of plain gradient descent changes."""
    monkeypatch.setattr(module, "ENTROPY", 0.0)

    def change(lessons: list[Lesson]) -> torch.Tensor:
        policy = taught()
        policy._optimizer = torch.optim.SGD(policy._net.parameters(), 1.0)
        before = torch.nn.utils.parameters_to_vector(policy._net.parameters()).detach()
        policy.learn(lessons)
        return torch.nn.utils.parameters_to_vector(policy._net.parameters()).detach() - before

    return change


def lesson(advantage=1.0, later=0.0, choices=(1, 0, 2), free=(True, True, True)) -> Lesson:
    """Return a lesson of a proposal that has become so much likelier since."""
    now = log_probability(taught(), list(choices), free)
    return Lesson(choices, free, now - later, advantage)


def test_a_step_is_the_mean_of_weight_advantage_and_gradient(step):
    policy = taught()
    log_p = policy._net(torch.tensor([[1, 0, 2]]))[0].log_softmax(1)
    total = log_p[0, 1] + log_p[1, 0] + log_p[2, 2]
    gradient = torch.cat(
        [g.flatten() for g in torch.autograd.grad(total, policy._net.parameters())]
    )
    close = {"rtol": 1e-3, "atol": 1e-5}
    torch.testing.assert_close(step([lesson(0.7)]), 0.7 * gradient, **close)
    late = lesson(-2.0, later=log(0.6))
    torch.testing.assert_close(step([late]), 0.6 * -2.0 * gradient, **close)
    torch.testing.assert_close(step([lesson(0.7), late]), (0.35 - 0.6) * gradient, **close)
    assert gradient.abs().max() > 0.01


def test_a_late_result_counts_no_more_than_the_bound(step):
    torch.testing.assert_close(step([lesson(later=5.0)]), CLIP * step([lesson()]))
    assert CLIP > 1


def test_of_what_was_given_nothing_is_learned(step):
    assert not step([lesson(free=(False, False, False))]).any()
    part = lesson(free=(False, True, False))
    assert step([part]).any() and not torch.equal(step([part]), step([lesson()]))


def test_entropy_keeps_choices_open():
    policy = taught()
    policy._optimizer = torch.optim.SGD(policy._net.parameters(), 1.0)
    peak = log_probability(policy, [1, 1, 1])
    policy.learn([Lesson([1, 1, 1], [True] * 3, peak, 0.0)])
    assert log_probability(policy, [1, 1, 1]) < peak
