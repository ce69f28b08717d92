"""Does the model fit the task? Asked once, before a study starts."""

import copy
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


def count_gpus() -> int:
    """Return how many GPUs torch sees; takes no memory on any of them."""
    return torch.cuda.device_count()


def check_fit(task: Task) -> nn.Module:
    """Check that model, data and loss go together, on one small batch in eval mode.

    Where the last batch of an epoch is a single sample, that is tried in training mode:
    a BatchNorm cannot train on it.

    Returns:
        A freshly built model.

    Raises:
        ModelError: the model fails on the data, its output does not fit the targets, or
            the loss gives nothing to train by.
    """
    model = build(task.model, seed=0)
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError("the model has no parameter to train; return one with requires_grad=True")
    x, y = task.data.train.x[:2], task.data.train.y[:2]
    with kept_generators():
        try:
            output = model.eval()(x)
        except Exception as error:
            raise ModelError(
                f"the model fails on a batch of shape {tuple(x.shape)} of the data "
                f"({type(error).__name__}: {first_line(error)}); make its first layer fit the data"
            ) from error
        output = checked_output(output)
        _check_classes(task, output)
        _check_loss(task, output, y)
        _check_last_batch(task, model)
    return model.train()


def _check_classes(task: Task, output: Tensor) -> None:
    classes = task.data.classes
    if task.loss == "cross_entropy" and classes is not None and output.dim() > 1:
        if output.shape[1] < classes:
            raise ModelError(
                f"the model has {output.shape[1]} outputs and the labels go up to {classes - 1}; "
                f"give its last layer {classes} outputs"
            )


def _check_last_batch(task: Task, model: nn.Module) -> None:
    samples = len(task.data.train)
    if samples % task.batch_size != 1 % task.batch_size:
        return
    try:
        copy.deepcopy(model).train()(task.data.train.x[:1])
    except Exception as error:
        raise ModelError(
            f"the last batch of an epoch is one sample ({samples} samples, batch_size "
            f"{task.batch_size}), which the model cannot train on ({first_line(error)}); "
            "choose another batch_size"
        ) from error


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
        got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ModelError(f"the loss must return the batch's mean as a scalar tensor, got {got}")
    if not loss.requires_grad:
        raise ModelError(
            "the loss does not depend on the model's parameters, so nothing can be learned; "
            "look for detach(), no_grad or argmax in the model or the loss"
        )


def fingerprint(model: nn.Module) -> str:
    """Return hex digits that change with a model's structure (not with its weights)."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model))  # addresses differ by process
    shapes = [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in model.state_dict().items()]
    return sha256("\n".join([text, *shapes]).encode()).hexdigest()
