"""Population-based training of rates: who is replaced by a copy of whom, and with which rates.

Jaderberg et al., "Population Based Training of Neural Networks",
https://arxiv.org/abs/1711.09846: members train side by side; at times the worst fifth gives way
to copies of members of the best fifth (truncation selection), whose rates are then moved up or
down by a fifth. Rates thereby follow a schedule that nobody wrote down.

Here a copy is a trial of its own, whose plan says all its rates by epoch, those of its ancestors
included. All members of a block see the same data and the same noise, so the plan trained from
the start in this block gives the very curve that the copy has, and it can be confirmed on fresh
seeds like any other.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from droptune.kinds import derive
from droptune.plan import Entry, Plan
from droptune.schedule import STEPS, progress
from droptune.space import AS_GIVEN, CONTROL

#: Parts of a training between which members are replaced. Few and long ones: less dropout shows
#: at once as a better loss, and what it costs shows late (FIRE PBT,
#: https://arxiv.org/abs/2109.13800).
PARTS = 6
#: The part of the members that is replaced, and that is copied.
FIFTH = 5
#: What rates are multiplied by, one or the other.
FACTORS = (0.8, 1.2)
#: No rate is moved above this; 0.6 is the highest that a space suggests.
HIGHEST = 0.8
_COPY = "copy of trial"


@dataclass(frozen=True)
class Candidate:
    """A member when members are compared.

    Attributes:
        slot: where it trains.
        number: of its trial.
        arm: "trial", or the name of its plan.
        plan: what it trains.
        value: of the objective now.
    """

    slot: int
    number: int
    arm: str
    plan: Plan
    value: float


@dataclass(frozen=True)
class Move:
    """One member gives way to a copy of another.

    Attributes:
        loser: the slot that becomes free.
        source: the slot that is copied.
        name: of the copy's plan.
        plan: of the copy.
    """

    loser: int
    source: int
    name: str
    plan: Plan


@dataclass(frozen=True)
class Population:
    """How a population of trials is trained.

    Args:
        epochs: length of a run.
        direction: `minimize` or `maximize`.
        seed: of the study.
    """

    epochs: int
    direction: str
    seed: int

    @property
    def ages(self) -> frozenset[int]:
        """The epochs after which members are compared."""
        return frozenset(-(-self.epochs * i // PARTS) for i in range(1, PARTS)) - {self.epochs}

    def size(self, trials: int) -> int:
        """Return how many members to start with, of so many trials that copies count among."""
        return max(-(-trials * FIFTH // (FIFTH + len(self.ages))), 1)

    def moves(self, age: int, members: Sequence[Candidate], most: int) -> list[Move]:
        """Return who is replaced after an epoch.

        Where one of the members was copied at this age or later, what was to be done at this
        age was done before an interruption, and nothing is.

        Args:
            age: of the members, in epochs.
            members: of one age.
            most: copies that the budget allows.
        """
        if age not in self.ages or any(self._born(member) >= age for member in members):
            return []
        sign = 1 if self.direction == "minimize" else -1
        ranked = sorted(members, key=lambda member: (sign * member.value, member.number))
        fifth = len(ranked) // FIFTH
        best = [member for member in ranked[:fifth] if _can_be_moved(member.plan)]
        losers = [m for m in ranked[len(ranked) - fifth :] if m.arm not in (CONTROL, AS_GIVEN)]
        if not best:
            return []
        found = []
        for loser in losers[: max(most, 0)]:
            dice = random.Random(derive(self.seed, "population", age, loser.number))
            source = dice.choice(best)
            plan = moved(source.plan, progress(age, self.epochs), dice)
            name = f"{_COPY} {source.number} at epoch {age}"
            found.append(Move(loser.slot, source.slot, name, plan))
        return found

    def _born(self, member: Candidate) -> int:
        """Return the age at which a member was copied, as its plan tells; 0 if it was not."""
        if not member.arm.startswith(_COPY):
            return 0
        starts = [entry.steps[-1][0] for entry in member.plan.values() if entry.steps]
        return round(max(starts, default=0.0) * (self.epochs - 1))


def _can_be_moved(plan: Plan) -> bool:
    """Tell whether a plan has rates, and none that move by a formula."""
    return bool(plan) and all(entry.fraction is None for entry in plan.values())


def moved(plan: Plan, start: float, dice: random.Random) -> Plan:
    """Return a plan whose rates are others from a point of training on.

    Sites whose rates have been the same so far stay together: they are moved by one factor.

    Args:
        plan: with constant rates, or steps.
        start: the part of training that is over.
        dice: which way.
    """
    factors: dict[tuple, float] = {}
    entries: Mapping[str, Entry] = {
        site: _stepped(entry, start, factors.setdefault(_past(entry), dice.choice(FACTORS)))
        for site, entry in plan.items()
    }
    return Plan(entries, plan.term, plan.training)


def _past(entry: Entry) -> tuple[tuple[float, float], ...]:
    return tuple(entry.steps) or ((0.0, entry.rate),)


def _stepped(entry: Entry, start: float, factor: float) -> Entry:
    past = _past(entry)
    rate = round(min(past[-1][1] * factor, max(HIGHEST, past[-1][1])), 4)
    return replace(entry, schedule=STEPS, steps=(*past, (start, rate)))
