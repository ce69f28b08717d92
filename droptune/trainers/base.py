"""What every trainer keeps to, and what they share: the task, scores, losses, learning rates."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from droptune.data import Data
from droptune.droppers import check_model
from droptune.errors import ModelError, PlanError, TrainingError
from droptune.install import install
from droptune.metrics import IGNORED, Metric
from droptune.plan import Plan
from droptune.schedule import progress
from droptune.sites import Site, find_sites

Loss = Callable[[Tensor, Tensor], Tensor]

OPTIMIZERS = ("adamw", "sgd")
LR_SCHEDULES = ("constant", "cosine", "one-cycle")

#: A batch of an evaluation, in training batches: without gradients more fits.
EVAL_BATCHES = 8


def _named_losses() -> dict[str, Callable[..., Tensor]]:
    return {
        "cross_entropy": F.cross_entropy,
        "binary_cross_entropy": F.binary_cross_entropy_with_logits,
        "mse": F.mse_loss,
    }


LOSSES = tuple(_named_losses())


class Scores(NamedTuple):
    """What one member scored in one epoch.

    Attributes:
        train_loss: mean over the epoch's samples, with dropout on, as the steps saw it; of
            the first pass, and without a term of the plan or smoothed labels.
        metrics: name -> value on the validation split, such as "val_loss".
        seconds: the member's share of the epoch's time.
        failed: why the member cannot go on (it diverged), or None.
    """

    train_loss: float
    metrics: dict[str, float]
    seconds: float
    failed: str | None = None


class Saved(NamedTuple):
    """A trainer's members, to be restored later: tensors, and the rest as JSON values."""

    tensors: dict[str, Tensor]
    rest: dict[str, Any]


class Trainer(Protocol):
    """Trains members of one block: same initial weights, same data order, same noise.

    The block has a clock, counted in epochs: the data order and the noise of epoch t are
    functions of (seed, t) alone, never of who else trains. `begin` comes first. A trainer of
    your own goes into a study as `Study(trainer=make)`, with `make(task, slots, device)` ->
    trainer; `name` and `device` are stored with its runs.
    """

    name: str
    slots: int
    device: torch.device
    clock: int

    def begin(self, seed: int, clock: int = 0) -> None:
        """Start a block, empty, at this epoch of its clock."""

    def start(self, slot: int, plan: Plan) -> None:
        """Put a new member with the block's initial weights into a free slot.

        Raises:
            PlanError: the plan names a site or kind that the task does not have, or asks of
                training what it cannot do.
        """

    def copy(self, source: int, slot: int, plan: Plan) -> None:
        """Put a copy of a member into a free slot; from here on it trains by another plan.

        Weights, buffers, the optimiser's state and age are copied.

        Raises:
            PlanError: as for `start`.
            TrainingError: members of this trainer cannot be copied.
        """

    def epoch(self) -> Mapping[int, Scores]:
        """Train every member for one pass over the training data; slot -> scores."""

    def test(self) -> Mapping[int, dict[str, float]]:
        """Score every member on the test split; slot -> metrics such as "test_loss"."""

    def fit(self, slot: int) -> dict[str, float]:
        """Return metrics that tell how a member fits (droptune/gap.py); {} if nothing does."""

    def reliability(self, slot: int) -> list[list[float]]:
        """Return a member's reliability bins on the validation split; [] if it has none."""

    def stop(self, slot: int) -> None:
        """Free a slot."""

    def save(self) -> Saved | None:
        """Return all members and the clock: copies, on the CPU, which training leaves alone.

        None: these members cannot be saved, and start again after an interruption. A trainer
        without this method is taken for one that saves nothing.
        """

    def restore(self, saved: Saved) -> None:
        """Put back what `save` returned, here or in another process, on whatever device.

        Who was there before is gone. Training goes on as if never interrupted.

        Raises:
            TrainingError: there are too few slots, or what was saved is of another task;
                `begin` must come next.
            PlanError: as for `start`.
        """


