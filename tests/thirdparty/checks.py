"""What every model of another package has to pass; each check is called by its tests."""

import copy
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from droptune import Plan, Site, apply, find_sites, remove
from droptune.data import Data
from droptune.install import SiteDropout, seed_noise
from droptune.kinds import KINDS
from droptune.trainers import FusedTrainer, SerialTrainer, Task
from tests.small import Notes, fresh, study, trials

Build = Callable[[], nn.Module]

ROWS = 256  # of one example, each with masks of its own
CALLS = 200  # where samples share masks
LOW, HIGH = 0.1, 0.3


class Draws(TorchDispatchMode):
    """Counts the masks that torch itself draws, far below droptune.

    By rate and shape, without the first axis, which holds samples or samples times heads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[float, tuple[int, ...]]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.bernoulli_.float:
            self.seen[round(1 - args[1], 4), tuple(args[0].shape[1:])] += 1
        return func(*args, **kwargs or {})


def model_of(build: Build, train: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return build().train(train)


def existing(model: nn.Module, x: Tensor) -> list[Site]:
    """Return the sites where there is dropout today."""
    return [site for site in find_sites(model, x) if site.rate]


def each_dropout_that_acts_is_listed_once_with_its_rate(build: Build, x: Tensor) -> None:
    """Compare the sites with the masks that torch draws in one forward in training."""
    model, drawn = model_of(build), Draws()
    with drawn, torch.no_grad():
        model(x)
    listed: Counter[tuple[float, tuple[int, ...]]] = Counter()
    for site in existing(model, x):
        # Inside its recurrent layers torch has steps in front.
        shape = (len(x), site.shape[-1]) if site.name.endswith("@between") else site.shape
        listed[round(site.rate, 4), shape] += site.calls
    assert drawn.seen and listed == drawn.seen
    names = [site.name for site in find_sites(model, x)]
    assert len(set(names)) == len(names)


@contextmanager
def spied(cls: type, *methods: str) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    """Yield a list that receives the site, the tensor and what became of it, of every call.

    Args:
        cls: of what acts at sites.
        *methods: by which it is called; all do what `drop` does.
    """
    seen: list[tuple[str, Tensor, Tensor]] = []
    original = cls.drop

    def drop(self: nn.Module, x: Tensor) -> Tensor:
        seen.append((self.site, x, original(self, x)))
        return seen[-1][2]

    with pytest.MonkeyPatch.context() as patch:
        for method in methods:
            patch.setattr(cls, method, drop)
        yield seen


def every_rate_is_applied(build: Build, x: Tensor) -> None:
    """Let one site after the other drop alone: the share dropped and the variance follow."""
    rows = x[:1].expand(ROWS, *x.shape[1:]).contiguous()
    for site in find_sites(model_of(build), x):
        if site.reach == "inside":
            a_rate_inside_is_applied(build, x, site)
            continue
        variances = []
        for rate in (LOW, HIGH):
            plan = Plan({site.name: ("standard", rate)})
            with spied(SiteDropout, "drop", "forward") as seen, torch.no_grad():
                output = apply(model_of(build), plan, seed=1)(rows)
            assert {name for name, _, _ in seen} == {site.name}, site
            assert len(seen) == site.calls and seen[0][1].shape[1:] == site.shape, site
            part, numbers = share(seen)
            assert abs(part - rate) < 4 * (rate * (1 - rate) / numbers) ** 0.5, site
            variances.append(output.double().var(0).mean().item())
        follows(site, variances)


def a_rate_inside_is_applied(build: Build, x: Tensor, site: Site) -> None:
    """Let one place inside a layer drop alone, call after call: samples may share its masks."""
    variances = []
    for rate in (LOW, HIGH):
        model = apply(model_of(build), Plan({site.name: (site.default_kind, rate)}), seed=1)
        with spied(KINDS[site.default_kind], "drop") as seen, torch.no_grad():
            outputs = torch.stack([model(x) for _ in range(CALLS)])
        assert {name for name, _, _ in seen} == {site.name}, site
        part, numbers = share(seen)
        assert abs(part - rate) < 4 * (rate * (1 - rate) / numbers) ** 0.5, site
        variances.append(outputs.double().var(0).mean().item())
    follows(site, variances)


def follows(site: Site, variances: list[float]) -> None:
    """Check the outputs' variances at the low and the high rate.

    To first order they are in proportion to rate / (1 - rate).
    """
    expected = HIGH / (1 - HIGH) / (LOW / (1 - LOW))
    assert expected / 2 < variances[1] / variances[0] < expected * 2, (site, variances)


def share(seen: list[tuple[str, Tensor, Tensor]]) -> tuple[float, int]:
    """Return which part of the numbers that were not 0 was set to 0, and how many they were."""
    alive = torch.cat([x.flatten() != 0 for _, x, _ in seen])
    gone = torch.cat([y.flatten() == 0 for _, _, y in seen])
    numbers = int(alive.sum())
    return (gone & alive).sum().item() / numbers, numbers


def nothing_acts_that_is_not_found(build: Build, x: Tensor) -> None:
    """With every site off a forward in training is that of eval, again and again."""
    model = apply(model_of(build), Plan.none())
    with Draws() as drawn, torch.no_grad():
        first, second = model(x), model(x)
        assert not drawn.seen
        assert torch.equal(first, second)
        # Torch has kernels for eval that add in another order.
        torch.testing.assert_close(first, model.eval()(x), rtol=1e-5, atol=1e-6)


def a_plan_leaves_no_trace(build: Build, x: Tensor) -> None:
    """Keys and eval outputs stay; taken off, the model trains bit for bit as it was given."""
    before, model = model_of(build, False), model_of(build, False)
    keys, output = list(model.state_dict()), model(x)
    apply(model, Plan.everywhere(find_sites(model, x), 0.5), seed=1)
    assert list(model.state_dict()) == keys
    assert torch.equal(model(x), output)
    assert not torch.equal(model.train()(x), output)
    assert torch.equal(model.eval()(x), output)
    remove(model)
    for twin in (before, model):
        torch.manual_seed(7)
        twin.train()(x).square().sum().backward()
    for name, parameter in before.named_parameters():
        mine = model.get_parameter(name)
        assert torch.equal(mine, parameter)
        assert (mine.grad is None) == (parameter.grad is None)
        assert parameter.grad is None or torch.equal(mine.grad, parameter.grad), name
    assert [n for n, _ in model.named_modules()] == [n for n, _ in before.named_modules()]


def copies_have_the_plan(build: Build, x: Tensor) -> None:
    """Deep-copied or pickled, new or after a forward, a model draws the same masks."""
    model = apply(model_of(build), Plan.everywhere(find_sites(model_of(build), x), 0.5), seed=1)
    for ran in (False, True):
        if ran:
            model(x)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            outputs = []
            for one in (model, twin):
                seed_noise(one, 3)
                outputs.append(one(x))
            assert torch.equal(*outputs)
            remove(twin)
            assert torch.equal(twin.eval()(x), remove(copy.deepcopy(model)).eval()(x))


def task_of(build: Build, data: Data) -> Task:
    sites = find_sites(model_of(build), data.example())
    kinds = {site.name: [site.default_kind] for site in sites}
    return Task(build, data, kinds, epochs=2, batch_size=8, lr=0.01)


def fused_follows_serial(build: Build, data: Data) -> None:
    """Train two plans for two epochs, both ways."""
    task, curves = task_of(build, data), []
    plans = [Plan.none(), Plan({name: (kinds[0], 0.2) for name, kinds in task.kinds.items()})]
    for trainer in (FusedTrainer(task, 2), SerialTrainer(task, 2)):
        trainer.begin(3)
        for slot, plan in enumerate(plans):
            trainer.start(slot, plan)
        scores = [trainer.epoch(), trainer.epoch()][1]
        curves.append([(scores[s].train_loss, scores[s].metrics["val_loss"]) for s in (0, 1)])
    torch.testing.assert_close(*map(torch.tensor, curves), rtol=1e-4, atol=1e-5)
    assert curves[0][0] != pytest.approx(curves[0][1], rel=1e-4)


def a_study_runs(build: Build, data: Data, folder: Path, **changes: Any) -> list[str]:
    """Run a short study; return what it says."""
    url, notes = fresh(folder), Notes()
    settings = {"model": build, "data": data, "trials": 3, "epochs": 1, "confirm_blocks": 2}
    result = study(url, **settings, batch_size=8, **changes).optimize(progress=notes)
    assert [state for _, state in trials(url)].count("COMPLETE") == 3
    assert result.verdict is not None
    return notes.messages
