"""Study: one tuning task, from its definition to the verdict."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from droptune import settings
from droptune.answer import Result
from droptune.data import Data
from droptune.definition import qualified
from droptune.errors import StudyError
from droptune.optimize import Optimization
from droptune.plan import Plan
from droptune.progress import Progress
from droptune.progress import progress as suitable_progress
from droptune.sites import Site, find_leaks, find_sites, leaks_line
from droptune.space import NO_TERM, Space
from droptune.store import hide
from droptune.trainers import (
    Task,
    build,
    check_fit,
    fingerprint,
    noise_line,
    pick_device,
    unreached_noise,
    why_not_fused,
)
from droptune.watch import Interrupt

DEFAULT_STORE = "sqlite:///droptune.db"


@dataclass(frozen=True, eq=False)
class Study:
    """One tuning task: does dropout help this model on this data, and if so which?

    Example:
        >>> study = Study("mine", model=build, data=Data.digits(), epochs=30)
        >>> result = study.optimize(trials=64)      # safe to interrupt and to run again
        >>> model = droptune.apply(build(), result.plan)

    Args:
        name: of the study in the store.
        model: builds a new module; called without arguments after `torch.manual_seed`.
        data: what is trained and judged on.
        train: your own training loop instead of droptune's, see `FunctionTrainer`.
        example: a batch for the model where there is no `data`.
        loss: "cross_entropy", "binary_cross_entropy" (of logits), "mse" or a function
            (output, target) -> mean loss.
        epochs: length of a run, in passes over the training data; all runs are this long.
        batch_size: samples a step.
        optimizer: "adamw" or "sgd".
        lr: highest learning rate.
        weight_decay: as in torch.
        momentum: of SGD.
        lr_schedule: "constant", "cosine" or "one-cycle".
        recalibrate: whether statistics of BatchNorm are taken again without dropout, over up
            to 200 training batches, before each validation: dropout in front shifts them.
        objective: the metric that decides, at the last epoch: "val_loss", "val_accuracy", or
            one that `train` yields.
        direction: "minimize" or "maximize"; None: maximize an accuracy, minimize the rest.
        encoding: "uniform", "shape" or "site", see `Space`.
        kinds: kinds of dropout to try; None: the usual one at each site.
        schedules: how rates may move over training, among constant, ramp, early, late and
            curriculum; early suits a model that underfits, late one that overfits.
        terms: what may be added to the loss, among none, r_drop, fraternal and adversarial. A
            further pass over each batch, two of adversarial, makes them cost.
        sampler: tpe, gp, cmaes, qmc, random, grid or autodropout.
        pruner: none, median, hyperband or successive-halving. Rungs favour small rates,
            because dropout slows the start of training, so the default is none.
        trials: budget of the search in trials; a total over all runs of the command.
        time: budget of the search in seconds of training, or text such as "10m"; a total.
        confirm_blocks: fresh seeds for the verdict, at most: it ends as soon as it is clear.
            From 5 on, 2 more choose the finalist beforehand. 0: none, and it is undecided.
        finalists: how many plans may be chosen besides the model as given.
        level: of the verdict and its interval, such as 0.95.
        margin: the least improvement worth having, in the objective's unit; None: 1 % of the
            mean without dropout.
        seed: of everything.
        trainer: "auto", "fused" or "serial".
        slots: members at once, or "auto": measured.
        device: "auto", "cpu", "cuda", "cuda:1" ...
        store: database URL; None: the environment's DROPTUNE_STORE, else sqlite:///droptune.db.

    Raises:
        StudyError: a setting is not allowed.
    """

    name: str
    model: Callable[[], Any]
    data: Data | None = None
    train: Callable[..., Any] | None = None
    example: Any = None
    loss: str | Callable = "cross_entropy"
    epochs: int = 30
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    momentum: float = 0.9
    lr_schedule: str = "constant"
    recalibrate: bool = False
    objective: str = "val_loss"
    direction: str | None = None
    encoding: str = "shape"
    kinds: Sequence[str] | None = None
    schedules: Sequence[str] = ("constant",)
    terms: Sequence[str] = ("none",)
    sampler: str = "tpe"
    pruner: str = "none"
    trials: int = 64
    time: float | str | None = None
    confirm_blocks: int = 10
    finalists: int = 3
    level: float = 0.95
    margin: float | None = None
    seed: int = 0
    trainer: str = "auto"
    slots: int | str = "auto"
    device: str = "auto"
    store: str | None = None

    def __post_init__(self) -> None:
        settings.check({name: getattr(self, name) for name in self.__dataclass_fields__})

    def __repr__(self) -> str:
        # Without the fields: the store's URL may hold a password.
        return f"Study({self.name!r}, store={hide(self.url)!r})"

    # The definition

    def using(self, **changes: Any) -> "Study":
        """Return a copy with other settings.

        Raises:
            StudyError: a setting is unknown or not allowed.
        """
        try:
            return replace(self, **changes)
        except TypeError as error:
            raise StudyError(f"unknown setting: {error}") from error

    @property
    def maximizes(self) -> bool:
        """Whether a higher objective is better."""
        if self.direction is not None:
            return self.direction == "maximize"
        return "accuracy" in self.objective

    @property
    def url(self) -> str:
        """The store's URL."""
        return self.store or os.environ.get("DROPTUNE_STORE") or DEFAULT_STORE

    @cached_property
    def built(self) -> Any:
        """One module, to look at and not to train."""
        if self.train is not None:
            return build(self.model, seed=0)
        return check_fit(self.task({}))

    def sites(self) -> tuple[Site, ...]:
        """Return the model's sites, in call order."""
        return find_sites(self.built, self.batch)

    def remarks(self) -> list[str]:
        """Return what is to be known of the model: dropout in eval mode, noise out of reach."""
        leaking = find_leaks(self.built, self.batch)
        drawing = unreached_noise(self.built, self.batch)
        said = leaks_line(leaking) if leaking else None, noise_line(drawing) if drawing else None
        return [line for line in said if line is not None]

    def trains(self) -> str:
        """Return how the model trains: "fused", or "serially" and why, or by its own loop."""
        if self.train is not None:
            return "by its own loop (train=), one trial at a time"
        kinds = {s.name: (s.default_kind,) for s in self.sites() if s.takes_part()}
        reason = why_not_fused(self.task(kinds), pick_device(self.device))
        return "fused" if reason is None else f"serially: {reason}"

    @property
    def batch(self) -> Any:
        """What the model can be called with."""
        return self.example if self.example is not None else self.data.example()

    @cached_property
    def space(self) -> Space:
        """The plans that may be tried."""
        return Space(self.sites(), self.encoding, self.kinds, self.schedules, self.terms)

    def as_given(self) -> Plan:
        """Return the dropout that the model comes with, where it takes effect."""
        return Plan({s.name: (s.kind, s.rate) for s in self.space.sites if s.rate})

    def task(self, kinds: Mapping[str, Sequence[str]]) -> Task:
        """Return what the trainers train."""
        return Task(
            self.model,
            self.data,
            kinds,
            self.loss,
            self.epochs,
            self.batch_size,
            self.optimizer,
            self.lr,
            self.weight_decay,
            self.momentum,
            self.lr_schedule,
            self.recalibrate,
            [name for name in self.terms if name != NO_TERM],
        )

    def definition(self) -> dict[str, Any]:
        """Return what makes two studies the same, as JSON values."""
        return {
            "model": fingerprint(self.built),
            "data": self.data.digest() if self.data is not None else None,
            "space": self.space.to_json(),
            "objective": self.objective,
            "direction": "maximize" if self.maximizes else "minimize",
            "training": {
                "loss": self.loss if isinstance(self.loss, str) else qualified(self.loss),
                "train": qualified(self.train) if self.train else None,
                "epochs": self.epochs,
                "batch_size": self.batch_size,
                "optimizer": self.optimizer,
                "lr": self.lr,
                "weight_decay": self.weight_decay,
                "momentum": self.momentum,
                "lr_schedule": self.lr_schedule,
                **({"recalibrate": True} if self.recalibrate else {}),
            },
            "seed": self.seed,
        }

    # The run

    def optimize(
        self,
        trials: int | None = None,
        time: float | str | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Search, confirm and judge; goes on where an earlier call ended.

        Args:
            trials: total budget of the search in trials.
            time: total budget of the search in seconds, or text such as "10m".
            progress: is told how far it is; None: a display that suits the terminal.

        Raises:
            DroptuneError: the study cannot be run; what is stored stays stored.
            KeyboardInterrupt: Ctrl-C; all is stored, and calling again goes on.
        """
        changes = {"trials": trials, "time": time}
        study = self.using(**{name: value for name, value in changes.items() if value is not None})
        progress = suitable_progress() if progress is None else progress
        with progress as shown, Interrupt(shown.message) as interrupt:
            return Optimization(study, shown, interrupt).result()
