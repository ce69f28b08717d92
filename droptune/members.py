"""The members that train now: on the trainer, and as runs in the store."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from droptune import gap
from droptune.errors import StudyError, TrainingError
from droptune.plan import Plan
from droptune.search import Asked
from droptune.space import CONTROL
from droptune.store import Store
from droptune.trainers import Scores, Trainer, is_out_of_memory
from droptune.watch import Clockwork

#: At most so many slots (None: as suits), block -> a trainer.
MakeTrainer = Callable[[int | None, int], Trainer]


@dataclass
class Member:
    """A run that trains now.

    Attributes:
        run: id in the store.
        plan: what it trains.
        arm: "trial", or the name of the plan.
        asked: its trial; None in confirmation.
        clock: of the block, when it entered.
        epochs: how many it has trained.
        seconds: how long that took.
        metrics: of its last epoch.
    """

    run: int
    plan: Plan
    arm: str
    asked: Asked | None = None
    clock: int = 0
    epochs: int = 0
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass
class End:
    """How a member ends: its state in the store, and the objectives if it is complete."""

    slot: int
    state: str
    values: Sequence[float] | None = None
    message: str | None = None
    test: Mapping[str, float] | None = None
    reliability: list[list[float]] | None = None


class Members:
    """Trains members side by side, block after block, and keeps the record of their runs.

    When memory runs out, all members are lost and the trainer is made anew with half the
    slots; `lost` then holds what has to start again.

    Args:
        store: where runs and curves go.
        study_id: in the store.
        phase: "search" or "confirm"; the test split is read in "confirm" alone.
        objectives: the metrics that decide.
        epochs: length of a run.
        make_trainer: makes trainers.
        folds: how many blocks differ in their rows; each needs a trainer of its own.
        most: slots that are of use; None: as many as suit.
        clockwork: where time is counted.
        say: is given a line when memory runs out, and on how the control fits.

    Attributes:
        seconds: of training so far, of all members together.
        lost: members that have to start again; whoever starts them clears it.
    """

    def __init__(
        self,
        store: Store,
        study_id: int,
        *,
        phase: str,
        objectives: Sequence[str],
        epochs: int,
        make_trainer: MakeTrainer,
        folds: int,
        most: int | None,
        clockwork: Clockwork,
        say: Callable[[str], object],
    ) -> None:
        self._store, self._study_id, self._phase = store, study_id, phase
        self._objectives, self._epochs = objectives, epochs
        self._make_trainer, self._clockwork, self._say = make_trainer, clockwork, say
        self._folds, self._block = folds, 0
        self._slots: dict[int, Member] = {}
        self.lost: list[Member] = []
        self.seconds = 0.0
        with clockwork("training"):
            self._trainer: Trainer = make_trainer(most, 0)

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[int]:
        """Yield the slots that are taken."""
        return iter(self._slots)

    def __getitem__(self, slot: int) -> Member:
        return self._slots[slot]

    @property
    def free(self) -> bool:
        """Whether there is a slot for one more member."""
        return len(self) < self._trainer.slots

    @property
    def ages(self) -> list[int]:
        """How many epochs each member has trained."""
        return [member.epochs for member in self._slots.values()]

    def begin(self, seed: int, block: int) -> None:
        """Start a block at clock 0; there must be no members."""
        other_rows = (block - self._block) % self._folds
        self._seed, self._block = seed, block
        with self._clockwork("training"):
            if other_rows:
                slots = self._trainer.slots
                del self._trainer  # its memory is needed
                self._trainer = self._make_trainer(slots, block)
            self._trainer.begin(seed)

    def start(self, plan: Plan, arm: str, asked: Asked | None = None) -> None:
        """Put a new member into a free slot, and its run into the store."""
        slot, clock = self._free_slot(), self._trainer.clock
        run = self._start_run(slot, plan, arm, asked, clock)
        self._slots[slot] = Member(run, plan, arm, asked, clock)
        self._call("start", slot, plan)

    def fork(self, source: int, asked: Asked) -> None:
        """Put a copy of a member into a free slot, to train on by the plan of another trial.

        Its run has the epochs of the other, for they are those of its plan.
        """
        slot, twin = self._free_slot(), self._slots[source]
        arm = asked.name or "trial"
        with self._clockwork("store"), self._store.transaction():
            run = self._start_run(slot, asked.plan, arm, asked, twin.clock)
            self._store.copy_curve(twin.run, run)
        self._slots[slot] = Member(run, asked.plan, arm, asked, twin.clock, twin.epochs)
        self._call("copy", source, slot, asked.plan)

    def _free_slot(self) -> int:
        return next(s for s in range(self._trainer.slots) if s not in self._slots)

    def epoch(self) -> tuple[Mapping[int, Scores], list[End]]:
        """Train all members for an epoch; nothing is stored before `record`.

        Returns:
            the scores by slot, none if memory ran out; and the ends of those members that
            have diverged or are complete.

        Raises:
            StudyError: an objective is not among the metrics.
            TrainingError: memory ran out with a single slot.
        """
        scores = self._call("epoch") or {}
        ends = [end for slot, score in scores.items() if (end := self._judged(slot, score))]
        if not all(self._fit(end.slot, scores) for end in ends if end.state == "complete"):
            return {}, []
        if self._phase == "confirm" and any(end.state == "complete" for end in ends):
            tests = self._call("test")
            if tests is None:
                return {}, []
            for end in ends:
                end.test = tests.get(end.slot)
                if end.state == "complete":
                    end.reliability = self._call("reliability", end.slot)
                    if end.reliability is None:
                        return {}, []
        return scores, ends

    def record(self, scores: Mapping[int, Scores], ends: Sequence[End]) -> list[Member]:
        """Store an epoch and its ends in one transaction, and free the slots that ended.

        Returns:
            the members that ended, in the order of `ends`.
        """
        bins = {end.slot: {"reliability": end.reliability} for end in ends if end.reliability}
        rows = [
            (
                self[slot].run,
                self[slot].epochs,
                score.train_loss,
                score.metrics | bins.get(slot, {}),
            )
            for slot, score in scores.items()
        ]

        # The bins stand beside the metrics of the last epoch, the only JSON that a curve has.
        def write() -> None:
            self._store.record(rows)
            for end in ends:
                self._end_run(self[end.slot], end.state, end.message, end.test)

        with self._clockwork("store"):
            self._store.write(write)
        for end in ends:
            self._trainer.stop(end.slot)
        return [self._slots.pop(end.slot) for end in ends]

    def interrupt(self) -> None:
        """Store that all members were interrupted, and drop them."""

        def write() -> None:
            for member in self._slots.values():
                self._end_run(member, "interrupted")

        with self._clockwork("store"):
            self._store.write(write)
        self._slots.clear()

    def _start_run(self, slot: int, plan: Plan, arm: str, asked: Asked | None, clock: int) -> int:
        with self._clockwork("store"):
            return self._store.start_run(
                self._study_id,
                phase=self._phase,
                arm=arm,
                plan=plan.to_json(),
                seed=self._seed,
                block=self._block,
                clock=clock,
                slot=slot,
                trainer=self._trainer.name,
                device=str(self._trainer.device),
                trial_number=asked.number if asked else None,
            )

    def _end_run(
        self,
        member: Member,
        state: str,
        message: str | None = None,
        test: Mapping[str, float] | None = None,
    ) -> None:
        self._store.end_run(
            member.run,
            state,
            seconds=member.seconds,
            epochs=member.epochs,
            message=message,
            test=test,
        )

    def _judged(self, slot: int, score: Scores) -> End | None:
        """Count a member's epoch; return its end if it has diverged or is complete."""
        member = self[slot]
        member.epochs += 1
        member.seconds += score.seconds
        member.metrics = score.metrics
        self.seconds += score.seconds
        if score.failed:
            return End(slot, "failed", message=f"{score.failed} at epoch {member.epochs}")
        if missing := [name for name in self._objectives if name not in score.metrics]:
            raise StudyError(
                f"objective {missing[0]!r} is not among the metrics "
                f"({', '.join(score.metrics) or 'none'}); choose one of them"
            )
        if member.epochs >= self._epochs:
            return End(slot, "complete", [score.metrics[name] for name in self._objectives])
        return None

    def _fit(self, slot: int, scores: Mapping[int, Scores]) -> bool:
        """Add to the control's scores how it fits; return False if memory ran out."""
        if self._phase != "search" or self[slot].arm != CONTROL:
            return True
        found = self._call("fit", slot)
        if found is None:
            return False
        scores[slot].metrics.update(found)
        if fits := gap.fit(scores[slot].metrics):
            self._say(gap.sentence(fits))
        return True

    def _call(self, method: str, *args: Any) -> Any:
        """Return what the trainer's method returns, or None if memory ran out."""
        try:
            with self._clockwork("training"):
                return getattr(self._trainer, method)(*args)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if self._trainer.slots == 1:
                raise TrainingError(
                    "out of memory with one member at a time; take a smaller batch_size or "
                    "model, or another device"
                ) from error
        self._narrow()  # here, where no traceback holds on to the old trainer's tensors
        return None

    def _narrow(self) -> None:
        """Make the trainer anew with half the slots, at the same clock of the same block."""
        before, clock = self._trainer.slots, self._trainer.clock
        self.lost += self._slots.values()
        self.interrupt()
        del self._trainer  # its memory is needed
        self._say(f"out of memory at {before} members at once; goes on with {before // 2}")
        with self._clockwork("training"):
            self._trainer = self._make_trainer(before // 2, self._block)
            self._trainer.begin(self._seed, clock)
