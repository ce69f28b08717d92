"""One call of `Study.optimize`: open the store, search, confirm, judge."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from droptune import settings
from droptune.answer import Result, confirmed, unconfirmed
from droptune.confirmation import Confirmation, make_arms
from droptune.definition import all_kinds, check_same, environment
from droptune.design import Outcome
from droptune.errors import StudyError
from droptune.kinds import derive
from droptune.loop import Loop
from droptune.progress import Progress
from droptune.search import Search
from droptune.space import AS_GIVEN, CONTROL
from droptune.store import Store, prepare_engine
from droptune.trainers import (
    FunctionTrainer,
    FusedTrainer,
    SerialTrainer,
    Trainer,
    choose,
    metric_names,
    pick_device,
)
from droptune.verdict import Rules
from droptune.watch import Clockwork, Interrupt

if TYPE_CHECKING:
    from droptune.study import Study

#: The most members that train at once unless told otherwise. More fit, but a sampler that is
#: asked for many plans before the first result comes back learns nothing on the way.
_WIDEST = 64


class Optimization:
    """One call of `optimize`."""

    def __init__(self, study: "Study", shown: Progress, interrupt: Interrupt) -> None:
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
        for remark in self.study.remarks():
            self.shown.message(remark)
        if unused := self.study.space.unused_kinds:
            self.shown.message(
                f"not tried, for they fit all sites of no role: {', '.join(unused)} "
                "(`droptune sites` lists what fits)"
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
        confirmation = self._confirmation()
        trained = loop.confirm(confirmation.blocks(), lambda n: block_seed(study.seed, n))
        finished_before = self.search.finished == before and not trained
        answer = self._answer(confirmation)
        with self.clockwork("store"):
            self._save(answer)
        if finished_before:
            self.shown.message(self._finished(before, confirmation.outcome()))
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

    def _confirmation(self) -> Confirmation:
        """Return the confirmation that goes on, or a new one of what the search found."""
        study, search = self.study, self.search
        controls = [self.fixed[name] for name in (CONTROL, AS_GIVEN) if name in self.fixed]
        finalists = search.finalists(study.finalists, exclude=controls)
        arms = {} if search.best() is None else make_arms(self.fixed, finalists, search.first)
        rules = Rules(
            study.objective, self.direction, study.confirm_blocks, study.level, study.margin
        )
        found = Confirmation(self.store, self.study_id, arms, rules, self.clockwork)
        if found.design is not None and (change := found.design.differs(rules)):
            self.shown.message(change)
        return found

    def _answer(self, confirmation: Confirmation) -> Result:
        """Return what the stored runs say; blocks beyond those asked for count too."""
        study, outcome = self.study, confirmation.outcome()
        if outcome is None:
            return unconfirmed(
                study.name, study.objective, self.search.best(), self._why_unconfirmed()
            )
        return confirmed(study.name, outcome, "nats" if _is_in_nats(study) else "")

    def _save(self, answer: Result) -> None:
        """Store the verdict unless it is stored; a death may have come in before."""
        row = answer.to_row(self.direction)
        stored = self.store.verdict(self.study_id) or {}
        if any(stored.get(key, "missing") != value for key, value in row.items()):
            self.store.save_verdict(self.study_id, row)

    def _why_unconfirmed(self) -> str:
        if self.study.confirm_blocks and len(self.search.finalists(2)) == 1:
            return "no plan but one was tried, there is nothing to compare; raise --trials"
        if self.search.best() is not None:
            return "nothing was confirmed; set confirm_blocks (--confirm-blocks) to 2 or more"
        counts = self.search.counts()
        return (
            f"no trial was complete ({counts.failed} failed, {counts.pruned} pruned); "
            f"`droptune show --study {self.study.name} --trial 0` says why, or give more time"
        )

    def _finished(self, trials: int, outcome: Outcome | None) -> str:
        """Return the line that says that nothing was left to do, and what would change it."""
        study = self.study
        more = "raise --trials"
        if outcome is None or not outcome.judge().settled:
            more = "raise --trials or --confirm-blocks"
        if trials < study.trials:
            more = "raise --time" if study.time is not None else "its grid has no further plan"
        blocks = len(outcome.blocks) if outcome is not None else 0
        return (
            f"study {study.name!r} is finished: {trials} of {study.trials} trials, "
            f"{blocks} blocks of confirmation; for more: {more}"
        )


def block_seed(seed: int, block: int) -> int:
    """Return the seed of a block; block 0 is the search's, the others confirm."""
    return derive(seed, "block", block) % 2**31


def _is_in_nats(study: "Study") -> bool:
    """Tell whether the objective is a loss of droptune's own training, in nats."""
    own = study.train is None and study.objective == "val_loss"
    return own and study.loss in ("cross_entropy", "binary_cross_entropy")
