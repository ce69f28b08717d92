"""One call of `Study.optimize`: open the store, search, confirm, judge."""

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from droptune import settings
from droptune.answer import Result, confirmed, unconfirmed
from droptune.checkpoints import Checkpoints
from droptune.confirmation import Confirmation, make_arms, merged
from droptune.definition import all_kinds, check_same, environment
from droptune.design import Block, Outcome
from droptune.dispatch import Desk
from droptune.hang import Watchdog
from droptune.keeping import Keeping
from droptune.kinds import derive
from droptune.lease import Lease
from droptune.loop import Loop
from droptune.population import Population
from droptune.progress import Progress
from droptune.retry import again
from droptune.search import PAIRED, Search
from droptune.space import AS_GIVEN, CONTROL
from droptune.store import Store, Verdicts, default_folder, driver_url, prepare_engine
from droptune.trainers import (
    FunctionTrainer,
    FusedTrainer,
    SerialTrainer,
    Trainer,
    check_metrics,
    choose,
    gpu_share,
    make_own,
    pick_device,
)
from droptune.verdict import Rules
from droptune.warm import new_seeds, stored_seeds
from droptune.watch import Clockwork, Idle, Interrupt

if TYPE_CHECKING:
    from droptune.study import Study

#: The most members that train at once unless told otherwise. More fit, but a sampler that is
#: asked for many plans before the first result comes back learns nothing on the way.
_WIDEST = 64
#: Members of a population that is not trained fused, unless told otherwise: two make a fifth.
_COMPANY = 10


