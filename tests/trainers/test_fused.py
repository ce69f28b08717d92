"""The fused trainer against the serial one: the same masks, steps, statistics and scores.

Weights are compared in float64, where both must agree to rounding. In float32 a
pre-activation within rounding of zero can flip the gradient of a ReLU, after which AdamW
drives two runs apart; the float32 test therefore uses a smooth activation.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from droptune.data import Split
from droptune.errors import ModelError
from droptune.kinds import KINDS
from droptune.plan import Plan
from droptune.trainers import FusedTrainer, SerialTrainer, fused

RATES = (0.0, 0.2, 0.5, 0.8)


def pair(task, plans):
    """Return both trainers with the plans started in slots 0, 1, ..."""
    trainers = FusedTrainer(task, len(plans)), SerialTrainer(task, len(plans))
    for trainer in trainers:
        trainer.begin(7, 2)
        for slot, plan in enumerate(plans):
            trainer.start(slot, plan)
    return trainers


def assert_twins(task, plans, weights, epochs=2, tolerance=1e-12):
    """Train both ways; scores and all weights and buffers must agree."""
    fused, serial = pair(task, plans)
    for _ in range(epochs):
        ours, theirs = fused.epoch(), serial.epoch()
        for slot in range(len(plans)):
            assert ours[slot].train_loss == pytest.approx(theirs[slot].train_loss, rel=2e-6)
            assert ours[slot].metrics == pytest.approx(theirs[slot].metrics, rel=2e-6, abs=1e-7)
            assert ours[slot].failed is None
    for slot, scores in fused.test().items():
        assert scores == pytest.approx(serial.test()[slot], rel=2e-6, abs=1e-7)
    for slot in range(len(plans)):
        mine, reference = weights(fused, slot), weights(serial, slot)
        assert mine.keys() == reference.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor, reference[name], rtol=tolerance, atol=tolerance)


def site_plans(sites, kind="standard"):
    return [Plan({site: (kind, rate) for site in sites}) for rate in RATES]


class WideMLP(nn.Sequential):
    def __init__(self, activation, dtype):
        super().__init__(
            nn.Linear(16, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 4)
        )
        self.to(dtype)


@pytest.mark.parametrize(
    ("activation", "dtype"), [(nn.GELU, torch.float32), (nn.ReLU, torch.float64)]
)
def test_fused_equals_serial_over_500_steps(make_task, make_data, weights, activation, dtype):
    data = make_data(800, (16,), classes=4, dtype=dtype)
    task = make_task(
        data,
        model=lambda: WideMLP(activation, dtype),
        kinds={"@input": ["standard"], "1": ["standard", "gaussian"], "3": ["standard"]},
        batch_size=32,
        lr=1e-3,
    )
    plans = [
        Plan.none(),
        Plan({"@input": ("standard", 0.2), "3": ("standard", 0.5)}),
        Plan({"1": ("gaussian", 0.3)}),
        Plan({"1": ("standard", 0.1), "3": ("standard", 0.1)}),
    ]
    fused, serial = pair(task, plans)
    for _ in range(20):  # of 25 steps
        ours, theirs = fused.epoch(), serial.epoch()
        for slot in range(4):
            assert ours[slot].train_loss == pytest.approx(theirs[slot].train_loss, rel=1e-5)
    if dtype == torch.float64:
        for slot in range(4):
            for name, tensor in weights(fused, slot).items():
                reference = weights(serial, slot)[name]
                torch.testing.assert_close(tensor, reference, rtol=1e-12, atol=1e-12)


class Recorder(nn.Module):
    """Keeps what its site made of ones, for the last eight steps."""

    def __init__(self, shape):
        super().__init__()
        self.site = nn.Identity()
        self.head = nn.Linear(shape[1], 3)
        self.register_buffer("seen", torch.zeros(8, *shape))

    def forward(self, x):
        noise = self.site(torch.ones_like(x))
        if self.training:
            self.seen.copy_(torch.cat([self.seen[1:], noise.detach()[None]]))
        return self.head((x * noise).flatten(2).mean(-1) if x.dim() > 2 else x * noise)


@pytest.mark.parametrize("kind", [name for name in KINDS if not KINDS[name].only_inside()])
def test_masks_are_equal_bit_for_bit(make_task, make_data, weights, kind):
    shape = (12, 5, 4) if "NLF" in KINDS[kind].layouts else (12, 5, 9, 8)
    shape = (12, 60) if kind == "controlled" else shape
    task = make_task(
        make_data(48, shape[1:]),
        model=lambda: Recorder(shape),
        kinds={"site": [kind]},
        batch_size=12,
    )
    fused, serial = pair(task, site_plans(["site"], kind))
    for _ in range(2):
        fused.epoch(), serial.epoch()
    for slot, rate in enumerate(RATES):
        seen = weights(fused, slot)["seen"]
        alone = weights(serial, slot)["seen"]
        # A learned rate follows gradients, which agree to rounding.
        near = kind == "concrete" and torch.allclose(seen, alone, atol=1e-5)
        assert torch.equal(seen, alone) or near
        assert (seen.std() > 0) == (rate > 0)
        new = [not torch.equal(seen[i], seen[i + 1]) or rate == 0 for i in range(7)]
        assert any(new) if kind == "layer_drop" else all(new)  # which draws once a batch


def test_members_share_their_noise(make_task, make_data, weights):
    task = make_task(
        make_data(48, (12,)),
        model=lambda: Recorder((12, 12)),
        kinds={"site": ["standard"]},
        batch_size=12,
    )
    fused, _ = pair(task, site_plans(["site"]))
    fused.epoch()
    kept = [weights(fused, slot)["seen"][-4:] > 0 for slot in range(4)]
    for less, more in zip(kept, kept[1:], strict=False):
        assert (more <= less).all() and more.sum() < less.sum()


class ConvNet(nn.Module):
    """Two convolutions, BatchNorm, and a Dropout2d that it came with.

    Without biases in front of a norm: their gradient is rounding noise, which AdamW blows up.
    """

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout2d(0.3),
            nn.Conv2d(4, 4, 3, bias=False),
        )
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.body(x))).amax((2, 3)))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_cnn_with_batch_norm_and_dropout_of_its_own(make_task, make_data, weights, optimizer):
    task = make_task(
        make_data(40, (1, 8, 8), dtype=torch.float64),
        model=lambda: ConvNet().double(),
        kinds={"body.3": ["channel", "standard"], "head@input": ["standard"]},
        optimizer=optimizer,
    )
    plans = [
        Plan.none(),
        Plan({"body.3": ("channel", 0.3)}),
        Plan({"body.3": ("standard", 0.2), "head@input": ("standard", 0.5)}),
    ]
    assert_twins(task, plans, weights)
    fused, _ = pair(task, plans)
    before = weights(fused, 0)
    fused.epoch()
    after = weights(fused, 0)
    assert (before["norm.running_mean"] != after["norm.running_mean"]).all()
    assert after["norm.num_batches_tracked"] == 3


class Volumes(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv3d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(2 * 8, 3))


def test_a_cnn_over_volumes(make_task, make_data, weights):
    task = make_task(
        make_data(20, (1, 3, 3, 3), dtype=torch.float64),
        model=lambda: Volumes().double(),
        kinds={"1": ["channel"]},
    )
    assert_twins(task, site_plans(["1"], "channel"), weights)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_every_optimizer_and_schedule(make_task, make_data, mlp, weights, optimizer, schedule):
    task = make_task(
        make_data(dtype=torch.float64),
        model=lambda: mlp().double(),
        optimizer=optimizer,
        lr_schedule=schedule,
        epochs=3,
    )
    assert_twins(task, site_plans(["1", "3"]), weights)


def test_sgd_without_momentum(make_task, make_data, mlp, weights):
    task = make_task(
        make_data(dtype=torch.float64),
        model=lambda: mlp().double(),
        optimizer="sgd",
        momentum=0.0,
        weight_decay=0.1,
    )
    assert_twins(task, site_plans(["1"]), weights)


class Frozen(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
        self[0].weight.requires_grad_(False)


class Tied(nn.Module):
    """An encoder whose weight is used again, transposed, on the way back."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(6, 6, bias=False)
        self.two = nn.Linear(6, 6)
        self.two.weight = self.one.weight
        self.act = nn.Tanh()
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.act(self.two(self.act(self.one(x)) @ self.one.weight)))


