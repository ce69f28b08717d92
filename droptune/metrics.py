"""Metrics of a whole split, beside the mean loss: what they need, and which way is better.

A metric is computed from all outputs of a split at once, on the CPU, by scikit-learn; the
calibration error, which it does not have, by a few lines here. Pure functions of arrays.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from droptune.errors import StudyError

PREFIX = "val_"
#: A label of a token that nothing counts, such as of padding: torch's `ignore_index`.
IGNORED = -100
#: Bins of the calibration error.
BINS = 15


@dataclass(frozen=True, eq=False)
class Outputs:
    """A model's outputs for a split, with the targets, in one of a few plain forms.

    Attributes:
        form: "binary": logits of class 1 and labels, both `(n,)`; "classes": logits
            `(n, classes)` and labels `(n,)`; "labels": logits and zeros or ones, both
            `(n, labels)`; "numbers": both `(n, columns)`.
        output: of the model.
        target: of the split.
    """

    form: str
    output: np.ndarray
    target: np.ndarray

    @cached_property
    def predicted(self) -> np.ndarray:
        """The labels, or the numbers, that the outputs stand for; shaped as the target."""
        if self.form == "classes":
            return self.output.argmax(1)
        return self.output if self.form == "numbers" else (self.output > 0).astype(np.int64)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Of the classes, `(n, classes)`, or of each label."""
        from scipy.special import expit, softmax

        output = self.output.astype(np.float64)
        return softmax(output, axis=1) if self.form == "classes" else expit(output)

    @property
    def two(self) -> bool:
        """Whether the choice is between two classes; class 1 is then the positive one."""
        return self.form == "binary" or (self.form == "classes" and self.output.shape[1] == 2)


@dataclass(frozen=True)
class Metric:
    """A metric of a whole split.

    Attributes:
        name: without a prefix for the split.
        compute: outputs -> value; or of the user's own, (output, target) -> value.
        forms: of `Outputs` that it is defined on; None: a function of the user's own.
        maximize: whether higher is better; None: only the user knows.
    """

    name: str
    compute: Callable[..., float]
    forms: tuple[str, ...] | None
    maximize: bool | None


def _accuracy(it: Outputs) -> float:
    return float((it.predicted == it.target).mean())


def _balanced_accuracy(it: Outputs) -> float:
    from sklearn.metrics import balanced_accuracy_score

    return balanced_accuracy_score(it.target, it.predicted)


def _f1(it: Outputs) -> float:
    """Of two classes that of class 1, else the plain mean over classes (or labels)."""
    from sklearn.metrics import f1_score

    average = "binary" if it.two else "macro"
    return f1_score(it.target, it.predicted, average=average, zero_division=0)


def _auroc(it: Outputs) -> float:
    """Of two classes that of class 1, else the mean of one against the rest.

    Classes without a sample, for which it is not defined, are left out of the mean.
    """
    from sklearn.metrics import roc_auc_score

    if it.two:
        # Logits and not probabilities: these are all 1 where a network is very sure.
        score = it.output if it.form == "binary" else it.output[:, 1] - it.output[:, 0]
        return roc_auc_score(it.target, score)
    truth, score = it.target, it.probabilities
    if it.form == "classes":
        truth = it.target[:, None] == np.arange(score.shape[1])
    both = truth.any(0) & ~truth.all(0)
    return roc_auc_score(truth[:, both], score[:, both], average="macro")


def _r2(it: Outputs) -> float:
    """The plain mean over columns."""
    from sklearn.metrics import r2_score

    return r2_score(it.target, it.output)


def _rmse(it: Outputs) -> float:
    """Of all values together: the root of the loss "mse"."""
    from sklearn.metrics import root_mean_squared_error

    return root_mean_squared_error(it.target.reshape(-1), it.output.reshape(-1))


def _calibration_error(it: Outputs) -> float:
    """The expected calibration error: the mean of |accuracy - confidence| over bins.

    Samples are sorted by the probability of the predicted class and cut into 15 bins of
    equal numbers (Nguyen & O'Connor 2015, https://arxiv.org/abs/1508.05154; bins of equal
    width, as in Guo et al. 2017, https://arxiv.org/abs/1706.04599, are almost empty for a
    sure network). Also a calibrated model scores above 0, by the noise of the bins, so
    values compare on one split alone.
    """
    sure = it.probabilities
    confidence = np.maximum(sure, 1 - sure) if it.form == "binary" else sure.max(1)
    right = it.predicted == it.target
    order = np.argsort(confidence, kind="stable")
    gaps = [
        abs(right[rows].mean() - confidence[rows].mean()) * len(rows)
        for rows in np.array_split(order, min(BINS, len(order)))
    ]
    return float(sum(gaps) / len(order))