class Optimization:
    """One call of `optimize`."""

    def __init__(
        self,
        study: "Study",
        shown: Progress,
        interrupt: Interrupt,
        waits: float = True,
        on_hang: Callable[[], object] | None = None,
    ) -> None:
        self.study, self.shown, self.interrupt, self.waits = study, shown, interrupt, waits
        self.on_hang = on_hang
        self.clockwork = Clockwork()
        self.fixed = study.space.fixed_plans(study.as_given())
        self.kinds = all_kinds(study.space, self.fixed.values())
        self.task = study.task(self.kinds)
        self.definition = study.definition()
        self.device = pick_device(study.device)
        #: The trainer to use; None: not known before it is measured.
        self.kind = {"serial": SerialTrainer, "fused": FusedTrainer}.get(str(study.trainer))
        #: Number of the block whose predecessors' verdict is stored.
        self._next_block: int | None = None
        if study.trained_here:
            check_metrics(self.task)

    def result(self) -> Result:
        """Run what is left to do and return the answer."""
        study = self.study
        for remark in study.remarks():
            self.shown.message(remark)
        if study.gpu_memory is not None and self.device.type != "cuda":
            said = f"gpu_memory {study.gpu_memory} has no effect on {self.device}"
            self.shown.message(f"{said}, only on CUDA's devices")
        if unused := study.space.unused_kinds:
            self.shown.message(
                f"not tried, for they fit all sites of no role: {', '.join(unused)} "
                "(`droptune sites` lists what fits)"
            )
        with (
            gpu_share(self.device, study.gpu_memory),
            Store(study.url) as store,
            Lease(store, str(self.device)) as lease,
        ):
            self.store, self.shown = store, lease.shown(self.shown)
            again(lambda _repeated: self._open(lease))
            hangs = settings.seconds(study.hang_time, "hang_time") or 0.0
            try:
                with Watchdog(self.clockwork, hangs, partial(self._hung, lease)):
                    return self._search_and_confirm(lease)
            finally:
                self.search.close()

    def _hung(self, lease: Lease, said: str) -> None:
        """Say where training hangs; end this worker if whoever called wishes so."""
        if self.on_hang is None:
            return self.shown.message(said)
        self.shown.message(f"{said}; this worker ends, another one or the same command goes on")
        lease.give_up(said)
        return self.on_hang()

    def _open(self, lease: Lease) -> None:
        """Make or open the study; other workers of it do so before or after."""
        with self.clockwork("store"), self.store.exclusive(self.study.name):
            self._open_alone(lease)

    def _open_alone(self, lease: Lease) -> None:
        stored = self.store.study(self.study.name)
        self._seed(stored)
        if stored is not None:
            check_same(self.study.name, stored["definition"], self.definition)
        # Refuses what it cannot do before anything is stored.
        with self.store.alone():
            self.search = self._open_search(stored)
        try:
            self.study_id = lease.study_id = self._record(stored)
            lease.beat()
        except BaseException:
            self.search.close()
            raise

    def _seed(self, stored: Mapping[str, Any] | None) -> None:
        """Add the plans of earlier studies to what is tried first, and to the definition."""
        study, asked = self.study, self.study.warm_start
        if stored is None:
            model, queries = self.definition["model"], self.store.queries()
            seeds = new_seeds(study.name, study.space, model, asked, queries)
        else:
            seeds = stored_seeds(study.name, stored["definition"], asked)
        for note in seeds.notes:
            self.shown.message(note)
        self.fixed |= {n: p for n, p in seeds.plans.items() if p not in self.fixed.values()}
        self.kinds = all_kinds(study.space, self.fixed.values())
        self.task = study.task(self.kinds)
        self.definition |= seeds.definition()

    def _open_search(self, stored: Mapping[str, Any] | None) -> Search:
        study = self.study
        return Search(
            driver_url(study.url),
            study.name,
            study.space,
            direction=study.directions,
            sampler=study.sampler,
            pruner=study.pruner,
            seed=study.seed,
            epochs=study.epochs,
            rungs=sorted(settings.rungs(study.epochs, study.pruner)),
            curves=self._curves,
            prepare_engine=partial(prepare_engine, url=study.url),
            patience=study.patience,
        )

    def _curves(self, trials: Collection[int] | None) -> Mapping[int, Sequence[float]]:
        """Return trial -> the first objective by epoch, of those that ended (None: of all)."""
        stored = self.store.study(self.study.name) if self.study.pruner == PAIRED else None
        if stored is None:
            return {}
        return self.store.search_curves(stored["id"], self.study.objectives[0], trials)

    def _record(self, stored: Mapping[str, Any] | None) -> int:
        """Make the store ready for runs; return the study's id in it."""
        if stored is None:
            sites = [site.to_json() for site in self.study.space.sites]
            study_id = self.store.create_study(
                self.study.name, self.definition, environment(), sites
            )
        else:
            study_id = stored["id"]
        for name, plan in self.fixed.items():
            self.search.enqueue(name, plan)
        return study_id

    def _search_and_confirm(self, lease: Lease) -> Result:
        study = self.study
        desk = Desk(self.store, self.study_id, study.name, self.clockwork)
        loop = Loop(
            self.study_id,
            self.store,
            desk,
            study.objectives,
            study.epochs,
            self._make_trainer,
            self.shown,
            self.interrupt,
            self.clockwork,
            Idle(self.waits),
            self._keeping(lease),
            folds=study.data.blocks if study.data is not None else 1,
            unit=_unit(study, study.objectives[0]),
            longest=settings.seconds(study.trial_time, "trial_time"),
        )
        before = self.search.finished
        loop.search(
            self.search,
            block_seed(study.seed, 0),
            trials=study.trials,
            seconds=settings.seconds(study.time),
            rungs=settings.rungs(study.epochs, study.pruner),
            population=self._population(),
        )
        if before < self.search.finished < study.trials and (said := self._impatient()):
            self.shown.message(said)
        with desk.alone():
            self.search.sync()
            found = [self._confirmation(index) for index in range(len(study.objectives))]
        trained = loop.confirm(
            partial(self._wanted, found),
            lambda number: block_seed(study.seed, number),
        )
        finished_before = self.search.finished == before and not trained
        outcomes = [confirmation.outcome() for confirmation in found]
        answers = self._answers(outcomes)
        with desk.alone():
            self._save(answers)
            fits = self.store.control_fit(self.study_id)
            if not self.search.counts().running:
                loop.keeping.clear(f"{self.study_id}-")
        if finished_before:
            self.shown.message(self._finished(before, outcomes))
        first, *rest = (replace(answer, fit=fits) for answer in answers)
        return replace(
            first,
            others={answer.objective: answer for answer in rest},
            finished_before=finished_before,
            seconds=dict(self.clockwork.seconds),
        )

    def _keeping(self, lease: Lease) -> Keeping:
        """Return where this worker keeps the states of what it trains."""
        checkpoints = Checkpoints(default_folder(self.study.url))
        # The numbers come again in a database that is made anew, or put back from a copy.
        name = f"{self.study_id}-{lease.worker}-{secrets.token_hex(4)}"
        return Keeping(checkpoints, name, self.shown.message)

    def _population(self) -> Population | None:
        study = self.study
        if study.strategy != "pbt":
            return None
        return Population(study.epochs, study.directions[0], study.seed)

    def _company(self) -> int:
        """Return how many members at once suit the search."""
        population, trials = self._population(), self.study.trials
        return max(8, trials // 4) if population is None else population.size(trials)

    def _make_trainer(self, most: int | None, block: int = 0) -> Trainer:
        """Return a trainer of at most so many slots (None: as suit the search) for a block."""
        study = self.study
        task = study.task(self.kinds, block) if block else self.task
        own = None if study.slots == "auto" else study.slots
        if not study.trained_here or self.kind is SerialTrainer:
            # Members that take turns only take memory, but a population needs company.
            alone = 1 if isinstance(study.trainer, str) else None
            own = own or (alone if study.strategy != "pbt" else _COMPANY)
        slots = min((n for n in (own, most) if n is not None), default=None)
        if study.train is not None:
            return FunctionTrainer(task, study.train, slots, self.device)
        if not study.trained_here:
            return make_own(study.trainer, task, slots, self.device)
        if self.kind is not None and slots is not None:
            return self.kind(task, slots, self.device)
        trainer = choose(
            task,
            trainer=study.trainer,
            slots=slots or "auto",
            most=min(self._company(), _WIDEST),
            device=self.device,
            say=self.shown.message,
        )
        self.kind = type(trainer)
        if self.kind is SerialTrainer and own is None and study.strategy == "pbt":
            return self._make_trainer(most)  # with company
        return trainer

    # The answer

    def _confirmation(self, index: int) -> Confirmation:
        """Return the confirmation that goes on, or a new one of what the search found.

        Args:
            index: position of the objective that it is about.
        """
        study, search = self.study, self.search
        controls = [self.fixed[name] for name in (CONTROL, AS_GIVEN) if name in self.fixed]
        # The best first; where training is tuned there are more of them than one.
        bare = [trial for trial in search.ranked(10**9, objective=index) if not trial[1]]
        excluded = [*controls, *(plan for _, plan, _ in bare)]
        finalists = search.finalists(study.finalists, excluded, index)
        tuned = bare[0] if bare and bare[0][1] not in controls else None
        arms = {}
        if search.best() is not None:
            first = partial(search.first, objective=index)
            arms = make_arms(self.fixed, finalists, first, tuned)
        rules = Rules(
            study.objectives[index],
            study.directions[index],
            study.confirm_blocks,
            study.level,
            study.margin,
            together=len(study.objectives),
        )
        found = Confirmation(self.store, self.study_id, arms, rules, self.clockwork)
        if not index and found.design is not None and (change := found.design.differs(rules)):
            self.shown.message(change)
        return found

    def _wanted(self, found: Sequence[Confirmation], ahead: int) -> list[Block]:
        """Return the blocks to train next, see `Confirmation.wanted`.

        What those before them say is stored, so that it is known while the next ones train, and
        if nobody ever trains them; without the test split, which is for the end.
        """
        blocks = merged(confirmation.wanted(ahead) for confirmation in found)
        if blocks and blocks[0].number != self._next_block:
            self._next_block = blocks[0].number
            outcomes = [confirmation.outcome() for confirmation in found]
            current = [None if one is None else one.design for one in outcomes]
            if current == [confirmation.design for confirmation in found]:
                self._save([answer.so_far() for answer in self._answers(outcomes)])
        return blocks

    def _answers(self, outcomes: Sequence[Outcome | None]) -> list[Result]:
        """Return the answer on each objective."""
        return [self._answer(index, outcome) for index, outcome in enumerate(outcomes)]

    def _answer(self, index: int, outcome: Outcome | None) -> Result:
        """Return what the stored runs say; blocks beyond those asked for count too."""
        study, objective = self.study, self.study.objectives[index]
        if outcome is None:
            best = self.search.best(index)
            return unconfirmed(study.name, objective, best, self._why_unconfirmed())
        others = [name for name in study.objectives if name != objective]
        return confirmed(study.name, outcome, _unit(study, objective), _caveat(study), others)

    def _save(self, answers: Sequence[Result]) -> None:
        """Store the verdicts that are not stored; a death may have come in before."""
        verdicts = Verdicts(self.store, self.study_id)
        for answer, direction in zip(answers, self.study.directions, strict=True):
            verdicts.save(answer.to_row(direction))

    def _why_unconfirmed(self) -> str:
        if self.study.confirm_blocks and len(self.search.ranked(2)) == 1:
            if failed := self.search.counts().failed:
                return (
                    f"no plan but one could be trained, {failed} failed; `droptune show --study "
                    f"{self.study.name} --trial N` says why"
                )
            return "no plan but one was tried, there is nothing to compare; raise --trials"
        if self.search.best() is not None:
            return "nothing was confirmed; set confirm_blocks (--confirm-blocks) to 2 or more"
        counts = self.search.counts()
        return (
            f"no trial was complete ({counts.failed} failed, {counts.pruned} pruned); "
            f"`droptune show --study {self.study.name} --trial 0` says why, or give more time"
        )

    def _finished(self, trials: int, outcomes: Sequence[Outcome | None]) -> str:
        """Return the line that says that nothing was left to do, and what would change it."""
        study = self.study
        more = "raise --trials"
        settled = all(one is not None and one.judge().settled for one in outcomes)
        blocks = max(len(one.blocks) if one is not None else 0 for one in outcomes)
        if not settled:
            above = f" above {blocks}" if blocks > study.confirm_blocks else ""
            more = f"raise --trials or --confirm-blocks{above}"
        if trials < study.trials:
            more = "raise --time" if study.time is not None else "its grid has no further plan"
            more = "raise --patience, or set it to 0" if self._impatient() else more
        of = f" of {study.trials}" if trials <= study.trials else ""  # it had more before
        return (
            f"study {study.name!r} is finished: {trials}{of} trials, "
            f"{blocks} blocks of confirmation; for more: {more}"
        )

    def _impatient(self) -> str | None:
        """Return the line that says that patience has ended the search, if it has."""
        ahead = self.search.outlook()
        if ahead is None or not ahead.over:
            return None
        unit = _unit(self.study, self.study.objectives[0])
        return (
            f"the search ends at {self.search.finished} of {self.study.trials} trials: "
            f"{ahead.line(unit)}, too little for a confirmation to tell "
            f"(one result varies by {ahead.noise:.2g}); to go on raise --patience, or set it to 0"
        )


def block_seed(seed: int, block: int) -> int:
    """Return the seed of a block; block 0 is the search's, the others confirm."""
    return derive(seed, "block", block) % 2**31


def _caveat(study: "Study") -> str | None:
    """Return what the verdict's interval leaves out: that folds share training rows."""
    if study.data is None or study.data.blocks == 1:
        return None
    return (
        f"{study.data.blocks} folds share training rows, so the interval is narrower than over "
        "fresh data"
    )


def _unit(study: "Study", objective: str) -> str:
    """Return "nats" if an objective is a cross-entropy of droptune's own training."""
    own = study.trained_here and objective == "val_loss"
    return "nats" if own and study.loss in ("cross_entropy", "binary_cross_entropy") else ""
