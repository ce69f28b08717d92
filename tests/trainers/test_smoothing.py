"""Label smoothing: torch's numbers, a share for each member, and nothing for those without."""

import pytest
import torch
import torch.nn.functional as F

from droptune.errors import PlanError
from droptune.plan import Plan
from droptune.trainers import FusedTrainer, SerialTrainer
from droptune.trainers.smoothing import smoothed

LIGHT = Plan({"1": ("standard", 0.2)})


def smoothing(share, plan=LIGHT):
    return Plan(plan, plan.term, training={"label_smoothing": share})


def curve(trainer, plans, epochs=4):
    """Train a block and return slot -> train and validation loss by epoch."""
    trainer.begin(3)
    for slot, plan in enumerate(plans):
        trainer.start(slot, plan)
    seen = [trainer.epoch() for _ in range(epochs)]
    return [[(s[i].train_loss, s[i].metrics["val_loss"]) for s in seen] for i in range(len(plans))]


def logits(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), requires_grad=True)


@pytest.mark.parametrize("shape", [(8, 5), (4, 5, 3)])
def test_a_share_gives_what_torch_gives(shape):
    output = logits(*shape)
    target = torch.arange(output[:, 0].numel()).view(output[:, 0].shape) % 5
    target.view(-1)[3] = -100  # which is passed over
    loss = smoothed(F.cross_entropy(output, target), output, target, torch.tensor(0.3))
    expected = F.cross_entropy(output, target, label_smoothing=0.3)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_each_member_has_its_own_share_and_no_share_changes_no_bit():
    output, target = logits(3, 8, 5), torch.arange(8) % 5
    losses = torch.stack([F.cross_entropy(member, target) for member in output])
    shares = torch.tensor([0.0, 0.1, 0.4])
    found = smoothed(losses, output, target, shares)
    for member, share, loss in zip(output, shares.tolist(), found, strict=True):
        expected = F.cross_entropy(member, target, label_smoothing=share)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert found[0] == losses[0]
    (plain,) = torch.autograd.grad(losses.sum(), output, retain_graph=True)
    (smooth,) = torch.autograd.grad(found.sum(), output)
    assert torch.equal(plain[0], smooth[0]) and not torch.equal(plain[1], smooth[1])


def test_a_class_that_is_ruled_out_spoils_no_member():
    with torch.no_grad():
        ruled = logits(2, 6, 4)
        ruled[..., 3] = -torch.inf
    ruled.requires_grad_()
    target = torch.arange(6) % 3
    losses = torch.stack([F.cross_entropy(member, target) for member in ruled])
    found = smoothed(losses, ruled, target, torch.tensor([0.0, 0.2]))
    (gradient,) = torch.autograd.grad(found.sum(), ruled)
    assert found.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("term", [None, "r_drop"])
def test_fused_members_follow_the_curves_they_have_alone(make_task, term):
    plans = [Plan(LIGHT, term, {"label_smoothing": share} if share else {}) for share in (0, 0.1)]
    plans += [Plan(training={"label_smoothing": 0.2, "lr": 3e-3}), LIGHT]
    together = curve(FusedTrainer(make_task(), 4), plans)
    for plan, seen in zip(plans, together, strict=True):
        (alone,) = curve(SerialTrainer(make_task()), [plan])
        for row, twin in zip(seen, alone, strict=True):
            assert row == pytest.approx(twin, rel=1e-5)
    assert together[0] != together[1], "the share takes effect"


def test_smoothing_is_trained_and_not_scored(make_task):
    ((first, _), *_), ((plain, _), *_) = curve(
        FusedTrainer(make_task(batch_size=48), 2), [smoothing(0.4, Plan.none()), Plan.none()], 1
    )
    assert first == plain, "one step: the loss before it is that of the labels alone"


def test_members_are_restored_with_their_share(make_task):
    for make in (lambda: SerialTrainer(make_task(), 2), lambda: FusedTrainer(make_task(), 2)):
        trainer, other = make(), make()
        curve(trainer, [smoothing(0.2), LIGHT], 1)
        other.restore(trainer.save())
        assert other.epoch()[0].metrics == trainer.epoch()[0].metrics


@pytest.mark.parametrize("build", [SerialTrainer, FusedTrainer])
def test_a_loss_without_labels_is_refused(make_task, make_data, mlp, build):
    task = make_task(make_data(classes=0), loss="mse", model=lambda: mlp(out=1))
    trainer = build(task, 1)
    trainer.begin(0)
    with pytest.raises(PlanError, match="label_smoothing 0.1: only the loss 'cross_entropy'"):
        trainer.start(0, smoothing(0.1))
