"""What a user's own code reports of an epoch: a dict of metrics, checked and sorted.

Shared by the trainers that ask such code, of training (function.py) or of a table (table.py).

Metrics whose names begin with "test_" are kept apart and take no part in any choice. A
"train_loss" is shown as such (NaN if there is none); the others are the member's metrics.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from droptune.errors import TrainingError
from droptune.trainers.base import Scores, check_taken, diverged

_TEST = "test_"


def numbers(reported: Any, whose: str) -> dict[str, float]:
    """Return what was reported, as name -> number.

    Args:
        reported: by the user's code.
        whose: who reported it and how, for messages: "train= yielded".

    Raises:
        TrainingError: it is no dict of numbers.
    """
    if not isinstance(reported, Mapping):
        raise TrainingError(
            f"{whose} {type(reported).__name__}; give a dict such as {{'val_loss': 0.1}}"
        )
    result = {}
    for name, value in reported.items():
        try:
            result[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TrainingError(
                f"{whose} {name!r}: {type(value).__name__}, which is not one number"
            ) from error
    return result


def scores_of(reported: Mapping[str, float], seconds: float, failed: str | None) -> Scores:
    """Return the scores of an epoch.

    Args:
        reported: name -> number.
        seconds: the member's share of the epoch's time.
        failed: why the member cannot go on; None: it can, unless a number says otherwise.
    """
    shown = {name: value for name, value in reported.items() if not name.startswith(_TEST)}
    failed = failed or diverged(shown)
    return Scores(shown.pop("train_loss", math.nan), shown, seconds, failed)


def test_scores(reported: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics on the test split."""
    return {name: value for name, value in reported.items() if name.startswith(_TEST)}


class ReportingTrainer(ABC):
    """What the trainers have in common that ask a user's own code; see `Trainer`.

    A member has a plan, its age in epochs, its last metrics, and why it failed.
    """

    def begin(self, seed: int, clock: int = 0) -> None:
        self._seed, self.clock = seed, clock
        self._members: dict[int, Any] = {}

    def epoch(self) -> Mapping[int, Scores]:
        result = {}
        for slot, member in self._members.items():
            started = time.perf_counter()
            self._advance(member)
            seconds = time.perf_counter() - started
            result[slot] = scores_of(member.last or {}, seconds, member.failed)
        self.clock += bool(result)
        return result

    @abstractmethod
    def _advance(self, member: Any) -> None:
        """Ask for one epoch of a member; set its age and last metrics, or why it failed."""

    def test(self) -> Mapping[int, dict[str, float]]:
        return {slot: test_scores(member.last or {}) for slot, member in self._members.items()}

    def fit(self, slot: int) -> dict[str, float]:
        """Return {}: what the user's code trains on is not known."""
        check_taken(slot, self._members)
        return {}

    def reliability(self, slot: int) -> list[list[float]]:
        """Return nothing: what is predicted on which data only the user's code knows."""
        return []
