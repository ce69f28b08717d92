"""Are a study's settings allowed? Asked when it is defined, before anything is built."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from droptune.data import Data
from droptune.encodings import ENCODINGS
from droptune.errors import StudyError
from droptune.objectives import check as check_objectives
from droptune.search import PAIRED, PRUNERS, SAMPLERS
from droptune.space import NO_TERM
from droptune.trainers import TRAINERS

STRATEGIES = ("search", "pbt")

_CHOICES = {
    "sampler": SAMPLERS,
    "pruner": PRUNERS,
    "strategy": STRATEGIES,
    "encoding": ENCODINGS,
}
_LONGEST_NAME = 512
_LEAST = {
    "trials": 1,
    "epochs": 1,
    "batch_size": 1,
    "confirm_blocks": 0,
    "finalists": 1,
    "patience": 0,
    "seed": 0,
}


def check(settings: Mapping[str, Any]) -> None:
    """Check the fields of a `Study`, each by itself; what they do together shows later.

    Raises:
        StudyError: one is not allowed; the first is named.
    """
    for what in ("name", "device"):
        value = settings[what]
        if not isinstance(value, str) or not value.strip():
            raise StudyError(f"{what} {value!r}: give a text that is not empty")
    _check_trainer(settings["trainer"], settings["train"])
    _check_name(settings["name"])
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
    _check_names("tune", settings["tune"], ["lr", "weight_decay"])
    if settings["warm_start"] is not None:
        _check_names("warm_start", settings["warm_start"], ["digits"])
    _check_task(settings)
    _check_tune(settings)
    check_objectives(settings)
    _check_strategy(settings)
    for what in ("time", "trial_time", "hang_time"):
        seconds(settings[what], what)
    share = settings["gpu_memory"]
    if share is not None and not (_is_number(share) and 0 < share <= 1):
        raise StudyError(f"gpu_memory {share!r}: a share above 0 and up to 1 is needed, as 0.5")
    if settings["pruner"] != "none" and not rungs(settings["epochs"], settings["pruner"]):
        raise StudyError(
            f"pruner {settings['pruner']!r} compares trials before the last epoch, and epochs is "
            f"{settings['epochs']}; train for 2 or more, or take pruner 'none'"
        )


def _check_name(name: str) -> None:
    """Check that every database can hold a name; Optuna's column has 512 characters."""
    if len(name) > _LONGEST_NAME:
        raise StudyError(
            f"name {name[:20]!r}... has {len(name)} characters; give at most {_LONGEST_NAME}"
        )
    if "\0" in name or any("\ud800" <= character <= "\udfff" for character in name):
        raise StudyError(f"name {name!r}: give a text without NUL and halves of characters")


def rungs(epochs: int, pruner: str) -> frozenset[int]:
    """Return the epochs at which a pruner compares trials: an eighth, a quarter, a half.

    `paired` finds its own, and is shown all epochs but the last.
    """
    if pruner == "none":
        return frozenset()
    if pruner == PAIRED:
        return frozenset(range(1, epochs))
    return frozenset(-(-epochs // part) for part in (8, 4, 2)) - {epochs}


def seconds(limit: float | str | None, what: str = "time") -> float | None:
    """Return a limit of time in seconds.

    Args:
        limit: seconds, or text such as "90s", "10m", "1.5h"; None: no limit.
        what: the setting's name; hang_time alone may be 0.

    Raises:
        StudyError: it is neither, or not above 0.
    """
    if limit is None:
        return None
    value = math.nan
    if isinstance(limit, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([smh]?)\s*", limit)
        if match:
            value = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]
    elif isinstance(limit, int | float) and not isinstance(limit, bool):
        value = float(limit)
    never = what == "hang_time" and value == 0
    if not never and not 0 < value < math.inf:
        least = "seconds, 0 for never," if what == "hang_time" else "seconds above 0,"
        raise StudyError(f"{what} {limit!r}: give {least} or text such as 90s, 10m, 2h")
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
    here = train is None and isinstance(settings["trainer"], str)
    if data is None and (here or settings["example"] is None):
        raise StudyError(
            "give data=, or your own train= or trainer= with example= (a batch for the model)"
        )


def _check_trainer(trainer: Any, train: Any) -> None:
    """Check the name of a trainer, or that it is made by a function."""
    if not callable(trainer) and (not isinstance(trainer, str) or trainer not in TRAINERS):
        raise StudyError(
            f"unknown trainer {trainer!r}; allowed: {', '.join(TRAINERS)}, or a function "
            "(task, slots, device) that returns a trainer, such as TableTrainer.of(outcome)"
        )
    if callable(trainer) and train is not None:
        raise StudyError("train= and a trainer of your own are both given; leave one of them out")


def _check_tune(settings: Mapping[str, Any]) -> None:
    """Check that what is tuned can be tuned here."""
    tune, loss = settings["tune"], settings["loss"]
    if tune and settings["train"] is not None:
        raise StudyError(
            f"tune {list(tune)}: train= sets these itself; leave tune out, or train with loss= "
            "and optimizer= instead of train="
        )
    if "label_smoothing" in tune and loss != "cross_entropy":
        raise StudyError(
            f"tune 'label_smoothing': loss {loss!r} has no labels to smooth, only "
            "'cross_entropy' has; leave it out"
        )
    if tune and settings["sampler"] == "grid":
        raise StudyError(
            "sampler 'grid' cannot tune training, a grid over it and dropout is too large; "
            "take sampler 'qmc', or leave tune out"
        )


def _check_strategy(settings: Mapping[str, Any]) -> None:
    """Check that a population can be trained, if there is to be one."""
    if settings["strategy"] != "pbt":
        return
    if settings["train"] is not None:
        raise StudyError(
            "strategy 'pbt' copies members, and train= keeps the state of its training to "
            "itself; take strategy 'search', or train with loss= and optimizer="
        )
    if tuple(settings["schedules"]) != ("constant",):
        raise StudyError(
            f"strategy 'pbt' finds schedules of its own, so it takes none of "
            f"{', '.join(settings['schedules'])}; leave schedules out"
        )
    if settings["pruner"] != "none":
        raise StudyError(
            f"strategy 'pbt' stops trials itself; leave pruner {settings['pruner']!r} out"
        )
    for what, least in (("slots", 5), ("trials", 10), ("epochs", 2)):
        if settings[what] != "auto" and settings[what] < least:
            raise StudyError(
                f"strategy 'pbt' replaces a fifth of its members during training, which takes "
                f"{what} from {least}; it has {settings[what]}"
            )


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
