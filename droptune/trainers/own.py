"""A trainer of the user's own: made by a function, and checked before it is used."""

from collections.abc import Callable
from typing import Any

from droptune.errors import DroptuneError, TrainingError
from droptune.trainers.base import Task, Trainer, first_line

#: What the loop uses of a trainer.
_USED = (
    *("name", "slots", "device", "clock", "begin", "start", "copy"),
    *("epoch", "test", "fit", "reliability", "stop"),
)


def make_own(maker: Callable[..., Any], task: Task, slots: int | None, device: Any) -> Trainer:
    """Return the trainer that `Study(trainer=...)` makes.

    Args:
        maker: the user's function.
        task: what is trained.
        slots: the most members at once; None: as many as the trainer likes.
        device: where to train.

    Raises:
        TrainingError: the function fails, or what it returns is no trainer.
    """
    try:
        trainer = maker(task, slots, device)
    except DroptuneError:
        raise
    except Exception as error:
        raise TrainingError(
            f"trainer= raised {type(error).__name__}: {first_line(error)}; it is called as "
            "trainer(task, slots, device), with slots None where it may choose"
        ) from error
    missing = [name for name in _USED if not hasattr(trainer, name)]
    if missing:
        raise TrainingError(
            f"trainer= returns a {type(trainer).__name__}, which lacks {', '.join(missing)}; "
            "return what droptune.Trainer describes, or take TableTrainer.of(outcome)"
        )
    return trainer