@dataclass(frozen=True)
class Task:
    """What is trained, apart from dropout.

    Args:
        model: builds the module; called after `torch.manual_seed(seed)` for each block.
        data: the splits.
        kinds: site name -> kinds of dropout that members may use there.
        loss: "cross_entropy", "binary_cross_entropy" (of logits), "mse", or a function
            (output, target) -> mean loss, a scalar tensor.
        epochs: length of a run, in passes over the training data.
        batch_size: samples a step.
        optimizer: "adamw" or "sgd".
        lr: highest learning rate.
        weight_decay: decoupled for AdamW, added to the gradient for SGD, as in torch.
        momentum: of SGD.
        lr_schedule: "constant", "cosine" (to 0) or "one-cycle".
        recalibrate: whether statistics of BatchNorm are taken again without dropout before
            each validation.
        terms: of the loss that members may use: what they cost is then measured, too.
        metrics: to score besides the mean loss, on the outputs for a whole split.
    """

    model: Callable[[], nn.Module]
    data: Data
    kinds: Mapping[str, Sequence[str]] = field(default_factory=dict)
    loss: str | Loss = "cross_entropy"
    epochs: int = 30
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    momentum: float = 0.9
    lr_schedule: str = "constant"
    recalibrate: bool = False
    terms: Sequence[str] = ()
    metrics: Sequence[Metric] = ()

    def __post_init__(self) -> None:
        for what, value, allowed in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("lr_schedule", self.lr_schedule, LR_SCHEDULES),
        ):
            if value not in allowed:
                raise TrainingError(f"unknown {what} {value!r}; allowed: {', '.join(allowed)}")
        mean_loss(self.loss)
        for what in ("epochs", "batch_size"):
            value = getattr(self, what)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise TrainingError(f"{what} {value!r}: a whole number from 1 is needed")
        for what in ("lr", "weight_decay", "momentum"):
            value = getattr(self, what)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise TrainingError(f"{what} {value!r}: a number from 0 is needed")

    @property
    def steps(self) -> int:
        """Steps in one epoch; the last, smaller batch counts."""
        return math.ceil(len(self.data.train) / self.batch_size)

    def build(self, seed: int) -> nn.Module:
        """Build the model with the initial weights of this seed, on the CPU, dropout installed."""
        module = build(self.model, seed)
        install(module, self.kinds)
        return module

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The model's sites where dropout is installed, in call order."""
        found = find_sites(build(self.model, 0), self.data.example())
        return tuple(site for site in found if site.name in self.kinds)

    @property
    def rehearsed(self) -> Plan:
        """A plan that costs what a member may cost: no dropout, or one with a term."""
        if not self.terms:
            return Plan.none()
        everywhere = {site: (kinds[0], 0.1) for site, kinds in self.kinds.items() if kinds}
        return Plan(everywhere, "adversarial" if "adversarial" in self.terms else self.terms[0])

    def progress(self, step: int) -> float:
        """Return how far a member is in the epoch of this step: 0 in the first, 1 in the last."""
        return progress(step // self.steps, self.epochs)

    def learning_rate(self, base: float, step: int) -> float:
        """Return the learning rate of a member at its step (from 0)."""
        return learning_rate(self.lr_schedule, base, step, self.steps * self.epochs)


def build(model: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a model with `torch.manual_seed(seed)`; the global generators are put back.

    Raises:
        ModelError: the builder fails, or returns no module, or one that is compiled or scripted.
    """
    with kept_generators():
        torch.manual_seed(seed)
        try:
            module = model()
        except Exception as error:
            raise ModelError(
                f"the model builder fails: {type(error).__name__}: {first_line(error)}; "
                "it is called without arguments and must return a torch.nn.Module"
            ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"the model builder returns {type(module).__name__}; "
            "it must return a new torch.nn.Module each time it is called"
        )
    check_model(module)
    return module


def kept_generators() -> AbstractContextManager[None]:
    """Return a context in which torch may be seeded; the global generators are put back after."""
    return torch.random.fork_rng(range(torch.cuda.device_count()))


def checked_output(output: Any) -> Tensor:
    """Return a model's output: the tensor that it returns, or of several the `logits`.

    That is what models of transformers call the output that their own loss is computed from.

    Raises:
        ModelError: it is neither.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(logits := getattr(output, "logits", None), Tensor):
        return logits
    raise ModelError(
        f"the model returns a {type(output).__name__}; return one tensor, or train it "
        "with your own loop (train=)"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return (str(error).strip().splitlines() or [""])[0]


def learning_rate(schedule: str, base: float, step: int, steps: int) -> float:
    """Return the learning rate at a step.

    cosine: `base / 2 * (1 + cos(pi * step / steps))` (Loshchilov & Hutter,
    https://arxiv.org/abs/1608.03983, without restarts). one-cycle: from base / 25 up to base
    over the first 30 % of steps, then down to base / 250000, both along a cosine (Smith &
    Topin, https://arxiv.org/abs/1708.07120, as `torch.optim.lr_scheduler.OneCycleLR`).

    Args:
        schedule: one of `LR_SCHEDULES`.
        base: highest learning rate.
        step: from 0.
        steps: of the whole run.
    """
    if schedule == "constant":
        return base
    if schedule == "cosine":
        return base * (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2
    low, lowest, peak = base / 25, base / 25e4, 0.3 * steps - 1
    if step <= peak:
        return _cosine_between(low, base, step / max(peak, 1e-9))
    rest = steps - 1 - peak
    return _cosine_between(base, lowest, min((step - peak) / max(rest, 1e-9), 1.0))


def _cosine_between(start: float, end: float, part: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


def mean_loss(loss: str | Loss) -> Loss:
    """Return the loss as a function (output, target) -> scalar mean.

    Raises:
        TrainingError: it is neither a name in `LOSSES` nor a function.
    """
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise TrainingError(f"unknown loss {loss!r}; allowed: {', '.join(LOSSES)}, callable")
    function = _named_losses()[loss]
    return lambda output, target: function(*matched(loss, output, target))


def matched(loss: str, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return output and target in shapes that the named loss compares element by element.

    A column of outputs (n, 1) against targets (n,) would broadcast to (n, n) without a word
    of warning, so the last axis is dropped.

    Raises:
        ModelError: the shapes do not belong together.
    """
    if loss == "cross_entropy":
        if target.is_floating_point() or output.dim() < 2 or output.shape[0] != target.shape[0]:
            raise ModelError(
                f"cross_entropy needs outputs (n, classes) and integer labels (n,), got "
                f"{tuple(output.shape)} and {target.dtype} {tuple(target.shape)}; "
                "change the model's last layer or the loss"
            )
        return output, target
    if output.dim() == target.dim() + 1 and output.shape[-1] == 1:
        output = output.squeeze(-1)
    if output.shape != target.shape:
        raise ModelError(
            f"{loss} needs outputs of the shape of the targets {tuple(target.shape)}, got "
            f"{tuple(output.shape)}; change the model's last layer or the loss"
        )
    return output, target.to(output.dtype)


#: Classes below which a softmax along them wastes most of a CPU's vector registers, and takes
#: half the time along samples instead (10 classes: 63 against 134 us forward and backward).
_VECTOR = 16


def stacked_losses(loss: str | Loss, output: Tensor, target: Tensor) -> Tensor:
    """Return each member's mean loss.

    Args:
        loss: a name or a function, as in `Task`.
        output: of all members, `members x batch x ...`.
        target: shared by all members, `batch x ...`.

    Returns:
        A `members`-dim tensor.
    """
    if not isinstance(loss, str):
        return torch.vmap(loss, in_dims=(0, None), randomness="same")(output, target)
    members = output.shape[0]
    # As `target.repeat`, which takes eight times as long.
    repeated = target.expand(members, *target.shape).flatten(0, 1)
    # One flat call: the batching rule of cross_entropy is three times as slow on CPU.
    flat, goal = matched(loss, output.flatten(0, 1), repeated)
    if loss == "cross_entropy" and flat.dim() == 2 and flat.shape[1] < _VECTOR:
        logs = F.log_softmax(flat.t(), 0).t()
        each = F.nll_loss(logs, goal, reduction="none").view(members, -1)
    else:
        each = _named_losses()[loss](flat, goal, reduction="none").view(members, -1)
    if loss == "cross_entropy":  # whose mean is over the targets that it does not pass over
        return each.sum(1) / (target != IGNORED).sum()
    return each.mean(1)


def correct(
    loss: str | Loss, output: Tensor, target: Tensor, stacked: bool = False
) -> Tensor | None:
    """Tell which predictions are right; None where the loss says nothing of classes.

    Args:
        loss: a name or a function, as in `Task`.
        output: `batch x classes` logits, or `batch (x 1)` logits of class 1, or
            `batch x labels` logits of several labels a sample.
        target: `batch` labels, or `batch x labels` of 0 and 1.
        stacked: outputs have an axis of members in front.

    Returns:
        `(members x) batch` of 0 and 1, or of the share of labels that are right.
    """
    if loss == "cross_entropy" and target.dim() == 1:
        return (output.argmax(-1) == target).float()
    if loss == "binary_cross_entropy":
        if output.dim() == stacked + target.dim() + 1:
            output = output.squeeze(-1)
        hits = ((output > 0) == (target > 0.5)).float()
        return hits if target.dim() == 1 else hits.flatten(1 - target.dim()).mean(-1)
    return None


def diverged(scores: Mapping[str, float]) -> str | None:
    """Return why a member with these train_loss and metrics cannot go on, or None."""
    for name, value in scores.items():
        if not math.isfinite(value):
            return f"diverged: {name} is {value}"
    return None


def check_slot(slot: int, slots: int, taken: Collection[int]) -> None:
    """Check that a member can start in a slot.

    Raises:
        TrainingError: there is no such slot, or it is taken.
    """
    if not 0 <= slot < slots:
        raise TrainingError(f"slot {slot}: this trainer has slots 0 to {slots - 1}")
    if slot in taken:
        raise TrainingError(f"slot {slot} is taken; stop its member first")


def check_taken(slot: int, taken: Collection[int]) -> None:
    """Check that a slot has a member.

    Raises:
        TrainingError: it has none.
    """
    if slot not in taken:
        slots = ", ".join(map(str, sorted(taken)))
        raise TrainingError(f"slot {slot} is free; slots with a member: {slots or 'none'}")


def check_kinds(plan: Plan, kinds: Mapping[str, Sequence[str]]) -> None:
    """Check that a task can carry out a plan.

    Raises:
        PlanError: the plan names a site or kind that the task does not have.
    """
    for site, entry in plan.items():
        if entry.kind not in kinds.get(site, ()):
            allowed = ", ".join(f"{name}: {'/'.join(k)}" for name, k in kinds.items())
            raise PlanError(f"{site}: {entry.kind} is not in this task; it has {allowed or 'none'}")
