"""Are a study's settings allowed? Asked when it is defined, before anything is built."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from droptune.data import Data
from droptune.encodings import ENCODINGS
from droptune.errors import StudyError
from droptune.search import PRUNERS, SAMPLERS
from droptune.space import NO_TERM
from droptune.trainers import TRAINERS

_CHOICES = {
    "sampler": SAMPLERS,
    "pruner": PRUNERS,
    "encoding": ENCODINGS,
    "trainer": TRAINERS,
    "direction": ("minimize", "maximize", None),
}
_LEAST = {
    "trials": 1,
    "epochs": 1,
    "batch_size": 1,
    "confirm_blocks": 0,
    "finalists": 1,
    "seed": 0,
}


def check(settings: Mapping[str, Any]) -> None:
    """Check the fields of a `Study`, each by itself; what they do together shows later.

    Raises:
        StudyError: one is not allowed; the first is named.
    """
    for what in ("name", "objective", "device"):
        value = settings[what]
        if not isinstance(value, str) or not value.strip():
            raise StudyError(f"{what} {value!r}: give a text that is not empty")
    store = settings["store"]
    if store is not None and not isinstance(store, str):
        raise StudyError(f"store is a {type(store).__name__}; give a URL: sqlite:///droptune.db")
    for what, allowed in _CHOICES.items():
        if not isinstance(settings[what], str | None) or settings[what] not in allowed:
            names = ", ".join(str(name) for name in allowed if name)
            raise StudyError(f"unknown {what} {settings[what]!r}; allowed: {names}")
    for what, least in _LEAST.items():
        if not _is_whole(settings[what], least):
            raise StudyError(f"{what} {settings[what]!r}: a whole number from {least} is needed")
    _check_certainty(settings["level"], settings["margin"])
    if settings["slots"] != "auto" and not _is_whole(settings["slots"], 1):
        raise StudyError(f"slots {settings['slots']!r}: 'auto' or a whole number from 1 is needed")
    if settings["kinds"] is not None:
        _check_names("kinds", settings["kinds"], ["standard", "gaussian"])
    _check_names("schedules", settings["schedules"], ["constant", "early"])
    _check_names("terms", settings["terms"], ["none", "r_drop"])
    _check_task(settings)
    seconds(settings["time"])
    if settings["pruner"] != "none" and not rungs(settings["epochs"], settings["pruner"]):
        raise StudyError(
            f"pruner {settings['pruner']!r} compares trials before the last epoch, and epochs is "
            f"{settings['epochs']}; train for 2 or more, or take pruner 'none'"
        )


def rungs(epochs: int, pruner: str) -> frozenset[int]:
    """Return the epochs at which a pruner compares trials: an eighth, a quarter, a half."""
    if pruner == "none":
        return frozenset()
    return frozenset(-(-epochs // part) for part in (8, 4, 2)) - {epochs}


def seconds(limit: float | str | None) -> float | None:
    """Return a time budget in seconds.

    Args:
        limit: seconds, or text such as "90s", "10m", "1.5h"; None: no limit.

    Raises:
        StudyError: it is neither, or not above 0.
    """
    if limit is None:
        return None
    value = 0.0
    if isinstance(limit, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([smh]?)\s*", limit)
        if match:
            value = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]
    elif isinstance(limit, int | float) and not isinstance(limit, bool):
        value = float(limit)
    if not 0 < value < math.inf:
        raise StudyError(f"time {limit!r}: give seconds above 0, or text such as 90s, 10m, 2h")
    return value


def _check_task(settings: Mapping[str, Any]) -> None:
    """Check what is trained, on what, and by what."""
    model, data, train = settings["model"], settings["data"], settings["train"]
    built = hasattr(model, "state_dict") and not isinstance(model, type)
    if not callable(model) or built:
        raise StudyError(
            f"model is a {type(model).__name__}; give a function that builds and returns "
            "a new torch.nn.Module, such as model=lambda: MyNet()"
        )
    if data is not None and not isinstance(data, Data):
        raise StudyError(
            f"data is a {type(data).__name__}; give dt.Data(train=(X, y), val=(Xv, yv))"
        )
    if train is not None and not callable(train):
        raise StudyError(
            f"train is a {type(train).__name__}; give a generator function "
            "train(model, *, seed, device) that yields a dict of metrics after each epoch"
        )
    if not isinstance(settings["recalibrate"], bool):
        raise StudyError(f"recalibrate {settings['recalibrate']!r}: True or False is needed")
    if train is not None and settings["recalibrate"]:
        raise StudyError("recalibrate is for droptune's own training; with train= leave it out")
    if train is not None and {*settings["terms"]} != {NO_TERM}:
        raise StudyError(
            f"terms {list(settings['terms'])}: train= computes its own loss, to which droptune "
            "adds nothing; leave terms out, or compute droptune.ConsistencyLoss in train="
        )
    if data is None and (train is None or settings["example"] is None):
        raise StudyError("give data=, or your own train= with example= (a batch for the model)")


def _check_certainty(level: Any, margin: Any) -> None:
    """Check how sure a verdict is to be, and of how much."""
    if not _is_number(level) or not 0.5 <= level < 1:
        raise StudyError(f"level {level!r}: a number from 0.5 and below 1 is needed, as 0.95")
    if margin is not None and not (_is_number(margin) and 0 < margin < math.inf):
        raise StudyError(
            f"margin {margin!r}: a number above 0 is needed, the least improvement worth having "
            "in the objective's unit, or None for 1 % of the mean without dropout"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_names(what: str, names: Any, example: list[str]) -> None:
    listed = isinstance(names, Sequence) and not isinstance(names, str)
    if not listed or not all(isinstance(name, str) for name in names):
        raise StudyError(f"{what} {names!r}: give a list, such as {example}")
