"""Study: one tuning task, from its definition to the verdict."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from droptune import settings
from droptune.answer import Result, complete_blocks, confirmed, unconfirmed
from droptune.data import Data
from droptune.definition import all_kinds, check_same, environment, qualified
from droptune.errors import StudyError
from droptune.kinds import derive
from droptune.loop import Loop
from droptune.plan import Plan
from droptune.progress import Progress
from droptune.progress import progress as suitable_progress
from droptune.search import Search
from droptune.sites import Site, find_leaks, find_sites
from droptune.space import AS_GIVEN, CONTROL, Space
from droptune.store import Store, hide, prepare_engine
from droptune.trainers import (
    FunctionTrainer,
    FusedTrainer,
    SerialTrainer,
    Task,
    Trainer,
    build,
    check_fit,
    choose,
    fingerprint,
    metric_names,
    pick_device,
    still_random,
)
from droptune.watch import Clockwork, Interrupt

DEFAULT_STORE = "sqlite:///droptune.db"

#: The most members that train at once unless told otherwise. More fit, but a sampler that is
#: asked for many plans before the first result comes back learns nothing on the way.
_WIDEST = 64


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
        objective: the metric that decides, at the last epoch: "val_loss", "val_accuracy", or
            one that `train` yields.
        direction: "minimize" or "maximize"; None: maximize an accuracy, minimize the rest.
        encoding: "uniform", "shape" or "site", see `Space`.
        kinds: kinds of dropout to try; None: the usual one at each site.
        schedules: how rates may move over training, among constant, ramp, early, late and
            curriculum; early suits a model that underfits, late one that overfits.
        sampler: tpe, gp, cmaes, qmc, random or grid.
        pruner: none, median, hyperband or successive-halving. Rungs favour small rates,
            because dropout slows the start of training, so the default is none.
        trials: budget of the search in trials; a total over all runs of the command.
        time: budget of the search in seconds of training, or text such as "10m"; a total.
        confirm_blocks: fresh seeds on which the finalists are trained again; 0: none, and the
            verdict is undecided.
        finalists: how many plans go to confirmation besides no dropout and as given.
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
    objective: str = "val_loss"
    direction: str | None = None
    encoding: str = "shape"
    kinds: Sequence[str] | None = None
    schedules: Sequence[str] = ("constant",)
    sampler: str = "tpe"
    pruner: str = "none"
    trials: int = 64
    time: float | str | None = None
    confirm_blocks: int = 8
    finalists: int = 3
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
    def _built(self) -> Any:
        if self.train is not None:
            return build(self.model, seed=0)
        return check_fit(self.task({}))

    def sites(self) -> tuple[Site, ...]:
        """Return the model's sites, in call order."""
        return find_sites(self._built, self._example)

    def leaks(self) -> list[str]:
        """Return the calls of functions that drop although the model is in eval mode."""
        return find_leaks(self._built, self._example)

    @property
    def _example(self) -> Any:
        return self.example if self.example is not None else self.data.example()

    @cached_property
    def space(self) -> Space:
        """The plans that may be tried."""
        return Space(self.sites(), self.encoding, self.kinds, self.schedules)

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
        )

    def definition(self) -> dict[str, Any]:
        """Return what makes two studies the same, as JSON values."""
        return {
            "model": fingerprint(self._built),
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
            return _Run(study, shown, interrupt).result()


class _Run:
    """One call of `optimize`."""

    def __init__(self, study: Study, shown: Progress, interrupt: Interrupt) -> None:
        self.study, self.shown, self.interrupt = study, shown, interrupt
        self.clockwork = Clockwork()
        self.fixed = study.space.fixed_plans(study.as_given())
        self.task = study.task(all_kinds(study.space, self.fixed.values()))
        self.definition = study.definition()
        self.direction = self.definition["direction"]
        self.device = pick_device(study.device)
        #: The trainer to use; None: not known before it is measured.
        self.kind = {"serial": SerialTrainer, "fused": FusedTrainer}.get(study.trainer)
        if study.train is None and study.objective not in metric_names(self.task):
            raise StudyError(
                f"objective {study.objective!r} is not among the metrics "
                f"({', '.join(metric_names(self.task))}); choose one of them"
            )

    def result(self) -> Result:
        """Run what is left to do and return the answer."""
        if still_random(self.study._built, self.study._example):
            self.shown.message(
                "the model draws random numbers in training that droptune does not reach yet "
                "(recurrent dropout, noise of its own): they stay as they are in all trials"
            )
        with Store(self.study.url) as store:
            self.store = store
            with self.clockwork("store"):
                stored = store.study(self.study.name)
                # Also for a new study: a database that refuses to be written is found out here.
                store.interrupt_runs(stored["id"] if stored else 0)
            if stored is not None:
                check_same(self.study.name, stored["definition"], self.definition)
            with self.clockwork("search"):  # refuses what it cannot do before anything is stored
                self.search = self._open_search()
            try:
                self.study_id = self._record(stored)
                return self._search_and_confirm()
            finally:
                self.search.close()

    def _open_search(self) -> Search:
        study = self.study
        return Search(
            study.url,
            study.name,
            study.space,
            direction=self.direction,
            sampler=study.sampler,
            pruner=study.pruner,
            seed=study.seed,
            epochs=study.epochs,
            rungs=sorted(settings.rungs(study.epochs, study.pruner)),
            prepare_engine=prepare_engine,
        )

    def _record(self, stored: Mapping[str, Any] | None) -> int:
        """Make the store ready for runs; return the study's id in it."""
        with self.clockwork("store"):
            if stored is None:
                sites = [site.to_json() for site in self.study.space.sites]
                study_id = self.store.create_study(
                    self.study.name, self.definition, environment(), sites
                )
            else:
                study_id = stored["id"]
        with self.clockwork("search"):
            for name, plan in self.fixed.items():
                self.search.enqueue(name, plan)
        return study_id

    def _search_and_confirm(self) -> Result:
        study = self.study
        loop = Loop(
            self.study_id,
            self.store,
            study.objective,
            study.epochs,
            self._make_trainer,
            self.shown,
            self.interrupt,
            self.clockwork,
        )
        before = self.search.finished
        loop.search(
            self.search,
            block_seed(study.seed, 0),
            trials=study.trials,
            seconds=settings.seconds(study.time),
            rungs=settings.rungs(study.epochs, study.pruner),
        )
        arms = self._arms()
        blocks = {n: block_seed(study.seed, n) for n in range(1, study.confirm_blocks + 1)}
        trained = loop.confirm(arms, blocks)
        finished_before = self.search.finished == before and not trained
        answer = self._answer(arms, blocks)
        with self.clockwork("store"):
            self._save(answer)
        if finished_before:
            self.shown.message(self._finished(before))
        return replace(
            answer, finished_before=finished_before, seconds=dict(self.clockwork.seconds)
        )

    def _make_trainer(self, most: int | None) -> Trainer:
        """Return a trainer of at most so many slots; None: as many as suit the search."""
        study = self.study
        own = None if study.slots == "auto" else study.slots
        if study.train is not None or self.kind is SerialTrainer:
            own = own or 1  # members that take turns only take memory
        slots = min((n for n in (own, most) if n is not None), default=None)
        if study.train is not None:
            return FunctionTrainer(self.task, study.train, slots, self.device)
        if self.kind is not None and slots is not None:
            return self.kind(self.task, slots, self.device)
        trainer = choose(
            self.task,
            trainer=study.trainer,
            slots=slots or "auto",
            most=min(max(8, study.trials // 4), _WIDEST),
            device=self.device,
            say=self.shown.message,
        )
        self.kind = type(trainer)
        return trainer

    # The answer

    def _arms(self) -> dict[str, Plan]:
        """Return what is confirmed: the controls, and the best plans of the search."""
        if self.search.best() is None:
            return {}
        arms = {name: self.fixed[name] for name in (CONTROL, AS_GIVEN) if name in self.fixed}
        chosen = self.search.finalists(self.study.finalists, exclude=arms.values())
        return arms | {f"finalist {i}": plan for i, (_, plan, _) in enumerate(chosen, 1)}

    def _answer(self, arms: Mapping[str, Plan], blocks: Iterable[int]) -> Result:
        """Return what the stored runs say; blocks beyond those asked for count too."""
        study = self.study
        with self.clockwork("store"):
            ended = self.store.confirm_runs(self.study_id)
        runs = {(run["block"], Plan.from_json(run["plan"])): run for run in ended}
        counted = sorted({*blocks, *complete_blocks(arms.values(), runs)}) if arms else []
        if not counted:
            return unconfirmed(
                study.name, study.objective, self.search.best(), self._why_unconfirmed()
            )
        return confirmed(
            study.name,
            study.objective,
            self.direction,
            arms=arms,
            blocks=counted,
            runs=runs,
            searched=self._searched(arms),
            unit="nats" if study.objective == "val_loss" and _is_nats(study.loss) else "",
        )

    def _searched(self, arms: Mapping[str, Plan]) -> dict[Plan, tuple[int, float]]:
        """Return plan -> number and value of its trial: of finalists the one that chose them."""
        best = {plan: (n, value) for n, plan, value in self.search.finalists(10**9)}
        controls = {
            plan: self.search.first(plan) for arm, plan in arms.items() if arm in self.fixed
        }
        return best | {plan: trial for plan, trial in controls.items() if trial is not None}

    def _save(self, answer: Result) -> None:
        """Store the verdict unless it is stored; a death may have come in before."""
        row = answer.to_row(self.direction)
        stored = self.store.verdict(self.study_id) or {}
        if any(stored.get(key, "missing") != value for key, value in row.items()):
            self.store.save_verdict(self.study_id, row)

    def _why_unconfirmed(self) -> str:
        if self.search.best() is not None:
            return "nothing was confirmed; set confirm_blocks (--confirm-blocks) to 2 or more"
        counts = self.search.counts()
        return (
            f"no trial was complete ({counts.failed} failed, {counts.pruned} pruned); "
            f"`droptune show --study {self.study.name} --trial 0` says why, or give more time"
        )

    def _finished(self, trials: int) -> str:
        """Return the line that says that nothing was left to do, and what would change it."""
        study = self.study
        more = "raise --trials or --confirm-blocks"
        if trials < study.trials:
            more = "raise --time" if study.time is not None else "its grid has no further plan"
        return (
            f"study {study.name!r} is finished: {trials} of {study.trials} trials, "
            f"{study.confirm_blocks} blocks of confirmation; for more: {more}"
        )


def block_seed(seed: int, block: int) -> int:
    """Return the seed of a block; block 0 is the search's, the others confirm."""
    return derive(seed, "block", block) % 2**31


def _is_nats(loss: Any) -> bool:
    return loss in ("cross_entropy", "binary_cross_entropy")
