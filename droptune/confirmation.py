"""Confirmation: designs a new one or goes on with a stored one, block by block.

With several objectives there is one for each, of the same plans. They share blocks, `merged`:
each says which plans it still needs there, and a block is trained until none needs more.

Everything is a function of the stored designs and runs, so a confirmation that was interrupted
goes on at its block, and ends as if it had not been.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from droptune.design import (
    CONTROLS,
    Arm,
    Block,
    Design,
    Outcome,
    Runs,
    is_finalist,
    selection_blocks,
)
from droptune.plan import Plan
from droptune.rounding import rounded
from droptune.space import AS_GIVEN, CONTROL, TUNED
from droptune.store import Store
from droptune.verdict import HELPS, Judgement, Rules
from droptune.watch import Clockwork


class Confirmation:
    """The confirmations of one study, as far as they are about one objective.

    Args:
        store: where designs and runs are.
        study_id: in the store.
        arms: what the search would confirm now: no dropout, the model as given, the finalists;
            empty if it has nothing to confirm.
        rules: how a new confirmation is judged; `planned` is the budget in blocks, 0: none is
            begun, and none goes on.
        clockwork: where time is counted.

    Attributes:
        design: of the confirmation that goes on; None if there is none.
    """

    def __init__(
        self,
        store: Store,
        study_id: int,
        arms: Mapping[str, Arm],
        rules: Rules,
        clockwork: Clockwork,
    ) -> None:
        self._store, self._study_id, self._clockwork = store, study_id, clockwork
        self._budget = rules.planned
        with clockwork("store"):
            stored = map(Design.from_json, store.designs(study_id))
            self._designs = [one for one in stored if one.rules.objective == rules.objective]
        if self._budget and len(arms) > 1 and not self._has(arms):
            design = self._new(arms, rules)
            with clockwork("store"):
                store.save_design(study_id, design.to_json())
            self._designs.append(design)

    @property
    def design(self) -> Design | None:
        return self._designs[-1] if self._designs else None

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks to train, each after the one before has ended, until they are enough.

        Blocks that are stored are yielded again; what of them is missing is to be trained.
        """
        design = self.design
        if design is None or not self._budget:
            return
        for index, number in enumerate(design.selection_blocks, 1):
            note = f"choosing among {len(design.candidates)} plans, block {index} of "
            left = self._left(design, index - 1)
            yield Block(number, design.plans(), f"{note}{design.selection}", left)
        for index in range(self._budget):
            outcome = design.outcome(self.runs(), index)
            if outcome is None:  # a block of selection did not end
                return
            found = outcome.judge() if index else None
            if found is not None and found.settled:
                return
            number, plans = design.estimation_block(index), design.estimated(outcome.chosen)
            note = f"block {index + 1} of at most {self._budget}{_so_far(found, design.rules)}"
            most = len(plans) + design.rules.together - 1  # each objective may add a plan
            yield Block(number, plans, note, (self._budget - index) * most)

    def outcome(self) -> Outcome | None:
        """Return what the study has to say: its latest confirmation that has a judged block.

        A plan that was confirmed stays confirmed if a later confirmation, of other finalists,
        does not end in "helps".
        """
        outcomes = [one for one in self._outcomes(self.runs()) if one is not None and one.blocks]
        helped = [one for one in outcomes if one.judge().verdict == HELPS]
        return (helped or outcomes or [None])[-1]

    def runs(self) -> Runs:
        """Return the confirmation runs that have ended."""
        with self._clockwork("store"):
            ended = self._store.confirm_runs(self._study_id)
        return {(run["block"], Plan.from_json(run["plan"])): run for run in ended}

    def _has(self, arms: Mapping[str, Arm]) -> bool:
        """Tell whether the latest design is about all these plans."""
        return self.design is not None and self.design.covers(arm.plan for arm in arms.values())

    def _new(self, arms: Mapping[str, Arm], rules: Rules) -> Design:
        """Return the design of a confirmation of these plans, on fresh blocks."""
        runs = self.runs()
        arms = dict(arms)
        confirmed = self.outcome()
        if confirmed is not None and confirmed.judge().verdict == HELPS:
            winner = confirmed.design.arms[confirmed.chosen]
            if all(arm.plan != winner.plan for arm in arms.values()):
                arms[f"finalist {1 + sum(is_finalist(name) for name in arms)}"] = winner
        judged = sum(one is not None and len(one.blocks) > 0 for one in self._outcomes(runs))
        rules = replace(rules, earlier=judged)
        design = Design(rules, arms, 1 + max((block for block, _ in runs), default=0))
        if not self._designs and runs:
            # Blocks of a droptune that stored no design: all that they may do now is choose.
            older = range(1, design.first_block)
            if Design.complete(design.plans(), older, runs) == len(older):
                return replace(design, first_block=1, selection=len(older))
        finalists = sum(is_finalist(name) for name in arms)
        return replace(design, selection=selection_blocks(finalists, rules.planned))

    def _outcomes(self, runs: Runs) -> list[Outcome | None]:
        """Return what came of each confirmation: of its own blocks, not of a later one's."""
        ends = [design.first_block for design in self._designs[1:]] + [math.inf]
        return [
            _until_settled(design, {key: run for key, run in runs.items() if key[0] < end})
            for design, end in zip(self._designs, ends, strict=False)
        ]

    def _left(self, design: Design, selected: int) -> int:
        """Return how many runs there are at most after so many blocks of selection."""
        judged = len(design.plans(*CONTROLS, AS_GIVEN)) + design.rules.together
        return (design.selection - selected) * len(design.arms) + self._budget * judged


