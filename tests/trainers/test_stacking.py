"""Stacked optimisers step each member as torch's own would."""

import pytest
import torch

from droptune.trainers.stacking import Pace, StackedAdamW, StackedSGD, groups_of

SHAPES = [(5, 4), (4,), (), (2, 3, 3, 3)]
#: Learning rate, weight decay and steps taken before this block: some equal, some not.
PACES = [(1e-2, 0.01, 0), (1e-2, 0.01, 0), (3e-3, 0.01, 0), (1e-2, 0.5, 4), (1e-2, 0.0, 4)]


def stacks(members, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(members, *s, generator=generator, dtype=torch.float64) for s in SHAPES]


def reference(optimizer, member, lr, decay, age, factors):
    """Return the weights after the member's steps, by torch's plain loop over tensors."""
    params = [stack[member].clone().requires_grad_() for stack in stacks(len(PACES))]
    if optimizer is StackedAdamW:
        torchs = torch.optim.AdamW(params, lr, weight_decay=decay, foreach=False)
    else:
        torchs = torch.optim.SGD(params, lr, momentum=0.9, weight_decay=decay, foreach=False)
    for parameter in params if age else ():
        state = torchs.state[parameter]
        if optimizer is StackedAdamW:
            state["step"] = torch.tensor(float(age))
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
    for step, factor in enumerate(factors):
        torchs.param_groups[0]["lr"] = lr * factor
        for parameter, grad in zip(params, stacks(len(PACES), seed=step + 1), strict=True):
            parameter.grad = grad[member].clone()
        torchs.step()
    return [parameter.detach() for parameter in params]


def stepped(optimizer, factors, change=lambda grad: grad):
    paces = [Pace(*pace) for pace in PACES]
    params = stacks(len(PACES))
    mine = StackedSGD(params, 0.9) if optimizer is StackedSGD else StackedAdamW(params)
    for step, factor in enumerate(factors):
        grads = [change(grad) for grad in stacks(len(PACES), seed=step + 1)]
        groups = groups_of(paces)
        mine.step(grads, groups, [group.pace.lr * factor for group in groups])
        for pace in paces:
            pace.age += 1
    return mine


@pytest.mark.parametrize("optimizer", [StackedAdamW, StackedSGD])
@pytest.mark.parametrize("factors", [[1.0] * 4, [0.1, 0.7, 1.0, 0.0]], ids=["constant", "moving"])
def test_each_member_is_stepped_as_by_torch(optimizer, factors):
    mine = stepped(optimizer, factors)
    for member, (lr, decay, age) in enumerate(PACES):
        expected = reference(optimizer, member, lr, decay, age, factors)
        for stack, parameter in zip(mine.params, expected, strict=True):
            torch.testing.assert_close(stack[member], parameter, rtol=1e-12, atol=1e-12)


def turned(grad):
    """Return the same numbers with other strides."""
    return grad.transpose(0, -1).contiguous().transpose(0, -1) if grad.dim() > 1 else grad


@pytest.mark.parametrize("optimizer", [StackedAdamW, StackedSGD])
def test_gradients_may_have_any_strides(optimizer):
    assert not turned(stacks(2)[0]).is_contiguous()
    one, other = stepped(optimizer, [1.0] * 3), stepped(optimizer, [1.0] * 3, turned)
    assert all(map(torch.equal, one.params, other.params))


@pytest.mark.parametrize("optimizer", [StackedAdamW, StackedSGD])
def test_gradients_are_not_changed(optimizer):
    grads = stacks(len(PACES), seed=1)
    before = [grad.clone() for grad in grads]
    mine = StackedSGD(stacks(5), 0.9) if optimizer is StackedSGD else StackedAdamW(stacks(5))
    groups = groups_of([Pace(*pace) for pace in PACES])
    mine.step(grads, groups, [0.1] * len(groups))
    assert all(map(torch.equal, grads, before))


@pytest.mark.parametrize("optimizer", [StackedAdamW, StackedSGD])
def test_members_of_equal_pace_are_stepped_by_one_call(optimizer, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        optimizer, "_update", lambda self, mine, *rest: sizes.append(len(mine[0][0]))
    )
    mine = StackedSGD(stacks(4), 0.9) if optimizer is StackedSGD else StackedAdamW(stacks(4))
    mine.step(stacks(4), groups_of([Pace(1e-2, 0.0)] * 4), [1e-2])
    assert sizes == [4]
    mine.step(stacks(4), groups_of([Pace(1e-2, 0.0, age) for age in (3, 3, 0, 3)]), [1e-2] * 3)
    assert sizes[1:] == [2, 1, 1]


def test_a_group_ages_with_its_members():
    paces = [Pace(1e-2, 0.0), Pace(1e-2, 0.0), Pace(1e-3, 0.0)]
    groups = groups_of(paces)
    for pace in paces:
        pace.age += 5
    assert [(g.rows, g.pace.lr, g.pace.age) for g in groups] == [
        (slice(0, 2), 1e-2, 5),
        (slice(2, 3), 1e-3, 5),
    ]


def test_state_tensors_are_those_that_are_stepped():
    mine = StackedAdamW(stacks(2))
    assert [t.shape for t in mine.tensors()] == [p.shape for p in stacks(2)] * 2
    mine.step(stacks(2, seed=1), groups_of([Pace(0.1, 0.0)] * 2), [0.1])
    assert all(tensor.abs().sum() > 0 for tensor in mine.tensors())


def test_parameters_of_two_types_are_stepped_apart(monkeypatch):
    kernel, types = torch._fused_adamw_, []

    def seen(params, *rest, **options):
        types.append({tensor.dtype for tensor in params})
        return kernel(params, *rest, **options)

    monkeypatch.setattr(torch, "_fused_adamw_", seen)
    params = [torch.ones(2, 3), torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 4)]
    mine = StackedAdamW(params)
    mine.step([torch.ones_like(p) for p in params], groups_of([Pace(0.1, 0.0)] * 2), [0.1])
    assert types == [{torch.float32}, {torch.float64}]
    assert all(torch.allclose(p, torch.full_like(p, 0.9)) for p in params)
