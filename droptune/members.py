"""The members that train now: on the trainer, and as runs in the store."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from droptune import gap
from droptune.errors import StudyError
from droptune.keeping import Keeping
from droptune.member import End, Member, key_of, too_long
from droptune.plan import Plan
from droptune.room import NO_ROOM, check_room, no_room_at_all
from droptune.search import Asked
from droptune.space import CONTROL
from droptune.store import Claims, Store
from droptune.trainers import (
    Scores,
    Trainer,
    is_out_of_memory,
    release_memory,
    saved_by,
)
from droptune.watch import Clockwork

#: At most so many slots (None: as suits), block -> a trainer.
MakeTrainer = Callable[[int | None, int], Trainer]


class Members:
    """Trains members side by side, block after block, and keeps the record of their runs.

    When memory runs out, all members are handed back and the trainer is made anew with half the
    slots; with one slot the member has failed, for its plan does not fit.

    Args:
        store: where runs and curves go.
        study_id: in the store.
        phase: "search" or "confirm"; the test split is read in "confirm" alone.
        objectives: the metrics that decide.
        epochs: length of a run.
        make_trainer: makes trainers.
        folds: how many blocks differ in their rows; each needs a trainer of its own.
        most: slots that are of use; None: as many as suit.
        keeping: where states are kept; None: nowhere.
        longest: seconds after which a member is stopped; None: never.
        clockwork: where time is counted.
        say: is given a line when memory runs out, and on how the control fits.

    Attributes:
        seconds: of training so far, of all members together.
        gone: members that no longer train here, and have not ended; whoever sees them clears it.
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
        keeping: Keeping | None,
        longest: float | None,
        clockwork: Clockwork,
        say: Callable[[str], object],
    ) -> None:
        self._store, self._study_id, self._phase = store, study_id, phase
        self._objectives, self._epochs = objectives, epochs
        self._make_trainer, self._clockwork, self._say = make_trainer, clockwork, say
        self._folds, self._block = folds, 0
        self._keeping, self._claims = keeping, Claims(store, study_id)
        self._longest = math.inf if longest is None else longest
        self._slots: dict[int, Member] = {}
        self._entered: dict[int, Mapping[str, Any] | None] = {}
        self._refused: dict[int, End] = {}  # those whose plans do not fit
        self.gone: list[Member] = []
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
    def free(self) -> int:
        """How many more members there are slots for."""
        return self._trainer.slots - len(self)

    @property
    def trials(self) -> set[int]:
        """Numbers of the trials that train."""
        return {member.asked.number for member in self._slots.values() if member.asked}

    @property
    def ages(self) -> list[int]:
        """How many epochs each member has trained."""
        return [member.epochs for member in self._slots.values()]

    def begin(self, seed: int, block: int) -> None:
        """Start a block at clock 0; there must be no members."""
        other_rows = (block - self._block) % self._folds
        self._seed, self._block = seed, block
        if other_rows:
            self._make_anew(self._trainer.slots)
        with self._clockwork("training"):
            self._trainer.begin(seed)

    def enter(
        self,
        plan: Plan,
        arm: str,
        asked: Asked | None = None,
        before: Mapping[str, Any] | None = None,
    ) -> None:
        """Claim a run of a plan for a free slot; `start` begins to train it.

        Args:
            plan: to train.
            arm: its name, or "trial".
            asked: its trial; None in confirmation.
            before: the run that it goes on from, which has a checkpoint; None: it begins.

        Raises:
            Taken: another worker trains it, or has trained it, meanwhile.
        """
        slot, clock = self._free_slot(), self._trainer.clock
        if before is not None:
            slot = before["slot"] if before["slot"] in self._free_slots() else slot
            clock = before["clock"]
        run = self._start_run(slot, plan, arm, asked, clock)
        self._slots[slot] = Member(run, plan, arm, asked, clock, key_of(asked, self._block, arm))
        self._entered[slot] = before
        if before is not None:  # should this worker die before it has kept anything
            self._claims.keep([run], before["checkpoint"]["name"])

    @property
    def restoring(self) -> bool:
        """Whether some have entered that go on from states that were kept."""
        return any(before is not None for before in self._entered.values())

    def start(self) -> Mapping[int, int]:
        """Begin to train what has entered: from the states that were kept, or from the start.

        Returns:
            slot -> epochs that its member has behind it, of those that go on.
        """
        entered, self._entered = self._entered, {}
        kept = {slot: before for slot, before in entered.items() if before is not None}
        going = self._restore(kept) if kept else {}
        for slot in entered:
            if slot in self._slots and slot not in kept:
                self._call("start", slot, self._slots[slot].plan)
        return going

    def fork(self, source: int, asked: Asked) -> None:
        """Put a copy of a member into a free slot, to train on by the plan of another trial.

        Its run has the epochs of the other, for they are those of its plan.
        """
        slot, twin = self._free_slot(), self._slots[source]
        arm = asked.name or "trial"

        def write() -> int:
            run = self._start_run(slot, asked.plan, arm, asked, twin.clock)
            self._store.copy_curve(twin.run, run)
            return run

        with self._clockwork("store"):
            run = self._store.write(write)
        key = key_of(asked, self._block, arm)
        self._slots[slot] = Member(run, asked.plan, arm, asked, twin.clock, key, twin.epochs)
        self._call("copy", source, slot, asked.plan)

    def _free_slots(self) -> list[int]:
        return [slot for slot in range(self._trainer.slots) if slot not in self._slots]

    def _free_slot(self) -> int:
        return self._free_slots()[0]

    def epoch(self) -> tuple[Mapping[int, Scores], list[End]]:
        """Train all members for an epoch; nothing is stored before `record`.

        Returns:
            the scores by slot, none if memory ran out; and the ends of those members that
            have diverged or are complete, or do not fit.

        Raises:
            StudyError: an objective is not among the metrics, or no dropout takes too long.
            TrainingError: memory ran out with a single slot, and no dropout does not fit.
        """
        scores, ends = ({}, []) if self._refused else self._trained()
        return ({}, [*self._refused.values()]) if self._refused else (scores, ends)

    def _trained(self) -> tuple[Mapping[int, Scores], list[End]]:
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

    def record(self, scores: Mapping[int, Scores], ends: Sequence[End]) -> list[tuple[Member, End]]:
        """Store an epoch and its ends in one transaction, and free the slots that ended.

        Of members whose runs were taken by another worker, for this one was thought dead,
        nothing is stored; they are `gone`.

        Returns:
            the members that ended, each with its end.
        """
        bins = {end.slot: {"reliability": end.reliability} for end in ends if end.reliability}
        states = {self[end.slot].run: end.state for end in ends}

        # The bins stand beside the metrics of the last epoch, the only JSON that a curve has.
        def write() -> set[int]:
            held = self._claims.held((member.run for member in self._slots.values()), states)
            rows = [
                (run, self[slot].epochs, score.train_loss, score.metrics | bins.get(slot, {}))
                for slot, score in scores.items()
                if (run := self[slot].run) in held
            ]
            self._store.record(rows)
            cost = [(m.run, m.epochs, m.seconds) for m in self._slots.values() if m.run in held]
            self._claims.progress(cost)
            for end in ends:
                if self[end.slot].run in held:
                    self._end_run(self[end.slot], end.state, message=end.message, test=end.test)
            return held

        with self._clockwork("store"):
            held = self._store.write(write)
        taken = [slot for slot, member in self._slots.items() if member.run not in held]
        for slot in taken:
            self._vacate(slot)
            self.gone.append(self._slots.pop(slot))
        if taken:
            self._say(
                f"{len(taken)} runs were taken over by another worker, for which this one had "
                f"given no sign of life; it goes on with {len(self._slots)}"
            )
        stored = [end for end in ends if end.slot in self._slots]
        for end in stored:
            self._vacate(end.slot)
        return [(self._slots.pop(end.slot), end) for end in stored]

    def _vacate(self, slot: int) -> None:
        if self._refused.pop(slot, None) is None:  # else it is not in the trainer
            self._trainer.stop(slot)

    def interrupt(self) -> None:
        """Hand all members back: whoever claims them next goes on from where they are kept."""

        def write() -> None:
            held = self._claims.held(member.run for member in self._slots.values())
            for member in self._slots.values():
                if member.run in held:
                    self._end_run(member, "interrupted")

        with self._clockwork("store"):
            self._store.write(write)
        self._slots.clear()

    def keep_if_due(self) -> None:
        """Keep the members' states if that was not done for a while."""
        if self._keeping is not None and self._keeping.due:
            self.keep()

    def keep(self) -> None:
        """Write the states of all members to files from which another process can go on."""
        if self._keeping is None or not self._slots:
            return
        with self._clockwork("training"):
            saved = saved_by(self._trainer)
        if saved is None:  # the user's own code trains, which keeps its state to itself
            return
        of = {member.key: [slot, member.epochs] for slot, member in self._slots.items()}
        with self._clockwork("store"):
            if self._keeping.save(saved, {"members": of}):
                runs = [member.run for member in self._slots.values()]
                self._store.write(
                    lambda: self._claims.keep(self._claims.held(runs), self._keeping.name)
                )

    def _restore(self, entered: Mapping[int, Mapping[str, Any]]) -> dict[int, int]:
        """Go on from the states that a worker kept; hand back what cannot go on from there.

        Args:
            entered: slot -> the run before; all of the same checkpoint.

        Returns:
            slot -> epochs, of those that go on.
        """
        name = next(iter(entered.values()))["checkpoint"]["name"]
        wanted = {self[slot].key: slot for slot in entered}
        with self._clockwork("training"):
            going = self._keeping.restore(self._trainer, name, wanted) if self._keeping else {}
            for slot, epochs in list(going.items()):
                if not self._recorded(entered[slot]["id"], epochs):
                    self._trainer.stop(slot)
                    del going[slot]
            if not going:
                self._trainer.begin(self._seed)

        def write() -> None:
            for slot, before in entered.items():
                if slot in going:
                    self[slot].epochs = going[slot]
                    self._store.copy_curve(before["id"], self[slot].run, going[slot])
                else:
                    self._claims.keep([self[slot].run], None)
                    self._end_run(self[slot], "interrupted")

        with self._clockwork("store"):
            self._store.write(write)
        self.gone += [self._slots.pop(slot) for slot in entered if slot not in going]
        if going:
            self._say(f"{len(going)} runs go on where another worker, or an earlier call, left off")
        return going

    def _recorded(self, run: int, epochs: int) -> bool:
        """Tell whether the store has a run's curve as far as its checkpoint is.

        It has not where the worker that kept it was thought dead: what that one trained since was
        dropped. Nor where the database was put back to an earlier state.
        """
        return len(self._claims.curve(run, epochs)) == epochs

    def _start_run(self, slot: int, plan: Plan, arm: str, asked: Asked | None, clock: int) -> int:
        with self._clockwork("store"):
            return self._claims.start(
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

    def _end_run(self, member: Member, state: str, **found: Any) -> None:
        self._store.end_run(
            member.run, state, seconds=member.seconds, epochs=member.epochs, **found
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
        if member.seconds > self._longest:
            return too_long(slot, member, self._longest, self._epochs)
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
            with self._clockwork("training", method):
                return getattr(self._trainer, method)(*args)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if self._trainer.slots == 1 and self[0].plan == Plan.none():
                raise no_room_at_all() from error
        # Here, where no traceback holds on to the old trainer's tensors.
        self._narrow() if self._trainer.slots > 1 else self._refuse()
        return None

    def _narrow(self) -> None:
        """Make the trainer anew with half the slots, at the same clock of the same block."""
        before, clock = self._trainer.slots, self._trainer.clock
        self.gone += self._slots.values()
        self.interrupt()
        self._say(f"out of memory at {before} members at once; goes on with {before // 2}")
        self._make_anew(before // 2)
        self._trainer.begin(self._seed, clock)

    def _refuse(self) -> None:
        """End the only member, which has not fitted, if no dropout does."""
        clock = self._trainer.clock
        self._make_anew(1)
        with self._clockwork("training"):
            check_room(self._trainer, self._seed, clock)
        self._refused[0] = End(0, "failed", message=NO_ROOM)

    def _make_anew(self, slots: int) -> None:
        """Make another trainer in the place of this one, whose memory is needed."""
        with self._clockwork("training"):
            del self._trainer
            release_memory()
            self._trainer = self._make_trainer(slots, self._block)