def merged(all_blocks: Iterable[Iterator[Block]]) -> Iterator[Block]:
    """Yield the blocks of several confirmations, those of the same number as one.

    The next one is asked for when the one before has ended, and then of those alone that
    asked for it.
    """
    waiting = [(block, blocks) for blocks in all_blocks if (block := next(blocks, None))]
    while waiting:
        number = min(block.number for block, _ in waiting)
        now = [(block, blocks) for block, blocks in waiting if block.number == number]
        yield _together([block for block, _ in now])
        later = [one for one in waiting if one not in now]
        waiting = later + [(block, its) for _, its in now if (block := next(its, None))]


def _together(blocks: Sequence[Block]) -> Block:
    """Return one block with all the plans; of two plans with one name the second is renamed."""
    arms: dict[str, Plan] = {}
    for index, block in enumerate(blocks, 1):
        for name, plan in block.arms.items():
            if plan not in arms.values():
                arms[name if name not in arms else f"{name}, objective {index}"] = plan
    return replace(blocks[0], arms=arms, left=max(block.left for block in blocks))


def _until_settled(design: Design, runs: Runs) -> Outcome | None:
    """Return what the runs say up to the first look at which the blocks were enough.

    Of a single objective there are no blocks after it. Another objective may have gone on with
    the same plans; what was settled stays as it was.
    """
    whole = design.outcome(runs)
    if whole is None or design.rules.together == 1:
        return whole
    looks = (design.outcome(runs, index) for index in range(1, len(whole.blocks)))
    return next((one for one in looks if one.judge().settled), whole)


def make_arms(
    fixed: Mapping[str, Plan],
    finalists: Sequence[tuple[int, Plan, float]],
    first: Callable[[Plan], tuple[int, float] | None],
    tuned: tuple[int, Plan, float] | None = None,
) -> dict[str, Arm]:
    """Return the arms of a confirmation: the controls, and the best plans of the search.

    Args:
        fixed: name -> plan, no dropout and the model as given among them.
        finalists: number, plan and value of their trials.
        first: returns number and value of a fixed plan's trial, or None.
        tuned: number, plan and value of the best trial without dropout, if it is not that of
            no dropout in the study's own training.
    """
    controls = {
        name: Arm(fixed[name], *(first(fixed[name]) or ()))
        for name in (CONTROL, AS_GIVEN)
        if name in fixed
    }
    if tuned is not None:
        controls[TUNED] = Arm(tuned[1], tuned[0], tuned[2])
    chosen = enumerate(finalists, 1)
    return controls | {f"finalist {i}": Arm(plan, n, value) for i, (n, plan, value) in chosen}


def _so_far(found: Judgement | None, rules: Rules) -> str:
    """Return the interval so far, if there is one."""
    if found is None or found.chosen.error is None:
        return ""
    one = found.chosen
    what = f" of {rules.objective}" if rules.together > 1 else ""
    return f", interval{what} now {rounded(one.mean, one.end(-1.0), one.end(1.0))[1]}"
