"""Study: one tuning task, from its definition to the verdict."""

import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from statistics import fmean
from typing import Any

from droptune.data import Data
from droptune.errors import StudyError
from droptune.kinds import derive
from droptune.loop import Clockwork, Interrupt, Loop
from droptune.plan import Plan, read
from droptune.progress import Progress
from droptune.progress import progress as suitable_progress
from droptune.search import PRUNERS, SAMPLERS, Search
from droptune.sites import Site, find_sites
from droptune.space import ENCODINGS, Space
from droptune.store import Store, prepare_engine
from droptune.trainers import (
    TRAINERS,
    FunctionTrainer,
    FusedTrainer,
    SerialTrainer,
    Task,
    Trainer,
    build,
    check_fit,
    choose,
    fingerprint,
    pick_device,
)
from droptune.verdict import Difference, Verdict, decide, paired_difference

CONTROL, AS_GIVEN = "no dropout", "as given"
DEFAULT_STORE = "sqlite:///droptune.db"

#: The most members that train at once unless told otherwise. More fit, but a sampler that is
#: asked for many plans before the first result comes back learns nothing on the way.
_WIDEST = 64


@dataclass(frozen=True)
class Result:
    """The answer of a study.

    Attributes:
        study: its name.
        verdict: helps, no benefit, hurts or undecided, with the numbers behind it.
        plan: what to use: the confirmed winner, or no dropout.
        objective: the metric that decided.
        best: the winner's arm, mean over the confirmation blocks and trial, and the lucky
            value that its search trial had.
        control: the same of no dropout.
        difference: winner minus no dropout, in the objective's unit; None if there is none.
        test: means on the test split, read once, at the end; None without one.
        finished_before: nothing was left to do.
        seconds: where the time of this call went, by "training", "search" and "store".
    """

    study: str
    verdict: Verdict
    plan: Plan
    objective: str
    best: dict[str, Any] | None
    control: dict[str, Any] | None
    difference: Difference | None
    test: dict[str, Any] | None
    finished_before: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the answer as JSON values, as `droptune best --json` prints it."""
        difference = None
        if self.difference is not None:
            difference = asdict(self.difference)
            difference["blocks"] = difference.pop("n")
        return {
            "study": self.study,
            "verdict": self.verdict.verdict,
            "plan": self.plan.to_json(),
            "objective": self.objective,
            "best": self.best,
            "control": self.control,
            "difference": difference,
            "test": self.test,
        }


@dataclass(frozen=True)
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
        if not isinstance(self.name, str) or not self.name.strip():
            raise StudyError(f"study name {self.name!r}: give a text that is not empty")
        if not callable(self.model):
            raise StudyError(
                f"model is a {type(self.model).__name__}; give a function that builds and returns "
                "a new torch.nn.Module, such as model=lambda: MyNet()"
            )
        if self.data is None and (self.train is None or self.example is None):
            raise StudyError("give data=, or your own train= with example= (a batch for the model)")
        if self.data is not None and not isinstance(self.data, Data):
            raise StudyError(
                f"data is a {type(self.data).__name__}; give dt.Data(train=(X, y), val=(Xv, yv))"
            )
        for what, allowed in (
            ("sampler", SAMPLERS),
            ("pruner", PRUNERS),
            ("encoding", ENCODINGS),
            ("trainer", TRAINERS),
            ("direction", ("minimize", "maximize", None)),
        ):
            if getattr(self, what) not in allowed:
                names = ", ".join(str(name) for name in allowed if name)
                raise StudyError(f"unknown {what} {getattr(self, what)!r}; allowed: {names}")
        for what, least in (
            ("trials", 1),
            ("epochs", 1),
            ("batch_size", 1),
            ("confirm_blocks", 0),
            ("finalists", 1),
            ("seed", 0),
        ):
            value = getattr(self, what)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise StudyError(f"{what} {value!r}: a whole number from {least} is needed")
        if self.slots != "auto" and (not isinstance(self.slots, int) or self.slots < 1):
            raise StudyError(f"slots {self.slots!r}: 'auto' or a whole number from 1 is needed")
        seconds(self.time)

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
        example = self.example if self.example is not None else self.data.example()
        return find_sites(self._built, example)

    @cached_property
    def space(self) -> Space:
        """The plans that may be tried."""
        return Space(self.sites(), self.encoding, self.kinds)

    def as_given(self) -> Plan:
        """Return the dropout that the model comes with, where it takes effect."""
        found = {site.name for site in self.space.sites}
        given = read(self._built)
        return Plan({name: entry for name, entry in given.items() if name in found})

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
                "loss": self.loss if isinstance(self.loss, str) else _qualified(self.loss),
                "train": _qualified(self.train) if self.train else None,
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

    def rungs(self) -> frozenset[int]:
        """Return the epochs at which a pruner compares trials: an eighth, a quarter, a half."""
        if self.pruner == "none":
            return frozenset()
        return frozenset(-(-self.epochs // part) for part in (8, 4, 2)) - {self.epochs}

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
        with progress or suitable_progress() as shown, Interrupt(shown.message) as interrupt:
            return _Run(study, shown, interrupt).result()


class _Run:
    """One call of `optimize`."""

    def __init__(self, study: Study, shown: Progress, interrupt: Interrupt) -> None:
        self.study, self.shown, self.interrupt = study, shown, interrupt
        self.clockwork = Clockwork()
        self.fixed = study.space.fixed_plans(study.as_given())
        self.task = study.task(_all_kinds(study.space, self.fixed.values()))
        self.device = pick_device(study.device)
        self.fused = True

    def result(self) -> Result:
        """Run what is left to do and return the answer."""
        with Store(self.study.url) as store:
            self.store = store
            with self.clockwork("store"):
                self.study_id = self._open()
                store.interrupt_runs(self.study_id)
            with self.clockwork("search"):
                self.search = self._open_search()
            try:
                return self._search_and_confirm()
            finally:
                self.search.close()

    def _open(self) -> int:
        """Return the study's id in the store, new or the same as before."""
        study, definition = self.study, self.study.definition()
        stored = self.store.study(study.name)
        if stored is None:
            sites = [site.to_json() for site in study.space.sites]
            return self.store.create_study(study.name, definition, _environment(), sites)
        differs = [k for k, v in definition.items() if stored["definition"].get(k) != v]
        if differs:
            raise StudyError(
                f"study {study.name!r} is stored with another {', '.join(differs)}; put it back, "
                "or take a new name (--study NAME)"
            )
        return stored["id"]

    def _open_search(self) -> Search:
        study = self.study
        search = Search(
            study.url,
            study.name,
            study.space,
            direction="maximize" if study.maximizes else "minimize",
            sampler=study.sampler,
            pruner=study.pruner,
            seed=study.seed,
            epochs=study.epochs,
            rungs=sorted(study.rungs()),
            prepare_engine=prepare_engine,
        )
        for name, plan in self.fixed.items():
            search.enqueue(name, plan)
        return search

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
            deadline=self._deadline(),
            rungs=study.rungs(),
            best=self._best_value,
        )
        arms = self._arms()
        blocks = {n: block_seed(study.seed, n) for n in range(1, study.confirm_blocks + 1)}
        confirmed = loop.confirm(arms, blocks) if arms else 0
        finished_before = self.search.finished == before and not confirmed
        if finished_before:
            self.shown.message(
                f"study {study.name!r} is finished: {before} of {study.trials} trials, "
                f"{study.confirm_blocks} blocks of confirmation; for more, raise --trials or "
                "--confirm-blocks"
            )
        answer = self._answer(arms, list(blocks))
        with self.clockwork("store"):
            if confirmed or self.store.verdict(self.study_id) is None:
                self.store.save_verdict(self.study_id, self._row(answer))
        return replace(
            answer, finished_before=finished_before, seconds=dict(self.clockwork.seconds)
        )

    def _deadline(self) -> float | None:
        limit = seconds(self.study.time)
        if limit is None:
            return None
        trials = self.store.queries().trials(self.study.name)
        return time.monotonic() + limit - sum(trial["seconds"] or 0.0 for trial in trials)

    def _best_value(self) -> float | None:
        best = self.search.best()
        return best[2] if best else None

    def _make_trainer(self, slots: int | str) -> Trainer:
        study = self.study
        if study.train is not None:
            return FunctionTrainer(
                self.task, study.train, 1 if slots == "auto" else slots, self.device
            )
        if slots != "auto":
            kind = FusedTrainer if self.fused else SerialTrainer
            return kind(self.task, slots, self.device)
        trainer = choose(
            self.task,
            trainer=study.trainer,
            slots=study.slots,
            most=min(max(8, study.trials // 4), _WIDEST),
            device=self.device,
            say=self.shown.message,
        )
        self.fused = isinstance(trainer, FusedTrainer)
        return trainer

    # The answer

    def _arms(self) -> dict[str, Plan]:
        """Return what is confirmed: the controls, and the best plans of the search."""
        if self.study.confirm_blocks == 0 or self.search.best() is None:
            return {}
        arms = {name: self.fixed[name] for name in (CONTROL, AS_GIVEN) if name in self.fixed}
        chosen = self.search.finalists(self.study.finalists, exclude=arms.values())
        return arms | {f"finalist {i}": plan for i, (_, plan, _) in enumerate(chosen, 1)}

    def _answer(self, arms: Mapping[str, Plan], blocks: Sequence[int]) -> Result:
        study = self.study
        if not arms:
            best = self.search.best()
            verdict = Verdict("undecided", CONTROL, None, "undecided: nothing was confirmed")
            plan = best[1] if best else Plan.none()
            winner = {"trial": best[0], "value": best[2]} if best else None
            return Result(study.name, verdict, plan, study.objective, winner, None, None, None)
        runs = {
            (run["block"], Plan.from_json(run["plan"])): run
            for run in self.store.confirm_runs(self.study_id)
        }
        by_arm = {arm: [runs.get((block, plan)) for block in blocks] for arm, plan in arms.items()}
        values = {arm: [_final(run, study.objective) for run in by_arm[arm]] for arm in arms}
        verdict = decide(
            values,
            direction="maximize" if study.maximizes else "minimize",
            objective=study.objective,
            finalists=[arm for arm in arms if arm != CONTROL],
            unit="nats" if study.objective == "val_loss" and _is_nats(study.loss) else "",
        )
        searched = {plan: (n, value) for n, plan, value in self.search.finalists(10**9)}
        return Result(
            study.name,
            verdict,
            arms[verdict.arm],
            study.objective,
            _arm(verdict.arm, values, arms, searched),
            _arm(CONTROL, values, arms, searched),
            verdict.difference,
            _test(by_arm, verdict.arm),
        )

    def _row(self, answer: Result) -> dict[str, Any]:
        difference = answer.difference
        return {
            "verdict": answer.verdict.verdict,
            "text": str(answer.verdict),
            "plan": answer.plan.to_json(),
            "objective": answer.objective,
            "direction": "maximize" if self.study.maximizes else "minimize",
            "difference": difference.mean if difference else None,
            "low": difference.low if difference else None,
            "high": difference.high if difference else None,
            "p_value": difference.p_value if difference else None,
            "blocks": difference.n if difference else 0,
            "level": difference.level if difference else 0.95,
            "best": answer.best,
            "control": answer.control,
            "test": answer.test,
            "details": answer.verdict.details,
        }


def block_seed(seed: int, block: int) -> int:
    """Return the seed of a block; block 0 is the search's, the others confirm."""
    return derive(seed, "block", block) % 2**31


def seconds(limit: float | str | None) -> float | None:
    """Return a time budget in seconds.

    Args:
        limit: seconds, or text such as "90s", "10m", "1.5h"; None: no limit.

    Raises:
        StudyError: it is neither, or not above 0.
    """
    if limit is None:
        return None
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([smh]?)\s*", str(limit))
    value = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if value <= 0:
        raise StudyError(f"time {limit!r}: give seconds above 0, or text such as 90s, 10m, 2h")
    return value


def _all_kinds(space: Space, fixed: Any) -> dict[str, tuple[str, ...]]:
    """Return the kinds at each site: those of the space, and those that fixed plans use."""
    kinds = {site: list(names) for site, names in space.kinds.items()}
    for plan in fixed:
        for site, entry in plan.items():
            if entry.kind not in kinds[site]:
                kinds[site].append(entry.kind)
    return {site: tuple(names) for site, names in kinds.items()}


def _final(run: Mapping[str, Any] | None, objective: str) -> float:
    """Return the objective at a run's last epoch; NaN if it diverged or was not run."""
    if run is None or run["state"] != "complete":
        return float("nan")
    value = (run["metrics"] or {}).get(objective)
    return float("nan") if value is None else value


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if value == value]
    return fmean(finite) if finite else None


def _arm(
    arm: str,
    values: Mapping[str, Sequence[float]],
    arms: Mapping[str, Plan],
    searched: Mapping[Plan, tuple[int, float]],
) -> dict[str, Any]:
    trial, lucky = searched.get(arms[arm], (None, None))
    return {"arm": arm, "value": _mean(values[arm]), "trial": trial, "search_value": lucky}


def _test(
    by_arm: Mapping[str, Sequence[Mapping[str, Any] | None]], winner: str
) -> dict[str, Any] | None:
    """Return the means on the test split of winner and control, and their difference."""
    tests = {
        arm: [(run or {}).get("test") or {} for run in by_arm[arm]]
        for arm in dict.fromkeys((winner, CONTROL))
    }
    names = list(dict.fromkeys(name for scores in tests[CONTROL] for name in scores))
    if not names:
        return None
    nan = float("nan")
    result: dict[str, Any] = {}
    for name in names:
        columns = {arm: [s.get(name, nan) for s in scores] for arm, scores in tests.items()}
        entry: dict[str, Any] = {"best": _mean(columns[winner]), "control": _mean(columns[CONTROL])}
        if winner != CONTROL:
            difference = paired_difference(columns[winner], columns[CONTROL])
            entry["difference"] = {**asdict(difference)}
        result[name] = entry
    return result


def _is_nats(loss: Any) -> bool:
    return loss in ("cross_entropy", "binary_cross_entropy")


def _qualified(function: Any) -> str:
    module = getattr(function, "__module__", "?")
    return f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def _environment() -> dict[str, Any]:
    packages = ("droptune", "torch", "optuna", "sqlalchemy", "numpy")
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:
            found[package] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        **found,
    }
