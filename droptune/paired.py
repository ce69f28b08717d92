"""A pruner that is fair to dropout: `Paired`. Pure functions of curves; used by search.py.

Dropout slows the start of training and pays at its end, so rungs that begin early favour small
rates. Here the control, no dropout, trains to its end before anything is stopped, and nothing
is judged before the epoch at which the control stopped improving: from there on its lead is
spent. A trial is then compared with the best complete trial of its block, epoch by epoch. The
two share initial weights, and data order and noise where they began together, so the
difference of their curves is paired (common random numbers).

A trial is stopped when the difference, carried on to the last epoch, is worse by more than
noise explains; the value to beat is the best trial's last one, lucky as it is. What a trial
gains on the best one is carried on, at half its present speed: that is how far it comes if its
speed falls along a line to 0 at the last epoch. What it loses is not carried on.

What it costs (benchmarks/results/pruning-cpu.md; the constants were chosen on two of the six
tasks): over the four others it used 78 % of the epochs and kept the full budget's winner in
78 % of replays, hyperband 68 % and 59 %, the median 51 % and 55 %. It waits longer, so cut off
at as many epochs as those use it finds the winner no more often than hyperband, and less often
than the median where early ranks hold; where they do not (fashion-mlp) it finds it twice as often.

Related: stopping by an extrapolated curve, Domhan, Springenberg, Hutter
2015, https://www.ijcai.org/Proceedings/15/Papers/487.pdf.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.stats import linregress, median_abs_deviation

#: Of the epochs of a run: what a curve is smoothed over, what the difference is measured over,
#: and from one decision to the next.
_SMOOTH, _WINDOW, _STEP = 0.1, 0.15, 0.05
#: The least number of epochs that a difference is measured over: a line and two more.
_LEAST = 4
#: Standard deviations of the difference by which a trial has to be worse.
_WORSE = 2.0
#: Of the present speed of catching up, carried on to the last epoch.
_KEPT_SPEED = 0.5

#: The shortest run in which a trial can be stopped.
LEAST_EPOCHS = _LEAST + 1


class Paired:
    """Says which trials cannot become the best any more.

    Args:
        epochs: of a full run.
        direction: `minimize` or `maximize`, what the objective is to do.
        say: is given one line on from when trials are stopped, or why none is.
    """

    def __init__(
        self, epochs: int, direction: str, say: Callable[[str], object] = lambda text: None
    ) -> None:
        self._epochs, self._say = epochs, say
        self._sign = 1.0 if direction == "minimize" else -1.0
        self._curves: dict[int, list[float]] = {}
        self._best: tuple[float, int] | None = None
        self._measured = False
        self._onset: int | None = None
        self._noise = 0.0

    def add(self, trial: int, epoch: int, value: float) -> None:
        """Note the objective after an epoch, from 1; epoch 1 starts the trial's curve anew."""
        curve = self._curves.setdefault(trial, [])
        del curve[epoch - 1 :]
        curve.append(self._sign * value)

    def complete(self, trial: int, curve: Sequence[float]) -> None:
        """Note a whole curve: that of a trial which an earlier process has trained."""
        self._curves[trial] = [self._sign * value for value in curve]
        self.end(trial)

    def end(self, trial: int) -> None:
        """Note that a trial ended; if its curve is whole, others are compared with it."""
        curve = self._curves.get(trial, [])
        whole = len(curve) == self._epochs and np.isfinite(curve).all()
        if trial == 0 and not self._measured:
            self._measure(curve if whole else None)
        if not whole:
            self._curves.pop(trial, None)
        elif self._best is None or (curve[-1], trial) < self._best:
            self._best = curve[-1], trial

    def stops(self, trial: int, settled: int = 0) -> bool:
        """Tell whether a trial is to stop after the epochs it has.

        Args:
            trial: its number; that of the control is 0.
            settled: epoch from which on its rates stand still: before, its curve says little
                of the rest.
        """
        curve = self._curves.get(trial, [])
        if curve and not math.isfinite(curve[-1]):
            return True
        first = max(self._onset or self._epochs, settled + self._window, _LEAST)
        if self._onset is None or self._best is None or not first <= len(curve) < self._epochs:
            return False
        if (len(curve) - first) % max(1, round(_STEP * self._epochs)):
            return False
        return self._too_far_behind(np.asarray(curve))

    @property
    def _window(self) -> int:
        return max(_LEAST, round(_WINDOW * self._epochs))

    def _too_far_behind(self, curve: np.ndarray) -> bool:
        """Tell whether a curve ends behind the best one, were it to go on as it does."""
        best = np.asarray(self._curves[self._best[1]])
        end = len(curve)
        begin = max(0, end - self._window)
        behind, epochs = curve[begin:] - best[begin:end], np.arange(begin, end)
        line = linregress(epochs, behind)
        off = behind - line.intercept - line.slope * epochs
        spread = math.sqrt((off**2).sum() / (len(behind) - 2))
        gained = min(line.slope, 0.0) * (self._epochs - 1 - epochs.mean())
        # The value to beat is the best's last one, which was chosen for its luck.
        luck = max(0.0, best[-self._window :].mean() - best[-1])
        # A few epochs may lie on a line by luck. Two runs have the noise of both.
        noise = max(spread, math.sqrt(2) * self._noise)
        return behind.mean() + luck + _KEPT_SPEED * gained > _WORSE * noise

    def _measure(self, control: Sequence[float] | None) -> None:
        """Find out from the control's curve from when on trials may be stopped, and say so."""
        self._measured = True
        if control is None:
            self._say("pruner paired: no dropout has no whole curve, so no trial is stopped early")
            return
        self._noise = noise_of(control)
        self._onset = onset(control, self._noise)
        if self._onset is None:
            self._say(
                "pruner paired: no dropout improves up to its last epoch, so no trial is stopped "
                "early; more epochs would show whether dropout helps"
            )
        else:
            self._say(
                f"pruner paired: no dropout stops improving at epoch {self._onset} of "
                f"{self._epochs}; from there on trials that cannot become the best are stopped"
            )


def noise_of(curve: Sequence[float]) -> float:
    """Return the standard deviation of a curve's values around its course.

    That of the steps between neighbouring epochs over the square root of 2, by the median
    absolute deviation: the large steps of the first epochs do not count.
    """
    steps = np.diff(np.asarray(curve, dtype=float))
    if not steps.size:
        return 0.0
    return float(median_abs_deviation(steps, scale="normal")) / math.sqrt(2)


def onset(curve: Sequence[float], noise: float) -> int | None:
    """Return the epoch, from 1, at which a curve to be minimized stops improving.

    The first at which the smoothed curve is within `noise` of its lowest value; None if that
    is in the last tenth, for then nobody knows whether it would have gone on.
    """
    values = np.asarray(curve, dtype=float)
    width = max(3, round(_SMOOTH * len(values))) | 1
    smoothed = uniform_filter1d(values, width, mode="nearest")
    first = int(np.argmax(smoothed <= smoothed.min() + noise)) + 1
    return first if first <= len(values) - width // 2 - 1 else None
