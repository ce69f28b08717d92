"""droptune/trainers/consistency_loss.py: in a loop of one's own, what the trainers do."""

import warnings

import pytest
import torch
from torch import nn

import droptune
from droptune.consistency import Term
from droptune.data import batches
from droptune.errors import PlanError, TrainingError
from droptune.install import seed_noise
from droptune.plan import Plan
from droptune.schedule import progress
from droptune.trainers import FunctionTrainer, SerialTrainer
from tests.small import fresh, study

ENTRIES = {"1": ("standard", 0.3), "3": ("gaussian", 0.2)}


def applied(model, plan):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return droptune.apply(model, plan)


@pytest.mark.parametrize(
    "term", [None, Term("r_drop", 1, 0.3), "fraternal", Term("adversarial", 1, 0, 0.2, "1")]
)
def test_a_loop_by_hand_trains_what_the_trainer_trains(make_task, weights, term):
    plan = Plan(ENTRIES, term)
    task = make_task(kinds={"1": ("standard",), "3": ("gaussian",)}, epochs=3)
    trainer = SerialTrainer(task)
    trainer.begin(5)
    trainer.start(0, plan)
    model = applied(task.build(5), plan).train()
    loss = droptune.ConsistencyLoss(model, plan, task.data.example())
    optimizer = torch.optim.AdamW(model.parameters(), task.lr, weight_decay=0.01, fused=True)
    data = task.data.train
    for epoch in range(3):
        trainer.epoch()
        seed_noise(model, 5, epoch)
        for rows in batches(len(data), 16, 5, epoch, torch.device("cpu")):
            optimizer.zero_grad()
            loss(data.x[rows], data.y[rows], progress(epoch, 3)).backward()
            optimizer.step()
    expected = weights(trainer, 0)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name])


class Two(nn.Module):
    """Takes two tensors."""

    def __init__(self):
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 3)

    def forward(self, x, scale):
        return self.b(self.drop(self.a(x * scale).relu()))


@pytest.mark.parametrize("keywords", [False, True])
@pytest.mark.parametrize("term", ["r_drop", "adversarial"])
def test_a_model_may_take_several_arguments(term, keywords):
    x, scale, y = torch.randn(6, 4), torch.rand(6, 1), torch.arange(6) % 3
    batch = {"x": x, "scale": scale} if keywords else (x, scale)
    plan = Plan({"drop": ("standard", 0.5)}, Term(term, 1.0, 0.0))
    model = applied(Two(), plan).train()
    with_term, plain = (droptune.ConsistencyLoss(model, p, batch) for p in (plan, Plan()))
    seed_noise(model, 0)
    total = with_term(batch, y)
    seed_noise(model, 0)
    assert total.isfinite() and total != plain(batch, y)


@pytest.mark.parametrize("term", ["r_drop", "adversarial"])
def test_in_eval_mode_the_loss_is_the_plain_one(term):
    x, y = (torch.randn(6, 4), torch.rand(6, 1)), torch.arange(6) % 3
    plan = Plan({"drop": ("standard", 0.5)}, term)
    model = applied(Two(), plan).eval()
    loss = droptune.ConsistencyLoss(model, plan, x)
    with torch.no_grad():
        assert loss(x, y) == nn.functional.cross_entropy(model(*x), y)
    assert loss(x, y).requires_grad


def test_an_unknown_loss_is_refused_at_once():
    with pytest.raises(TrainingError, match="^unknown loss 'l1'; allowed: cross_entropy, .*mse, "):
        droptune.ConsistencyLoss(Two(), Plan(), loss="l1")


def test_applying_a_plan_with_a_term_says_what_it_leaves_out():
    plan = Plan({"1": ("standard", 0.3)}, Term("adversarial", site="3"))
    with pytest.warns(UserWarning, match="^the plan adds adversarial to the loss, .*Consistency"):
        model = droptune.apply(nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), plan)
    assert droptune.read(model) == Plan(dict(plan))


def test_an_adversarial_term_needs_an_example():
    plan = Plan({"drop": ("standard", 0.5)}, "adversarial")
    model = applied(Two(), plan)
    with pytest.raises(PlanError, match="^an adversarial term needs example=, a batch of two"):
        droptune.ConsistencyLoss(model, plan)


def test_the_function_trainer_refuses_a_plan_with_a_term(make_task):
    def train(model, *, seed, device):
        yield {"val_loss": 1.0}

    trainer = FunctionTrainer(make_task(), train)
    trainer.begin(0)
    with pytest.raises(
        PlanError, match="^train= computes its own loss, so droptune cannot add r_d"
    ):
        trainer.start(0, Plan({"1": ("standard", 0.1)}, "r_drop"))


def test_a_study_with_a_loop_of_its_own_has_no_terms(tmp_path):
    with pytest.raises(droptune.DroptuneError, match=r"^terms \['r_drop'\]: train= computes its"):
        study(fresh(tmp_path), train=lambda model: iter(()), terms=["r_drop"])
