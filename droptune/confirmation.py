"""Confirmation: designs a new one or goes on with a stored one, block by block.

With several objectives there is one for each, of the same plans. They share blocks, `merged`:
each says which plans it still needs there.

Everything is a function of the stored designs and runs, so a confirmation that was interrupted
goes on at its block, and ends as if it had not been.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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
        self._looks: dict[tuple[int, int], bool] = {}
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

    def wanted(self, ahead: int = 0) -> list[Block]:
        """Return the blocks that are of use now, the first one first; none if they are enough.

        Args:
            ahead: how many blocks to return besides the first, for other workers to train: the
                verdict looks at the blocks one by one, so they change nothing if it is clear
                before.
        """
        design = self.design
        if design is None or not self._budget:
            return []
        runs = self.runs()
        selected = design.complete(design.plans(), design.selection_blocks, runs)
        if selected < design.selection:
            return self._selecting(design, selected)[: 1 + ahead]
        whole = design.outcome(runs)
        if whole is None or self._settled(design, runs, len(whole.blocks)):
            return []
        return self._estimating(design, whole)[: 1 + ahead]

    def _selecting(self, design: Design, selected: int) -> list[Block]:
        note, of = (
            f"choosing among {len(design.candidates)} plans, block ",
            f" of {design.selection}",
        )
        return [
            Block(number, design.plans(), f"{note}{index + 1}{of}", self._left(design, index))
            for index, number in enumerate(design.selection_blocks)
            if index >= selected
        ]

    def _estimating(self, design: Design, whole: Outcome) -> list[Block]:
        plans, judged = design.estimated(whole.chosen), len(whole.blocks)
        so_far = _so_far(whole.judge() if judged else None, design.rules)
        most = len(plans) + design.rules.together - 1  # each objective may add a plan
        return [
            Block(
                design.estimation_block(index),
                plans,
                f"block {index + 1} of at most {self._budget}{so_far}",
                (self._budget - index) * most,
            )
            for index in range(judged, self._budget)
        ]

    def _settled(self, design: Design, runs: Runs, judged: int) -> bool:
        """Tell whether the blocks were enough at some look; what has ended does not change."""
        for index in range(1, judged + 1):
            look = design.first_block, index
            if look not in self._looks:
                self._looks[look] = design.outcome(runs, index).judge().settled
            if self._looks[look]:
                return True
        return False

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


def merged(all_blocks: Iterable[Sequence[Block]]) -> list[Block]:
    """Return the blocks that several confirmations want, those of the same number as one."""
    by_number: dict[int, list[Block]] = {}
    for blocks in all_blocks:
        for block in blocks:
            by_number.setdefault(block.number, []).append(block)
    return [_together(by_number[number]) for number in sorted(by_number)]


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

    There may be blocks after it: another objective went on with the same plans, or another
    worker was ahead. What was settled stays as it was.
    """
    whole = design.outcome(runs)
    looks = (design.outcome(runs, index) for index in range(1, len(whole.blocks))) if whole else ()
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
