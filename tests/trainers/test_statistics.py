"""droptune/trainers/statistics.py: BatchNorm's statistics, taken again without dropout."""

import pytest
import torch
from torch import nn

from droptune import Plan
from droptune.data import batches
from droptune.errors import StudyError
from droptune.trainers import FusedTrainer, SerialTrainer, statistics
from droptune.trainers.statistics import recalibrate
from tests.branching import Block
from tests.small import Notes, cancer, fresh, study


class Net(nn.Module):
    """Dropout in front of a BatchNorm, and a site at the output of another."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.drop, self.bn = nn.Linear(6, 8, bias=False), nn.Identity(), nn.BatchNorm1d(8)
        self.fc2, self.bn2 = nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8)
        self.bn3, self.head = nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.bn(self.drop(torch.tanh(self.fc1(x))))
        return self.head(self.bn3(x + self.bn2(self.fc2(x))))


KINDS = {"drop": ("standard",), "bn2@residual": ("drop_path",)}
PLANS = [
    Plan.none(),
    Plan({"drop": ("standard", 0.5)}),
    Plan({"drop": ("standard", 0.3), "bn2@residual": ("drop_path", 0.4)}),
]


def trained(trainer, epochs: int = 2) -> list[list[dict]]:
    trainer.begin(seed=3)
    for slot, plan in enumerate(PLANS):
        trainer.start(slot, plan)
    return [[scores.metrics for scores in trainer.epoch().values()] for _ in range(epochs)]


def test_statistics_are_those_of_batches_without_dropout_as_torch_takes_them(
    make_task, make_data, weights
):
    data = make_data(40, (6,))
    task = make_task(data, model=Net, kinds=KINDS, recalibrate=True, batch_size=16)
    trainer = SerialTrainer(task, 3)
    trained(trainer)
    order = batches(40, 16, 3, 1, torch.device("cpu"))
    for slot in range(3):
        mine = weights(trainer, slot)
        model = Net()
        model.load_state_dict({n: t for n, t in mine.items() if "droptune" not in n})
        torch.optim.swa_utils.update_bn([data.train.x[rows] for rows in order], model)
        for name, tensor in model.named_buffers():
            if "running" in name:
                torch.testing.assert_close(mine[name], tensor, atol=1e-6, rtol=1e-5)
            else:
                assert mine[name] == 6  # steps, as without


@pytest.mark.parametrize("trainer", [SerialTrainer, FusedTrainer])
def test_only_statistics_change(make_task, make_data, weights, trainer):
    ends = []
    for again in (False, True):
        task = make_task(make_data(40, (6,)), model=Net, kinds=KINDS, recalibrate=again)
        one = trainer(task, 3)
        scores = trained(one)
        ends.append((scores, [weights(one, slot) for slot in range(3)]))
    (plain, before), (again, after) = ends
    assert plain != again
    for mine, theirs in zip(before, after, strict=True):
        changed = {name for name in mine if not torch.equal(mine[name], theirs[name])}
        assert changed == {
            f"{n}.running_{w}" for n in ("bn", "bn2", "bn3") for w in ("mean", "var")
        }


def test_fused_equals_serial(make_task, make_data, weights):
    data = make_data(40, (6,), dtype=torch.float64)
    task = make_task(data, model=lambda: Net().double(), kinds=KINDS, recalibrate=True)
    fused, serial = FusedTrainer(task, 3), SerialTrainer(task, 3)
    ours, theirs = trained(fused), trained(serial)
    for mine, others in zip(ours, theirs, strict=True):
        for one, other in zip(mine, others, strict=True):
            assert one == pytest.approx(other, rel=1e-6, abs=1e-7)
    for slot in range(3):
        for name, tensor in weights(fused, slot).items():
            torch.testing.assert_close(tensor, weights(serial, slot)[name], rtol=1e-8, atol=1e-9)


def test_the_training_itself_goes_on_as_without(make_task, make_data):
    losses = []
    for again in (False, True):
        task = make_task(make_data(40, (6,)), model=Net, kinds=KINDS, recalibrate=again)
        trainer = SerialTrainer(task, 3)
        trainer.begin(seed=3)
        trainer.start(0, PLANS[2])
        losses.append([trainer.epoch()[0].train_loss for _ in range(3)])
    assert losses[0] == losses[1]


class Frozen(Net):
    """Keeps a BatchNorm in eval mode, as fine-tuning does."""

    def train(self, mode: bool = True):
        super().train(mode)
        self.bn2.eval()
        return self


@pytest.mark.parametrize("trainer", [SerialTrainer, FusedTrainer])
def test_what_a_model_keeps_in_eval_mode_stays_as_it_is(make_task, make_data, weights, trainer):
    task = make_task(make_data(40, (6,)), model=Frozen, kinds=KINDS, recalibrate=True)
    one = trainer(task, 3)
    trained(one)
    for slot in range(3):
        mine = weights(one, slot)
        assert (mine["bn2.running_mean"] == 0).all() and (mine["bn2.running_var"] == 1).all()
        assert (mine["bn.running_mean"] != 0).all()


def test_no_more_than_so_many_batches_are_used_and_a_model_without_norms_needs_none(monkeypatch):
    monkeypatch.setattr(statistics, "BATCHES", 3)
    seen = []
    model, x = Block(), torch.randn(20, 4, 5, 5)
    order = list(torch.arange(20).split(2))
    with torch.no_grad():
        recalibrate(
            model,
            dict(model.named_buffers()),
            lambda rows: seen.append(rows) or model(x[rows]),
            order,
        )
    assert len(seen) == 3
    assert not model.training and not model.bn1.training and model.bn1.momentum == 0.1
    expected = model.conv1(x[:6]).mean((0, 2, 3))
    torch.testing.assert_close(model.bn1.running_mean, expected)
    plain = nn.Linear(2, 2)
    recalibrate(plain, {}, lambda rows: pytest.fail("called"), order)


# In a study


def normed():
    return nn.Sequential(
        nn.Linear(30, 8), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2)
    )


def test_a_study_recalibrates_and_is_another_one_without(tmp_path):
    url = fresh(tmp_path)
    one = study(url, model=normed, data=cancer(), recalibrate=True, confirm_blocks=0, trials=2)
    assert one.optimize(progress=Notes()).verdict
    assert one.definition()["training"]["recalibrate"] is True
    with pytest.raises(StudyError, match=r"recalibrate \(True, now None\)"):
        one.using(recalibrate=False).optimize(progress=Notes())
    assert "recalibrate" not in one.using(recalibrate=False).definition()["training"]


def test_what_cannot_be_recalibrated_is_refused(tmp_path):
    with pytest.raises(StudyError, match="^recalibrate 'yes': True or False is needed$"):
        study("sqlite://", recalibrate="yes")
    with pytest.raises(
        StudyError, match="^recalibrate is for droptune's own training; with train="
    ):
        study("sqlite://", recalibrate=True, train=lambda model, seed, device: iter(()))


class Folded(nn.Module):
    """Folds its batch norm into the layer before it in eval mode."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm, self.outer = (
            nn.Linear(6, 8, bias=False),
            nn.BatchNorm1d(8),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        h = self.inner(x)
        if self.training:
            return self.outer(self.norm(h).relu())
        scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        h = (h - self.norm.running_mean) * scale + self.norm.bias
        return self.outer(h.relu())


def test_what_a_model_keeps_is_never_stale(make_task, make_data):
    """BatchNorm changes its statistics without a new version of the tensors."""
    task = make_task(make_data(rows=40), model=Folded, kinds={})
    losses = {}
    for kind in (SerialTrainer, FusedTrainer):
        trainer = kind(task, 1)
        trainer.begin(3)
        trainer.start(0, Plan.none())
        losses[kind] = [trainer.epoch()[0].metrics["val_loss"] for _ in range(4)]
    assert losses[FusedTrainer] == pytest.approx(losses[SerialTrainer], rel=1e-4)
    assert len(set(losses[SerialTrainer])) == 4