_SINGLE = ("binary", "classes")
_ANY = (*_SINGLE, "labels")
METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", _accuracy, _ANY, True),
        Metric("balanced_accuracy", _balanced_accuracy, _SINGLE, True),
        Metric("f1", _f1, _ANY, True),
        Metric("auroc", _auroc, _ANY, True),
        Metric("r2", _r2, ("numbers",), True),
        Metric("rmse", _rmse, ("numbers",), False),
        Metric("calibration_error", _calibration_error, _SINGLE, False),
    )
}
NAMES = tuple(f"{PREFIX}{name}" for name in ("loss", *METRICS))


# Names and directions


def own(function: Callable) -> Metric:
    """Return a user's function (output, target) -> float as a metric, by its name."""
    name = getattr(function, "__name__", type(function).__name__).strip("<>")
    return Metric(name.removeprefix(PREFIX), function, None, None)


def full_name(asked: str | Callable) -> str:
    """Return the name under which a metric is recorded, such as "val_f1"."""
    name = own(asked).name if callable(asked) else asked.strip().removeprefix(PREFIX)
    return f"{PREFIX}{name}"


def maximizes(objective: str) -> bool:
    """Tell whether higher is better, as far as a name tells it."""
    metric = METRICS.get(objective.removeprefix(PREFIX))
    return bool(metric.maximize) if metric else "accuracy" in objective


def asked_for(objective: str, more: Sequence[str | Callable]) -> tuple[Metric, ...]:
    """Return the metrics that a study records beside the loss, each once.

    Args:
        objective: the metric that decides, by its full name.
        more: others, by name or as functions; the objective is among them if it is one.
    """
    known = METRICS | {m.name: m for m in map(own, filter(callable, more))}
    names = [full_name(one).removeprefix(PREFIX) for one in (objective, *more)]
    return tuple(known[name] for name in dict.fromkeys(names) if name != "loss")


def function_of(objective: str, more: Sequence[str | Callable]) -> Callable | None:
    """Return the user's function that has the objective's name, or None."""
    return next((f for f in more if callable(f) and full_name(f) == objective), None)


def check_asked(
    objective: Any, direction: str | None, more: Any, trains_itself: bool = False
) -> None:
    """Check the metrics of a study by their names, before it is known what it trains on.

    Args:
        objective: a name or a function.
        direction: "minimize", "maximize" or None.
        more: names and functions.
        trains_itself: the study has a training loop of its own, which yields its metrics.

    Raises:
        StudyError: a name is unknown or stands for two metrics, or the direction contradicts.
    """
    if not isinstance(more, Sequence) or isinstance(more, str):
        raise StudyError(f"metrics {more!r}: give a list, such as ['val_f1']")
    if trains_itself:
        return _check_yielded(objective, more)
    functions = [one for one in (objective, *more) if callable(one)]
    names = {full_name(function) for function in functions}
    for what, one in [("objective", objective), *(("metrics", one) for one in more)]:
        if not callable(one) and not (isinstance(one, str) and one.strip()):
            raise StudyError(f"{what} {one!r}: give a name, or a function (output, target)")
        if not callable(one) and full_name(one) not in (*NAMES, *names):
            raise StudyError(
                f"unknown {what} {one!r}; allowed: {', '.join(NAMES)}, or a function "
                "(output, target) of numpy arrays"
            )
    if len(names) < len(set(functions)) or names & {*NAMES}:
        raise StudyError(
            f"metrics {', '.join(sorted(map(full_name, functions)))}: a name stands for two of "
            "them, or for one of droptune's; rename the function"
        )
    _check_direction(objective, direction, names)


def _check_yielded(objective: Any, more: Sequence) -> None:
    if not isinstance(objective, str) or not objective.strip():
        raise StudyError(f"objective {objective!r}: give the name of a metric that train= yields")
    if more:
        raise StudyError("metrics is for droptune's own training; let train= yield them")


def _check_direction(objective: str | Callable, direction: str | None, own_names: set) -> None:
    name = full_name(objective)
    if name in own_names:
        if direction is None:
            raise StudyError(
                f"objective {name!r} is a function of your own; say whether higher is better: "
                "direction='maximize' or 'minimize'"
            )
        return
    right = "maximize" if maximizes(name) else "minimize"
    if direction not in (None, right):
        raise StudyError(
            f"direction {direction!r} contradicts objective {name!r}, of which "
            f"{'higher' if right == 'maximize' else 'lower'} is better; leave direction out"
        )


# Values


