"""A pruner that is fair to dropout: `Paired`. Pure functions of numbers; used by search.py.

Dropout slows the start of training and pays at its end, so at an early rung small rates are
ahead. How much that says of the end differs from task to task, and is learnt here from the trials
of the block that have ended: the rates of the first, the middle and the last sites, the levels on
the way and the last value are taken as normal (multinormal.py), and stopped trials as such with
gaps, so that they, too, tell how early levels lead to later ones. A level far behind counts for
little where complete trials came from as far behind, and so does a high rate; where early levels
say nothing of the end, nothing is stopped early. No dropout, which runs to its end first, is
always among what is learnt from. All trials of a block share initial weights, and data order
where they began together (common random numbers), so their levels are compared as they are.

That gives the probability that a trial ends ahead of the best complete one, luck included. A
fresh plan ends ahead of n others with probability 1 / (n + 1), if nothing else is known of it,
and costs a whole run. A trial is stopped when a fresh plan promises more per epoch: that is when
its own probability, over the share of a run that it has still to go, is less.

Nothing is stopped before three trials are complete. While its rates move, the levels of a trial
are unknown, for they say little of the rest: it is waited for, and learnt from afterwards.

What it finds at which cost, over the four tasks that nothing was chosen on
(benchmarks/results/pruning-cpu.md and pruning-cpu-2-slots.md), 40 plans each:

- Two at a time: with all plans seen it keeps the full budget's winner in 84 % of replays for
  46 % of the epochs, hyperband in 59 % for 68 %, the median in 43 % for 41 %. Given the same
  epochs, 40 to 75 %, it finds the winner more often than both on each of the four, by 32 and 34
  points in the mean; cut off where the other is through, by 23 and 18.
- Eight at a time: 88 % for 56 %, hyperband 59 % for 68 %, the median 55 % for 51 %. At the same
  epochs it leads by 24 and 18 points, but on the two tasks where early ranks hold the median is
  as good; cut off where hyperband is through, by 19; where the median is, by 5, within noise,
  and it loses on those two. The first eight of forty train to their ends before anything is
  known, a fifth of all epochs, and at half of them it has not seen all plans. That much is out
  of reach of this rule: with regressions that know all forty curves beforehand, it found the
  winner on the tasks it was chosen on in 68 % of replays at half of the epochs, the present one
  in 61 %.

Where early levels say nothing of the end it is no better than chance per epoch, and trials are
lost for nothing: on breast cancer it keeps the winner in half of the replays.

Tried on the eight tasks that the constants were chosen on, and no better: a ridge regression at
each epoch on complete trials alone (the rule before, which waited for five; 4 points fewer at the
same epochs) or with the ends of stopped ones filled in, the mean of both rules, the latest level
alone, two or four groups of sites, a prior of 5 to 15 trials, a fresh plan's promise times 1.3 to
4 or over the mean cost of the trials so far, and fewer looks. Nor did the lowest level so far or
squares of rates help the regressions that know all. Earlier: scikit-learn's BayesianRidge (too
sure of itself with few trials), a fixed probability, and a wait for the epoch at which no dropout
stops improving.

Sources: extrapolated curves that stop trials, with what else is known of them, Domhan,
Springenberg, Hutter 2015, https://www.ijcai.org/Proceedings/15/Papers/487.pdf; a joint
distribution of whole and broken-off curves, and epochs given to what promises most, Swersky,
Snoek, Adams 2014, https://arxiv.org/abs/1406.3896.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from droptune.multinormal import Normal, fitted
from droptune.plan import Plan

#: Of the epochs of a run: what a level is a mean over, and from one decision to the next.
_SMOOTH, _STEP = 0.1, 0.025
#: Complete trials without which nothing is predicted.
_LEAST = 3
#: Values this much further behind the median than the best is ahead of it count as this far,
#: if they are of the last quarter.
_FAR = 2.0
#: Groups of neighbouring sites whose mean rates are known.
_GROUPS = 3
#: Trials that the prior counts as, the share of its levels' variance that is noise, and the age,
#: of a run, that curves are taken to start with.
_WEIGHT, _NOISE, _START = 2.0, 0.05, 0.05


class Paired:
    """Says which trials promise less than fresh ones.

    Args:
        epochs: of a full run.
        direction: `minimize` or `maximize`, what the objective is to do.
        sites: names, in the order of the model.
        plan_of: number of a trial -> its plan.
    """

    def __init__(
        self, epochs: int, direction: str, sites: Sequence[str], plan_of: Callable[[int], Plan]
    ) -> None:
        self._epochs, self._plan_of = epochs, plan_of
        self._sign = 1.0 if direction == "minimize" else -1.0
        groups = [part.tolist() for part in np.array_split(np.array(sites), _GROUPS)]
        self._groups = [group for group in groups if group]
        step = max(1, round(_STEP * epochs))
        self._looks = list(range(step, epochs, step))
        self._prior = _prior(len(self._groups), np.array([*self._looks, epochs]) / epochs)
        self._curves: dict[int, list[float]] = {}
        self._ended: dict[int, np.ndarray] = {}
        self._begun = 0
        self._best = math.inf
        self._said: _Learnt | None = None

    def add(self, trial: int, epoch: int, value: float) -> None:
        """Note the objective after an epoch, from 1; epoch 1 starts the trial's curve anew.

        Epochs that are passed over, as those before a trial goes on from a checkpoint, are
        unknown.
        """
        self._begun = max(self._begun, trial + 1)
        curve = self._curves.setdefault(trial, [])
        del curve[epoch - 1 :]
        curve += [math.nan] * (epoch - 1 - len(curve))
        curve.append(self._sign * value if math.isfinite(value) else math.inf)

    def learn(self, trial: int, curve: Sequence[float]) -> None:
        """Note the whole curve of a trial that was trained elsewhere: complete, or stopped."""
        self._curves.pop(trial, None)
        for epoch, value in enumerate(curve, 1):
            self.add(trial, epoch, value)
        self.end(trial)

    def end(self, trial: int, last: float | None = None) -> None:
        """Note that a trial ended, and learn from its curve, if it is known here.

        Args:
            trial: its number.
            last: the objective after the last epoch; None: it was added, or the trial stopped.
        """
        if last is not None and trial in self._curves:
            self.add(trial, self._epochs, last)
        curve = self._curves.pop(trial, [])
        if curve and math.inf not in curve:
            self._ended[trial] = row = self._row(trial, curve)
            self._best = np.fmin(self._best, row[-1])
            self._said = None

    def forget(self, trial: int) -> None:
        """Note that a trial failed; nothing is learnt from it."""
        self._curves.pop(trial, None)

    def stops(self, trial: int) -> bool:
        """Tell whether a trial is to stop after the epochs it has."""
        curve = self._curves.get(trial, [])
        if curve and curve[-1] == math.inf:
            return True
        epoch = len(curve)
        if epoch not in self._looks:
            return False
        if self._said is None:
            self._said = self._learnt()
        row = self._row(trial, curve)
        at = len(self._groups) + self._looks.index(epoch)
        if math.isnan(row[at]) or not self._said.known[at]:
            return False
        fresh = 1 / (self._begun + 1)
        left = 1 - epoch / self._epochs
        return self._said.chance(row, self._best) < left * fresh

    def _row(self, trial: int, curve: Sequence[float]) -> np.ndarray:
        """Return what is known of a trial: rates by depth, levels at the looks, the last value."""
        plan = self._plan_of(trial)
        width = max(2, round(_SMOOTH * self._epochs))
        settles = round(plan.settles * self._epochs)
        levels = [
            np.mean(curve[max(0, look - width) : look])
            if look <= len(curve) and (settles == 0 or settles + width <= look)
            else math.nan
            for look in self._looks
        ]
        last = curve[-1] if len(curve) == self._epochs else math.nan
        rates = [[plan[s].rate if s in plan else 0.0 for s in part] for part in self._groups]
        return np.array([*map(np.mean, rates), *levels, last])

    def _learnt(self) -> "_Learnt":
        """Return what the ended trials of the block say."""
        rows = np.array([self._ended[trial] for trial in sorted(self._ended)])
        rows = rows.reshape(-1, len(self._prior))
        count = (~np.isnan(rows)).sum(0)
        known = count >= _LEAST
        if known[-1]:
            known[known] = np.nanmax(rows[:, known], 0) > np.nanmin(rows[:, known], 0)
        if not known[-1]:
            return _Learnt(None, np.zeros_like(known), known, 0)
        rows[:, ~known] = math.nan
        far = [math.inf] * len(self._groups) + [_far(c) for c in rows.T[len(self._groups) :]]
        normal = fitted(np.minimum(rows, far), self._prior, _WEIGHT)
        return _Learnt(normal, known, np.array(far), int(count[-1]))


@dataclass(frozen=True)
class _Learnt:
    """What the ended trials of a block say.

    Attributes:
        normal: of rates by depth, levels at the looks, and the last value; None: too few ended.
        known: which of them vary, and are known of enough trials, of shape `(variables,)`.
        far: from where on they are so far behind that it does not matter how far.
        seen: trials that are complete.
    """

    normal: Normal | None
    known: np.ndarray
    far: np.ndarray
    seen: int

    def chance(self, row: np.ndarray, best: float) -> float:
        """Return the probability that a trial ends ahead of a value."""
        row = np.where(self.known, np.minimum(row, self.far), math.nan)
        mean, spread, freedom = self.normal.predicted(row, self.seen)
        return float(stats.t.cdf((best - mean) / spread, freedom))


def _prior(rates: int, ages: np.ndarray) -> np.ndarray:
    """Return the correlations of rates and levels that a block's trials are added to.

    Levels at two ages have the less in common the further apart they are, in proportion, as
    curves change fast at first; rates are taken to say nothing.
    """
    prior = np.eye(rates + len(ages))
    late, early = np.maximum.outer(ages, ages), np.minimum.outer(ages, ages)
    prior[rates:, rates:] = (1 - _NOISE) * (early + _START) / (late + _START)
    np.fill_diagonal(prior, 1.0)
    return prior


def _far(values: np.ndarray) -> float:
    """Return from where on a value is so far behind that it does not matter how far."""
    values = values[~np.isnan(values)]
    if not len(values):
        return math.inf
    median, quarter = np.quantile(values, (0.5, 0.75))
    far = max(quarter, median + _FAR * (median - values.min()))
    return float(far) if far > values.min() else math.inf
