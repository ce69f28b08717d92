"""Where memory ends: a plan that does not fit alone is told apart from a device that is full."""

from droptune.errors import TrainingError
from droptune.plan import Plan
from droptune.trainers import Trainer, is_out_of_memory

NO_ROOM = "out of memory with one member at a time: this plan does not fit"
"""The message of a run whose plan does not fit even alone."""


def no_room_at_all() -> TrainingError:
    """Return the error that says that nothing fits."""
    return TrainingError(
        "out of memory with one member at a time; take a smaller batch_size or "
        "model, or another device"
    )


def check_room(trainer: Trainer, seed: int, clock: int) -> None:
    """Train no dropout for an epoch, to know whether it was a plan that took the memory.

    Another program may have taken it meanwhile. If that made every plan that is tried one that
    does not fit, a study would be over in a moment, and for good.

    Args:
        trainer: of one slot, which is left empty.
        seed: of the block.
        clock: of the block.

    Raises:
        TrainingError: not even no dropout fits.
    """
    trainer.begin(seed, clock)
    try:
        trainer.start(0, Plan.none())
        trainer.epoch()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise no_room_at_all() from error
    trainer.begin(seed, clock)
