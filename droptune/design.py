"""The design of a confirmation: what is trained and how it is judged, fixed beforehand.

It is stored before the first block is trained, as a trial is registered before its first
patient: which plans, on which blocks, how many are planned, at which level and margin. What
comes later can then not be chosen to please.

A confirmation has two stages. In the first blocks all finalists train, and the one with the
best mean is chosen; in the blocks after them it trains with no dropout and the model as given
alone, and only these blocks are judged. The figure of the chosen one is therefore not that of
the luckiest of several.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any

from droptune.plan import Plan
from droptune.space import AS_GIVEN, CONTROL, TUNED
from droptune.verdict import HELPS, Judgement, Rules, Verdict, decide, judge

#: (block, plan) -> the run that ended there.
Runs = Mapping[tuple[int, Plan], Mapping[str, Any]]

#: Without dropout: in the study's own training, and as the search tuned it.
CONTROLS = (CONTROL, TUNED)
_SELECTION = 2  # blocks that choose between finalists
_WORTH = 5  # blocks of budget below which none are spent on choosing


@dataclass(frozen=True)
class Arm:
    """A plan of a confirmation, with the trial that the search had of it, if it had one."""

    plan: Plan
    trial: int | None = None
    value: float | None = None


@dataclass(frozen=True)
class Design:
    """One confirmation.

    Attributes:
        rules: how it is judged.
        arms: name -> plan; no dropout among them.
        first_block: number of its first block.
        selection: how many blocks choose between the finalists; 0: the search has chosen.
    """

    rules: Rules
    arms: Mapping[str, Arm] = field(default_factory=dict)
    first_block: int = 1
    selection: int = 0

    @property
    def candidates(self) -> list[str]:
        """The arms that may be chosen: the finalists, and the model as given."""
        finalists = [name for name in self.arms if is_finalist(name)]
        return finalists + [name for name in self.arms if name == AS_GIVEN]

    @property
    def selection_blocks(self) -> range:
        """Numbers of the blocks that choose."""
        return range(self.first_block, self.first_block + self.selection)

    def estimation_block(self, index: int) -> int:
        """Return the number of a block that is judged, counted from 0."""
        return self.first_block + self.selection + index

    def plans(self, *names: str) -> dict[str, Plan]:
        """Return name -> plan of some arms in their order, of all if none is named."""
        return {name: arm.plan for name, arm in self.arms.items() if not names or name in names}

    def estimated(self, chosen: str) -> dict[str, Plan]:
        """Return name -> plan of the arms that train in the blocks that are judged."""
        return self.plans(*CONTROLS, AS_GIVEN, chosen)

    def covers(self, plans: Iterable[Plan]) -> bool:
        """Tell whether all these plans are among the arms."""
        return set(plans) <= {arm.plan for arm in self.arms.values()}

    def differs(self, rules: Rules) -> str | None:
        """Return a line that says which of the rules wait for the next confirmation, or None."""
        changed = [
            f"{name} {getattr(rules, name)} (now {getattr(self.rules, name)})"
            for name in ("level", "margin")
            if getattr(rules, name) != getattr(self.rules, name)
        ]
        if not changed:
            return None
        what = " and ".join(changed)
        return f"{what} holds from the next confirmation on; this one began with its own"

    def outcome(self, runs: Runs, most: int | None = None) -> "Outcome | None":
        """Return what the runs say; None while the finalist is not chosen.

        Args:
            runs: that have ended.
            most: blocks that count at most; None: all that have ended.
        """
        chosen = self.chosen(runs)
        if chosen is None:
            return None
        blocks = range(self.estimation_block(0), self.estimation_block(len(runs)))
        ended = self.complete(self.estimated(chosen), blocks, runs)
        return Outcome(self, chosen, blocks[: ended if most is None else min(ended, most)], runs)

    def chosen(self, runs: Runs) -> str | None:
        """Return the candidate with the best mean over the selection blocks.

        Without such blocks it is the one with the best value in the search; of equal ones the
        first. A candidate without a value in each block is passed over; if all are, the first
        is taken.

        Returns:
            None while a block of selection has not ended.
        """
        ended = self.complete(self.plans(), self.selection_blocks, runs)
        if ended < self.selection or not self.candidates:
            return None
        return min(self.candidates, key=lambda name: self._rank(name, runs))

    def _rank(self, name: str, runs: Runs) -> float:
        """Return what is smallest for the best candidate."""
        if not self.selection:
            value = self.arms[name].value
            found = [math.nan if value is None else value]
        else:
            found = self.values(name, self.selection_blocks, runs)
        mean = fmean(found)
        return -self.rules.sign * mean if math.isfinite(mean) else math.inf

    def values(self, name: str, blocks: range, runs: Runs) -> list[float]:
        """Return the objective of an arm by block; NaN where it failed."""
        plan, objective = self.arms[name].plan, self.rules.objective
        return [final(runs.get((block, plan)), objective) for block in blocks]

    @staticmethod
    def complete(plans: Mapping[str, Plan], blocks: range, runs: Runs) -> int:
        """Return how many of the blocks, from the first on, have all these plans ended."""
        for index, block in enumerate(blocks):
            if not all((block, plan) in runs for plan in plans.values()):
                return index
        return len(blocks)

    def to_json(self) -> dict[str, Any]:
        """Return the design as JSON values."""
        arms = {
            name: {"plan": arm.plan.to_json(), "trial": arm.trial, "value": arm.value}
            for name, arm in self.arms.items()
        }
        blocks = {"first_block": self.first_block, "selection": self.selection}
        return {**asdict(self.rules), **blocks, "arms": arms}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Design":
        """Return the design that `to_json` gave."""
        rest = dict(value)
        arms = {
            name: Arm(Plan.from_json(arm["plan"]), arm["trial"], arm["value"])
            for name, arm in rest.pop("arms").items()
        }
        first, selection = rest.pop("first_block"), rest.pop("selection")
        return cls(Rules(**rest), arms, first, selection)


@dataclass(frozen=True)
class Outcome:
    """What has come of a confirmation so far.

    Attributes:
        design: the confirmation's.
        chosen: the finalist that its selection blocks chose.
        blocks: numbers of the blocks that are judged.
        runs: that have ended.
    """

    design: Design
    chosen: str
    blocks: range
    runs: Runs

    @property
    def values(self) -> dict[str, list[float]]:
        """The objective of the arms by block; NaN where a run failed."""
        arms = self.design.estimated(self.chosen)
        return {name: self.design.values(name, self.blocks, self.runs) for name in arms}

    @property
    def control(self) -> str:
        """The arm without dropout that decides: one that the finalist does not beat.

        Where training was tuned there are two, and dropout helps only if it beats both; the
        better one decides if it does. As both are to be beaten, nothing is corrected for two
        (an intersection-union test: Berger 1982, https://doi.org/10.1080/00401706.1982.10487790).
        """
        values, rules = self.values, self.design.rules
        found = {name: mean_of(values[name]) for name in CONTROLS if name in values}
        means = {name: math.inf if m is None else -rules.sign * m for name, m in found.items()}
        better, *_ = ordered = sorted(means, key=means.__getitem__)
        if len(ordered) == 1:
            return better
        return next((one for one in ordered if self._against(one).verdict != HELPS), better)

    @property
    def ahead(self) -> str:
        """The arm to take by one who cannot wait: the finalist if its mean is better.

        No claim, a choice: where neither is known to be better and neither costs more, the one
        with the better mean loses less on average than no dropout whatever the mean says
        (benchmarks/fcnet.py measures it). A finalist that failed in a block is never ahead.
        """
        found = self.judge()
        better = not found.chosen.lacks and self.design.rules.sign * found.chosen.mean > 0
        return self.chosen if better else self.control

    def judge(self) -> Judgement:
        """Return whether the blocks are enough, and for what; in no time."""
        return self._against(self.control)

    def _against(self, control: str) -> Judgement:
        return judge(self.values, self.design.rules, self.chosen, **_roles(control))

    def decide(self, unit: str | None = None) -> Verdict:
        """Return the verdict; its details have the selection, too, and the blocks judged.

        Args:
            unit: of the objective.
        """
        design = self.design
        roles = _roles(self.control)
        verdict = decide(self.values, design.rules, self.chosen, **roles, unit=unit)
        means = {
            name: mean_of(design.values(name, design.selection_blocks, self.runs))
            for name in design.arms
        }
        selection = {
            "blocks": design.selection,
            "chosen": self.chosen,
            "means": means if design.selection else None,
        }
        return replace(
            verdict, details=verdict.details | {"selection": selection, "judged": [*self.blocks]}
        )


@dataclass(frozen=True)
class Block:
    """A block to train.

    Attributes:
        number: its seed follows from it.
        arms: name -> plan.
        note: where the confirmation stands, for the progress.
        left: how many runs there are at most, from this block on.
    """

    number: int
    arms: Mapping[str, Plan]
    note: str
    left: int


def is_finalist(name: str) -> bool:
    """Tell whether an arm is a finalist by its name."""
    return name not in (*CONTROLS, AS_GIVEN)


def _roles(control: str) -> dict[str, str]:
    """Return the arms to compare with: the model as given has the study's own training."""
    return {"control": control, "as_given": AS_GIVEN if control == CONTROL else ""}


def selection_blocks(candidates: int, budget: int) -> int:
    """Return how many blocks choose between so many finalists."""
    return _SELECTION if candidates > 1 and budget >= _WORTH else 0


def final(run: Mapping[str, Any] | None, objective: str) -> float:
    """Return the objective at a run's last epoch; NaN if it diverged or was not run."""
    if run is None or run["state"] != "complete":
        return math.nan
    value = (run["metrics"] or {}).get(objective)
    return math.nan if value is None else value


def mean_of(values: Iterable[float]) -> float | None:
    """Return the mean of the values that are finite; None without one."""
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else None