class Transposed(nn.Module):
    """Uses weights in ways whose gradients do not come out contiguous."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 16))
        self.other = nn.Parameter(torch.randn(3, 2, 16))
        self.act = nn.Tanh()

    def forward(self, x):
        hidden = self.act(torch.einsum("bi,ij->jb", x, self.weight)).T
        return torch.einsum("bj,ckj->kbc", hidden, self.other).sum(0)


class Odd(nn.Module):
    """An embedding-like lookup, layer norm, in-place activations and a residual."""

    def __init__(self):
        super().__init__()
        self.inp, self.norm, self.mid = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(8, 3)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        hidden = self.act(self.norm(self.inp(x)))
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * hidden.detach().mean(0))
        hidden = hidden + F.silu(self.mid(hidden), inplace=True)
        return self.head(hidden - self.mean.relu())


@pytest.mark.parametrize(
    ("model", "site"), [(Frozen, "1"), (Tied, "act"), (Transposed, "act"), (Odd, "act")]
)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_unusual_models(make_task, make_data, weights, model, site, optimizer):
    task = make_task(
        make_data(rows=41, dtype=torch.float64),  # the last batch has 9 samples
        model=lambda: model().double(),
        kinds={site: ["standard"]},
        optimizer=optimizer,
    )
    assert_twins(task, site_plans([site]), weights)


def test_frozen_parameters_stay(make_task, make_data, weights):
    task = make_task(make_data(), model=Frozen, kinds={"1": ["standard"]})
    fused, _ = pair(task, site_plans(["1"]))
    before = weights(fused, 1)
    fused.epoch()
    after = weights(fused, 1)
    assert torch.equal(before["0.weight"], after["0.weight"])
    assert not torch.equal(before["0.bias"], after["0.bias"])


@pytest.mark.parametrize("rows", [33, 40, 48])
def test_a_smaller_last_batch_counts_by_its_samples(make_task, make_data, mlp, weights, rows):
    data = make_data(rows=rows, dtype=torch.float64)
    assert_twins(make_task(data, model=lambda: mlp().double()), site_plans(["1"]), weights)


def squared(output, target):
    return ((output[:, 0] - target) ** 2).mean()


def smooth(output, target):
    return F.cross_entropy(output, target, label_smoothing=0.1)


@pytest.mark.parametrize(
    ("loss", "classes", "out", "metrics"),
    [
        ("cross_entropy", 3, 3, 2),
        (smooth, 3, 3, 1),
        ("binary_cross_entropy", 2, 1, 2),
        ("mse", 0, 1, 1),
        (squared, 0, 1, 1),
    ],
)
def test_every_loss(make_task, make_data, mlp, weights, loss, classes, out, metrics):
    data = make_data(rows=41, classes=classes, dtype=torch.float64)
    task = make_task(data, model=lambda: mlp(out=out).double(), loss=loss)
    assert_twins(task, site_plans(["1", "3"]), weights)
    fused, _ = pair(task, [Plan.none()])
    assert len(fused.epoch()[0].metrics) == metrics


def test_several_labels_a_sample(make_task, make_data, mlp, weights):
    data = make_data(rows=41, classes=2)
    for name in ("train", "val", "test"):
        split = getattr(data, name)
        labels = torch.stack([split.y, 1 - split.y, split.x[:, 0] > 0], 1)
        setattr(data, name, Split(split.x.double(), labels))
    task = make_task(data, model=lambda: mlp().double(), loss="binary_cross_entropy")
    assert_twins(task, site_plans(["1"]), weights)
    fused, serial = pair(task, [Plan.none()])
    for trainer in (fused, serial):
        assert 0 <= trainer.epoch()[0].metrics["val_accuracy"] <= 1


def test_a_last_evaluation_batch_of_one_sample(make_task, make_data, mlp, weights):
    data = make_data(classes=2, dtype=torch.float64)
    data.val = Split(data.val.x[:9], data.val.y[:9])
    model = lambda: mlp(out=1).double()  # noqa: E731
    task = make_task(data, model=model, loss="binary_cross_entropy", batch_size=1, epochs=1)
    assert_twins(task, site_plans(["1"]), weights, epochs=1)


def test_widths_grow_and_shrink_with_the_members(make_task):
    trainer = FusedTrainer(make_task(), 6)
    trainer.begin(0)
    widths = []
    for slot in range(6):
        trainer.start(slot, Plan({"1": ("standard", slot / 10)}))
        trainer.epoch()
        widths.append(len(trainer.save().rest["rows"]))
    for slot in range(5):
        trainer.stop(slot)
        trainer.epoch()
        widths.append(len(trainer.save().rest["rows"]))
    assert widths == [1, 2, 4, 4, 6, 6, 6, 4, 4, 2, 1]


def test_a_step_is_traced_once_for_each_width_and_batch_shape(make_task, make_data, monkeypatch):
    traced, original = [], fused.traced
    monkeypatch.setattr(fused, "traced", lambda *args: traced.append(args) or original(*args))
    trainer = FusedTrainer(make_task(make_data(rows=40)), 2)
    for seed in range(3):
        trainer.begin(seed)
        trainer.start(0, Plan.none())
        trainer.start(1, Plan({"1": ("standard", 0.5)}))
        trainer.epoch(), trainer.epoch(), trainer.test()
    assert len(traced) == 3  # a whole batch, the last batch, and an evaluation


class Peeking(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, x):
        out = self.inner(x)
        return out * 2 if out.mean().item() > 0 else out


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, x):
        return self.inner(x), x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Peeking, "cannot be trained fused .*; use trainer='serial'"),
        (Pair, "the model returns a tuple; return one tensor"),
    ],
)
def test_a_model_that_cannot_be_mapped_is_one_line(make_task, model, message):
    trainer = FusedTrainer(make_task(model=model, kinds={}), 2)
    trainer.begin(0)
    trainer.start(0, Plan.none())
    with pytest.raises(ModelError, match=message) as error:
        trainer.epoch()
    assert "\n" not in str(error.value)


def test_memory_that_ends_while_tracing_is_no_fault_of_the_model(make_task):
    class Greedy(nn.Linear):
        def forward(self, x):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 TB")

    trainer = FusedTrainer(make_task(model=lambda: Greedy(6, 3), kinds={}), 2)
    trainer.begin(0)
    trainer.start(0, Plan.none())
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        trainer.epoch()
