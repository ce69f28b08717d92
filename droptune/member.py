"""A run that trains, and how it ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from droptune.errors import StudyError
from droptune.plan import Plan
from droptune.search import Asked
from droptune.space import CONTROL


@dataclass
class Member:
    """A run that trains now.

    Attributes:
        run: id in the store.
        plan: what it trains.
        arm: "trial", or the name of the plan.
        asked: its trial; None in confirmation.
        clock: of the block, when it entered.
        key: what it is called in a checkpoint.
        epochs: how many it has trained.
        seconds: how long that took.
        metrics: of its last epoch.
    """

    run: int
    plan: Plan
    arm: str
    asked: Asked | None = None
    clock: int = 0
    key: str = ""
    epochs: int = 0
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass
class End:
    """How a member ends: its state in the store, and the objectives if it is complete."""

    slot: int
    state: str
    values: Sequence[float] | None = None
    message: str | None = None
    test: Mapping[str, float] | None = None
    reliability: list[list[float]] | None = None


def key_of(asked: Asked | None, block: int, arm: str) -> str:
    """Return what a member is called in a checkpoint."""
    return f"block {block} {arm}" if asked is None else f"trial {asked.number}"


def too_long(slot: int, member: Member, longest: float, epochs: int) -> End:
    """Return the end of a member that has trained for longer than it may.

    Args:
        slot: of the member.
        member: that has trained.
        longest: seconds that it may take.
        epochs: length of a run.

    Raises:
        StudyError: it is no dropout, with which all is compared.
    """
    took = f"{longest:g} s (it took {member.seconds:.0f} s for {member.epochs} of {epochs} epochs)"
    if member.arm == CONTROL:
        raise StudyError(
            f"no dropout takes longer than the time of a trial, {took}, and all else is compared "
            "with it; raise trial_time (--trial-time), or train for fewer epochs"
        )
    return End(slot, "failed", message=f"stopped: it took longer than {took}")
