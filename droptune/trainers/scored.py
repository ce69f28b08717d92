"""Metrics of a whole split in a trainer: on outputs that the evaluation has already.

An evaluation goes in batches and keeps the outputs only where a metric is asked for that
needs all of them.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from droptune.data import Split
from droptune.errors import StudyError, TrainingError
from droptune.metrics import PREFIX, Metric, by_name, scores, why_undefined
from droptune.trainers.base import Task, build, checked_output, first_line, kept_generators
from droptune.trainers.ignored import counted

#: Samples whose outputs stand for those of a split when metrics are tried out.
_TRIED = 256


def metric_names(task: Task) -> tuple[str, ...]:
    """Return the names of the metrics that the task's trainers score on the validation split."""
    return (*_by_batches(task), *(f"{PREFIX}{metric.name}" for metric in further(task)))


def further(task: Task) -> tuple[Metric, ...]:
    """Return the metrics that need the outputs of a whole split."""
    known = _by_batches(task)
    return tuple(metric for metric in task.metrics if f"{PREFIX}{metric.name}" not in known)


def _by_batches(task: Task) -> tuple[str, ...]:
    """Return the names of the metrics that are sums over batches, and always scored."""
    labels = task.loss == "cross_entropy" and task.data.train.y.dim() == 1
    classes = labels or task.loss == "binary_cross_entropy"
    return ("val_loss", "val_accuracy") if classes else ("val_loss",)


class KeptOutputs:
    """The outputs of one evaluation, kept where the task asks for metrics of them.

    Args:
        task: what is scored.
    """

    def __init__(self, task: Task) -> None:
        self._task, self._metrics = task, further(task)
        self._parts: list[Tensor] = []

    @property
    def wanted(self) -> bool:
        """Whether there is a metric that needs outputs."""
        return bool(self._metrics)

    def add(self, output: Tensor) -> None:
        """Keep the outputs of a batch, on the CPU."""
        if self.wanted:
            self._parts.append(output.detach().cpu())

    def scores(self, y: Tensor, prefix: str) -> dict[str, float]:
        """Return name -> value, of one member's outputs `samples x ...`."""
        if not self._metrics:
            return {}
        return self._of(torch.cat(self._parts), y, prefix)

    def all_scores(
        self, totals: Mapping[str, Tensor], y: Tensor, prefix: str, rows: Sequence[int | None]
    ) -> dict[str, list[float]]:
        """Return name -> values by row: the means of sums over a split, and the metrics.

        Args:
            totals: name -> sums over a split, one a row.
            y: its targets.
            prefix: of the split.
            rows: the slot of each row.
        """
        # Divided as doubles: equal counts of hits must differ by exactly nothing.
        count = int(counted(self._task.loss, y))
        means = {f"{prefix}_{n}": [v / count for v in t.tolist()] for n, t in totals.items()}
        return means | self.stacked_scores(y, prefix, rows)

    def stacked_scores(
        self, y: Tensor, prefix: str, rows: Sequence[int | None]
    ) -> dict[str, list[float]]:
        """Return name -> values by row, of stacked outputs `rows x samples x ...`.

        Args:
            y: targets, shared.
            prefix: of the split.
            rows: the slot of each row; one without scores NaN, at no cost.
        """
        if not self._metrics:
            return {}
        nothing = {f"{prefix}_{metric.name}": math.nan for metric in self._metrics}
        whole = torch.cat(self._parts, 1)
        return by_name(
            nothing if slot is None else self._of(output, y, prefix)
            for slot, output in zip(rows, whole, strict=True)
        )

    def _of(self, output: Tensor, y: Tensor, prefix: str) -> dict[str, float]:
        given = self._task.loss, _array(output), _array(y)
        try:
            return scores(self._metrics, *given, f"{prefix}_")
        except Exception as error:
            raise TrainingError(_failed(self._metrics, error)) from error


def check_metrics(task: Task) -> None:
    """Try the metrics that are asked for, on outputs of the untrained model.

    Outputs of some samples stand for those of a split, so that a large model is not run on
    all of it on the CPU; the targets are the split's own.

    Raises:
        StudyError: one is not defined on a split, fails, or is not a finite number.
    """
    if not task.metrics:
        return
    data = task.data
    x = data.val.x[:_TRIED]
    with kept_generators(), torch.no_grad():
        some = checked_output(build(task.model, 0).eval()(x))
    if not torch.isfinite(some).all():
        return  # it is said of the first epoch that it diverged
    for split, name in ((data.val, "validation"), (data.test, "test")):
        if split is not None:
            _check_on(task, name, split, some[torch.arange(len(split)) % len(some)])


def _check_on(task: Task, name: str, split: Split, output: Tensor) -> None:
    given = task.loss, _array(output), _array(split.y)
    for metric in task.metrics:
        called = f"{PREFIX}{metric.name}"
        why = None if metric.forms is None else why_undefined(metric, *given)
        if why is not None:
            raise StudyError(f"{called} ({name} split): {why}")
        try:
            value = scores([metric], *given)[called]
        except Exception as error:
            raise StudyError(_failed([metric], error)) from error
        if not math.isfinite(value):
            raise StudyError(
                f"{called} is {value} on outputs of the untrained model ({name} split); let it "
                "return a finite number for any outputs, or take another objective"
            )


def _failed(metrics: Sequence[Metric], error: Exception) -> str:
    names = ", ".join(f"{PREFIX}{metric.name}" for metric in metrics)
    return (
        f"{names} fails ({type(error).__name__}: {first_line(error)}); a metric is called with "
        "numpy arrays (output, target) of a whole split and must return one number"
    )


def _array(tensor: Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
