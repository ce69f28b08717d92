"""Study: one tuning task, from its definition to the verdict."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from droptune import metrics, settings
from droptune.answer import Result
from droptune.data import Data
from droptune.definition import qualified
from droptune.errors import StudyError
from droptune.fixed import Fixed, find_fixed, fixed_line
from droptune.hang import HANG_TIME
from droptune.objectives import directions, each, one_or_all
from droptune.optimize import Optimization
from droptune.plan import Plan
from droptune.progress import Progress
from droptune.progress import progress as suitable_progress
from droptune.sites import Site, find_leaks, find_sites, leaks_line
from droptune.space import NO_TERM, Space
from droptune.store import hide
from droptune.trainers import (
    Task,
    Trainer,
    build,
    check_fit,
    fingerprint,
    pick_device,
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
        objective: the metric that decides, at the last epoch, with or without "val_": loss,
            accuracy, balanced_accuracy, f1, auroc, r2, rmse, calibration_error; a function
            (output, target) -> float of numpy arrays of the whole split, known from then on
            as "val_" and its name; or one that `train`, or a trainer of your own, yields. Or
            several, ("val_loss", "val_calibration_error"): the finalists are then of the Pareto
            front, and each objective has its verdict, see `Result.others`; the first one leads.
        direction: "minimize" or "maximize", needed for a function of your own; None: as the
            metric's name says, and minimize where it says nothing. Of several objectives one
            for each.
        metrics: others to record after each epoch, by name or as functions.
        encoding: "uniform", "shape", "site", or "auto": from coarse to fine; see `Space`.
        kinds: kinds of dropout to try; None: the usual one at each site.
        rates: site -> the rates to try there, such as {"2": (0, 0.3, 0.6)}; other sites take
            none. None: any rate at all sites, as the encoding spells them.
        schedules: how rates may move over training, among constant, ramp, early, late and
            curriculum; early suits a model that underfits, late one that overfits.
        terms: what may be added to the loss, among none, r_drop, fraternal and adversarial. A
            further pass over each batch, two of adversarial, makes them cost.
        tune: what is tuned together with dropout, among lr, weight_decay and label_smoothing,
            around the values given here. One trial in three is then without dropout, so that
            dropout is compared with a network that is tuned as well.
        warm_start: earlier studies whose plans are tried first, carried over by role and depth:
            names of the same store, or "URL#STUDY". None: the plan that helped in a study of
            the store with sites of the same roles, if there is one; (): none.
        sampler: tpe, gp, cmaes, qmc, random, grid or autodropout.
        strategy: "search", each trial for itself, or "pbt", population-based training: trials
            train side by side, and at times copies of the best, with other rates, take the
            places of the worst. What comes out are schedules of rates.
        pruner: none, paired, median, hyperband or successive-halving. Dropout slows the start
            of training, so early rungs favour small rates; paired learns from the trials
            so far what levels and rates say of the end, see `droptune.paired`.
        trials: budget of the search in trials; a total over all runs of the command.
        time: budget of the search in seconds of training, or text such as "10m"; a total.
        patience: end the search when so many more trials are expected to gain less than a
            confirmation could tell apart, see `droptune.patience`; 0: only the budget ends it.
        confirm_blocks: fresh seeds for the verdict, at most: it ends as soon as it is clear.
            From 5 on, 2 more choose the finalist beforehand. 0: none, and it is undecided.
        finalists: how many plans may be chosen besides the model as given.
        level: of the verdict and its interval, such as 0.95.
        margin: the least improvement worth having, in the objective's unit; None: 1 % of the
            mean without dropout.
        seed: of everything.
        trainer: "auto", "fused" or "serial"; or a trainer of your own, made by a function
            (task, slots or None, device) -> `Trainer`, such as `TableTrainer.of(outcome)`.
        slots: members at once, or "auto": measured.
        device: "auto", "cpu", "cuda", "cuda:1" ...
        store: database URL; None: the environment's DROPTUNE_STORE, else sqlite:///droptune.db.
        trial_time: seconds of training after which a run, of the search or of confirmation, is
            stopped and has failed, or text such as "10m"; looked at after each epoch. Of trials
            that train side by side each takes its share of an epoch's time. None: no limit.
        hang_time: seconds, or text, for which training may wait, without computing, until an
            epoch ends: ten times the longest part of it so far if that is more, and six times as
            long for the first. What hangs is said with its place in your code; the command line
            then ends the worker, so that another goes on. 0: for ever.
        gpu_memory: share of the GPU's memory that this process may use, above 0 and up to 1;
            None: nine tenths of what is free at the start. On other devices without effect.

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
    objective: str | Callable | Sequence[str | Callable] = "val_loss"
    direction: str | Sequence[str | None] | None = None
    encoding: str = "shape"
    kinds: Sequence[str] | None = None
    rates: Mapping[str, Sequence[float]] | None = None
    schedules: Sequence[str] = ("constant",)
    terms: Sequence[str] = ("none",)
    tune: Sequence[str] = ()
    warm_start: Sequence[str] | None = None
    sampler: str = "tpe"
    strategy: str = "search"
    pruner: str = "none"
    trials: int = 64
    time: float | str | None = None
    patience: int = 0
    confirm_blocks: int = 10
    finalists: int = 3
    level: float = 0.95
    margin: float | None = None
    seed: int = 0
    trainer: str | Callable[..., Trainer] = "auto"
    slots: int | str = "auto"
    device: str = "auto"
    store: str | None = None
    metrics: Sequence[str | Callable] = ()
    trial_time: float | str | None = None
    hang_time: float | str = HANG_TIME
    gpu_memory: float | None = None

    def __post_init__(self) -> None:
        settings.check({name: getattr(self, name) for name in self.__dataclass_fields__})
        given = each(self.objective)
        own = [one for one in given if callable(one) and one not in self.metrics]
        object.__setattr__(self, "metrics", (*self.metrics, *own))
        # Another loop names its metrics as it likes.
        names = tuple(map(metrics.full_name, given)) if self.trained_here else given
        object.__setattr__(self, "objective", names if len(names) > 1 else names[0])

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
    def objectives(self) -> tuple[str, ...]:
        """The metrics that decide, by name; mostly one."""
        return each(self.objective)

    @property
    def directions(self) -> tuple[str, ...]:
        """What each objective is to do: minimize or maximize."""
        return directions(self.objectives, self.direction)

    @property
    def url(self) -> str:
        """The store's URL."""
        return self.store or os.environ.get("DROPTUNE_STORE") or DEFAULT_STORE

    @property
    def trained_here(self) -> bool:
        """Whether droptune's own loop trains, and not `train` or a trainer of the user's."""
        return self.train is None and isinstance(self.trainer, str)

    @cached_property
    def built(self) -> Any:
        """One module, to look at and not to train."""
        if not self.trained_here:
            return build(self.model, seed=0)
        return check_fit(self.task({}))

    def sites(self) -> tuple[Site, ...]:
        """Return the model's sites, in call order."""
        return find_sites(self.built, self.batch)

    @cached_property
    def fixed(self) -> tuple[Fixed, ...]:
        """The modules whose noise no plan reaches, with the reason."""
        return find_fixed(self.built, self.batch)

    def remarks(self) -> list[str]:
        """Return what is to be known of model and data: dropout in eval mode, noise, copies."""
        leaking, fixed = find_leaks(self.built, self.batch), self.fixed
        said = leaks_line(leaking) if leaking else None, fixed_line(fixed) if fixed else None
        of_data = self.data.remarks() if self.data is not None else []
        return [*of_data, *(line for line in said if line is not None)]

    def trains(self) -> str:
        """Return how the model trains: "fused", or "serially" and why, or by its own loop."""
        if self.train is not None:
            return "by its own loop (train=), one trial at a time"
        if not self.trained_here:
            return f"by a trainer of its own ({qualified(self.trainer)})"
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
        own = {"lr": self.lr, "weight_decay": self.weight_decay}
        tune = {name: own.get(name, 0.0) for name in self.tune}
        return Space(
            self.sites(), self.encoding, self.kinds, self.schedules, self.terms, tune, self.rates
        )

    def as_given(self) -> Plan:
        """Return the dropout that the model comes with, where it takes effect."""
        return Plan({s.name: (s.kind, s.rate) for s in self.space.sites if s.rate})

    def task(self, kinds: Mapping[str, Sequence[str]], block: int = 0) -> Task:
        """Return what the trainers train in a block."""
        first, *rest = self.objectives
        return Task(
            self.model,
            self.data.block(block) if self.data is not None else None,
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
            metrics=metrics.asked_for(first, (*rest, *self.metrics)) if self.trained_here else (),
        )

    def definition(self) -> dict[str, Any]:
        """Return what makes two studies the same, as JSON values."""
        own = [metrics.function_of(name, self.metrics) for name in self.objectives]
        functions = [one and qualified(one) for one in own]
        return {
            "model": fingerprint(self.built),
            "data": self.data.digest() if self.data is not None else None,
            "space": self.space.to_json(),
            "objective": one_or_all(self.objectives),
            "direction": one_or_all(self.directions),
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
                **({"objective_function": one_or_all(functions)} if any(own) else {}),
                **({} if isinstance(self.trainer, str) else {"trainer": qualified(self.trainer)}),
            },
            "seed": self.seed,
        }

    # The run

    def optimize(
        self,
        trials: int | None = None,
        time: float | str | None = None,
        progress: Progress | None = None,
        wait: float = True,
        on_hang: Callable[[], object] | None = None,
    ) -> Result:
        """Search, confirm and judge; goes on where an earlier call ended.

        Other processes may do the same at the same time, on this machine or on another: each
        takes what nobody else trains, and all return the same answer at the end.

        Args:
            trials: total budget of the search in trials.
            time: total budget of the search in seconds, or text such as "10m".
            progress: is told how far it is; None: a display that suits the terminal.
            wait: for others, when they train all that is left: True, or for how many seconds
                before NothingFree is raised.
            on_hang: is called, in another thread, when training hangs and all that it had is
                handed back, to end the process; None: it is only said where it hangs.

        Raises:
            DroptuneError: the study cannot be run; what is stored stays stored.
            KeyboardInterrupt: Ctrl-C; all is stored, and calling again goes on.
        """
        changes = {"trials": trials, "time": time}
        study = self.using(**{name: value for name, value in changes.items() if value is not None})
        progress = suitable_progress() if progress is None else progress
        with progress as shown, Interrupt(shown.message) as interrupt:
            try:
                return Optimization(study, shown, interrupt, wait, on_hang).result()
            except SystemExit as error:
                raise StudyError(
                    f"code of study {self.name!r} ends the program (exit code {error.code}); raise "
                    "another exception there"
                ) from error
