"""Forwards that read values: a traced step is used for those batches alone that it holds for."""

import pytest
import torch
from torch import Tensor, nn

from droptune.errors import ModelError
from droptune.kinds import Stream
from droptune.plan import Plan
from droptune.trainers import FusedTrainer, SerialTrainer, choose
from droptune.trainers.program import trace


class Reading(nn.Module):
    """Goes another way where a batch holds a sample above a bound.

    Args:
        way: how it is read: tensor -> Python value.
    """

    def __init__(self, way) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.a(x))
        return self.b(x) * (2 if self.way(self.seen) else 1)

    def __call__(self, x: Tensor) -> Tensor:
        self.seen = (x[:, 0] > 1.0).long()
        return super().__call__(x)


def written(flags: Tensor) -> bool:
    """Read memory after it was changed in place."""
    flags = flags.clone()
    flags[1:] |= flags[0]
    flags[0] = 0
    return flags.sum() > 10


WAYS = {
    "bool": lambda flags: flags.sum() > 10,
    "item": lambda flags: flags.sum().item() > 10,
    "int": lambda flags: int(flags.sum()) > 10,
    "tolist": lambda flags: sum(flags.tolist()) > 10,
    "numpy": lambda flags: flags.numpy().sum() > 10,
    "in": lambda flags: 1 in flags[:2],
    "index": lambda flags: [*[0] * 11, *[1] * 60][flags.sum()],
    "after a write": written,
    "length of nonzero": lambda flags: len(flags.nonzero()) > 10,
    "size of a mask": lambda flags: flags[flags > 0].numel() > 10,
}


def curves(trainer, epochs: int = 2) -> list[list[float]]:
    trainer.begin(3)
    trainer.start(0, Plan.none())
    trainer.start(1, Plan({"act": ("standard", 0.4)}))
    found = [trainer.epoch() for _ in range(epochs)]
    return [[scores[slot].train_loss for scores in found] for slot in (0, 1)]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_fused_goes_the_way_of_each_batch_as_serial_does(make_task, make_data, way):
    task = make_task(
        make_data(120, (6,), dtype=torch.float64),
        model=lambda: Reading(way).double(),
        kinds={"act": ["standard"]},
        batch_size=20,
    )
    fused = FusedTrainer(task, 2)
    torch.testing.assert_close(curves(fused), curves(SerialTrainer(task, 2)), rtol=1e-6, atol=0)
    ways = [known for (mode, *_), known in fused._programs.items() if mode == "train"]
    assert any(len(known) > 1 for known in ways)  # else the batches would all go one way


class Marked(nn.Module):
    """Passes some samples of a batch by its second layer; how many differs from batch to batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        marked, x = x[:, 0] > 1.0, self.act(self.a(x))
        out = x.clone()
        out[marked] = self.b(x[marked])
        return out


def some(output: Tensor, target: Tensor) -> Tensor:
    """A loss that leaves a class out."""
    kept = target != 2
    return nn.functional.cross_entropy(output[kept], target[kept])


@pytest.mark.parametrize("model", [Marked, lambda: Reading(WAYS["bool"])])
def test_fused_follows_shapes_that_hang_on_the_batch_as_serial_does(make_task, make_data, model):
    data = make_data(120, (6,), dtype=torch.float64)
    settings = {"kinds": {"act": ["standard"]}, "batch_size": 20, "loss": some}
    task = make_task(data, model=lambda: model().double(), **settings)
    ours, theirs = curves(FusedTrainer(task, 2)), curves(SerialTrainer(task, 2))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_a_constant_that_is_read_is_no_reason_to_look_again():
    bound = torch.tensor(2.5)
    for constant in (bound.item, lambda: torch.tensor(2.5).item()):
        program = trace(lambda x: [x * constant()], [torch.ones(3)])  # noqa: B023
        assert program._guard is None
        assert torch.equal(program(torch.ones(3))[0], torch.full((3,), 2.5))


def test_what_a_guard_computes_changes_no_input_and_draws_nothing():
    stream = Stream("here", seed=3)

    def function(count, x):
        count += 1
        noise = stream.uniform(x.shape, x.device)
        return [x * noise if x.sum() > 0 else x]

    count, x = torch.zeros(()), torch.ones(4)
    program = trace(function, [count.clone(), x])
    state = stream.__getstate__()["states"]["cpu"]
    assert program.holds(count, x) and not program.holds(count, -x)
    assert count == 0
    assert torch.equal(stream.__getstate__()["states"]["cpu"], state)


def test_a_float_is_not_read_and_the_line_says_where():
    def function(x):
        return [x / x.max().item()]

    with pytest.raises(ModelError, match=r"reads a float.* at test_reads.py line \d+, which dif"):
        trace(function, [torch.rand(3)])


def test_a_random_number_is_not_read():
    def function(x):
        return [x * 2 if torch.rand(()) < 0.5 else x]

    with pytest.raises(ModelError, match="reads a random number"):
        trace(function, [torch.rand(3)])


def choice(task) -> tuple[object, str]:
    said: list[str] = []
    return choose(task, slots=2, say=said.append), " ".join(said)


def test_a_number_that_always_differs_makes_a_model_train_serially(make_task, make_data):
    task = make_task(
        make_data(160, (6,)),
        model=lambda: Reading(lambda flags: int(flags.nonzero().sum()) % 2),
        kinds={},
        batch_size=20,
    )
    trainer, said = choice(task)
    assert isinstance(trainer, SerialTrainer)
    assert "reads a number from a tensor, or the shape of one, that differs from batch" in said


def test_a_value_that_depends_on_the_member_names_its_place(make_task):
    class Peeks(Reading):
        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(x) if x.sum() > 0 else self.b(-x)

    trainer, said = choice(make_task(model=lambda: Peeks(bool), kinds={}))
    assert isinstance(trainer, SerialTrainer)
    assert "vmap" in said and "at test_reads.py line" in said
    assert "so it is trained serially" in said
