"""Does the model fit the task? Asked once, before a study starts."""

import re
from hashlib import sha256

import torch
from torch import Tensor, nn

from droptune.errors import ModelError, TrainingError
from droptune.trainers.base import (
    Task,
    build,
    checked_output,
    first_line,
    kept_generators,
    mean_loss,
)


def pick_device(device: str) -> torch.device:
    """Return a device; "auto" is the first GPU if there is one, else the CPU.

    Raises:
        TrainingError: torch does not have such a device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(
            f"device {device!r} cannot be used here ({first_line(error)}); "
            "allowed: auto, cpu, cuda, cuda:0 ..."
        ) from error


def check_fit(task: Task) -> nn.Module:
    """Check that model, data and loss go together, on one small batch in eval mode.

    Returns:
        A freshly built model.

    Raises:
        ModelError: the model fails on the data, or its output does not fit the targets.
    """
    model = build(task.model, seed=0)
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError("the model has no parameter to train; return one with requires_grad=True")
    x, y = task.data.train.x[:2], task.data.train.y[:2]
    with torch.random.fork_rng(), torch.no_grad():
        try:
            output = model.eval()(x)
        except Exception as error:
            raise ModelError(
                f"the model fails on a batch of shape {tuple(x.shape)} of the data "
                f"({type(error).__name__}: {first_line(error)}); make its first layer fit the data"
            ) from error
        if not isinstance(output, Tensor):
            raise ModelError(
                f"the model returns a {type(output).__name__}; return one tensor, or train it "
                "with your own loop (train=)"
            )
        _check_classes(task, output)
        _check_loss(task, output, y)
    return model.train()


def _check_classes(task: Task, output: Tensor) -> None:
    classes = task.data.classes
    if task.loss == "cross_entropy" and classes is not None and output.dim() > 1:
        if output.shape[1] < classes:
            raise ModelError(
                f"the model has {output.shape[1]} outputs and the labels go up to {classes - 1}; "
                f"give its last layer {classes} outputs"
            )


def _check_loss(task: Task, output: Tensor, y: Tensor) -> None:
    try:
        loss = mean_loss(task.loss)(output, y)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"the loss fails on outputs {tuple(output.shape)} and targets {tuple(y.shape)} "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        raise ModelError("the loss must return the batch's mean as a scalar tensor")


def metric_names(task: Task) -> tuple[str, ...]:
    """Return the names of the metrics that the task's trainers score on the validation split."""
    labels = task.loss == "cross_entropy" and task.data.train.y.dim() == 1
    classes = labels or task.loss == "binary_cross_entropy"
    return ("val_loss", "val_accuracy") if classes else ("val_loss",)


def fingerprint(model: nn.Module) -> str:
    """Return hex digits that change with a model's structure (not with its weights)."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model))  # addresses differ by process
    shapes = [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in model.state_dict().items()]
    return sha256("\n".join([text, *shapes]).encode()).hexdigest()