def form_of(loss: str | Callable, output: tuple[int, ...], target: np.ndarray) -> str | None:
    """Return the form of `Outputs` that a task's outputs have, or None where none is known.

    A loss of the user's own says nothing of outputs, so their shape must: integer targets
    with one column of outputs a class are classes, floats of the targets' shape numbers.

    Args:
        loss: a name, or a function.
        output: shape of the outputs, `(n, ...)`; a last axis of 1 that targets lack is gone.
        target: `(n, ...)`.
    """
    if loss == "binary_cross_entropy":
        if not np.isin(target, (0, 1)).all():
            return None
        return "labels" if math.prod(target.shape[1:]) > 1 else "binary"
    if isinstance(loss, str):
        return "classes" if loss == "cross_entropy" else "numbers"
    if np.issubdtype(target.dtype, np.integer):
        columns = len(output) == target.ndim + 1 and output[1] > target.max(initial=0)
        return "classes" if columns and output[1] > 1 else None
    return "numbers" if output == target.shape else None


def outputs_of(form: str, output: np.ndarray, target: np.ndarray) -> Outputs:
    """Return outputs in their form; sequences of labels are so many samples as labels count."""
    if form == "classes":
        rows, labels = np.moveaxis(output, 1, -1).reshape(-1, output.shape[1]), target.reshape(-1)
        counts = labels != IGNORED
        return Outputs(form, rows[counts], labels[counts])
    if form == "binary":
        return Outputs(form, output.reshape(-1), target.reshape(-1).astype(np.int64))
    columns = len(target), -1
    whole = target.astype(np.int64) if form == "labels" else target
    return Outputs(form, output.reshape(columns), whole.reshape(columns))


def squeezed(output: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return outputs without a last axis of 1 that targets lack: it would broadcast."""
    column = output.ndim == target.ndim + 1 and output.shape[-1] == 1
    return output.reshape(target.shape) if column else output


def scores(
    metrics: Iterable[Metric],
    loss: str | Callable,
    output: np.ndarray,
    target: np.ndarray,
    prefix: str = PREFIX,
) -> dict[str, float]:
    """Return name -> value on a split.

    A network that has diverged, with an output that is not finite, scores NaN throughout.

    Args:
        metrics: what is asked for, defined on this task (`why_undefined`).
        loss: of the task.
        output: of the model for the whole split, `(n, ...)`.
        target: of the split.
        prefix: of the names.
    """
    from sklearn import config_context

    metrics, output = list(metrics), squeezed(output, target)
    if not np.isfinite(output).all():
        return {f"{prefix}{metric.name}": math.nan for metric in metrics}
    form = form_of(loss, output.shape, target)
    seen = None if form is None else outputs_of(form, output, target)
    result = {}
    # All is finite and of one shape, so scikit-learn need not look again.
    with warnings.catch_warnings(), config_context(assume_finite=True):
        warnings.simplefilter("ignore")
        for metric in metrics:
            given = (output, target) if metric.forms is None else (seen,)
            result[f"{prefix}{metric.name}"] = float(metric.compute(*given))
    return result


def why_undefined(
    metric: Metric, loss: str | Callable, output: np.ndarray, target: np.ndarray
) -> str | None:
    """Return why a metric says nothing on a split, and what to use instead; None: it does.

    Args:
        metric: of droptune's.
        loss: of the task.
        output: as any model of the task gives it for the split, `(n, ...)`.
        target: of the split.
    """
    output = squeezed(output, target)
    form = form_of(loss, output.shape, target)
    if form is None:
        return (
            f"cannot tell what outputs {output.shape} mean for targets {target.shape} under this "
            "loss; use val_loss, or a function (output, target)"
        )
    if form not in metric.forms:
        fitting = [f"{PREFIX}{m.name}" for m in METRICS.values() if form in m.forms]
        what = {"numbers": "numbers", "labels": "several labels a sample"}.get(form, "classes")
        return f"is not defined on targets that are {what}; use {_listed('val_loss', *fitting)}"
    seen = outputs_of(form, output, target)
    if metric.name == "r2" and (np.ptp(seen.target, axis=0) == 0).any():
        return "is not defined where all targets are equal; use val_rmse or val_loss"
    if metric.name in ("balanced_accuracy", "f1", "auroc") and _is_one_class(seen):
        return (
            f"says nothing where all samples have one label ({seen.target.flat[0]}); draw the "
            "splits anew (Data.split keeps the shares of classes), or use val_loss"
        )
    return None


def _is_one_class(seen: Outputs) -> bool:
    """Tell whether nothing can be told apart: one class alone, or so for every label."""
    columns = seen.target.reshape(len(seen.target), -1)
    return bool((np.ptp(columns, axis=0) == 0).all())


def _listed(*names: str) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def by_name(columns: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """Return name -> values, of dicts with equal names."""
    rows = list(columns)
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
