"""One objective or several: what was asked for, and what does not go together with several.

A study of one objective keeps it as a name, one of several as a tuple of names; the first one
leads where a single figure is shown.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from droptune.errors import StudyError
from droptune.metrics import check_asked, full_name, maximizes
from droptune.search import SEVERAL

_DIRECTIONS = ("minimize", "maximize")


def each(value: Any) -> tuple[Any, ...]:
    """Return one value, or a sequence of them, as a tuple; a text is one."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    return tuple(value) if several else (value,)


def one_or_all(values: Sequence[Any]) -> Any:
    """Return the only value as it is, several as a list."""
    return values[0] if len(values) == 1 else list(values)


def directions(names: Sequence[str], asked: Any) -> tuple[str, ...]:
    """Return what each objective is to do, `minimize` or `maximize`.

    Args:
        names: of the objectives.
        asked: a direction, None, or one of both for each objective. None: as the name says.
    """
    given = each(asked) if asked is not None else (None,) * len(names)
    known = ("maximize" if maximizes(name) else "minimize" for name in names)
    return tuple(one or own for one, own in zip(given, known, strict=True))


def check(settings: Mapping[str, Any]) -> None:
    """Check objectives and directions of a `Study`, and what several of them rule out.

    Raises:
        StudyError: one is not allowed; the first is named.
    """
    objectives, direction = each(settings["objective"]), settings["direction"]
    if not objectives:
        raise StudyError("objective (): give a metric, such as 'val_loss', or several")
    given = each(direction) if direction is not None else (None,) * len(objectives)
    for one in given:
        if one is not None and (not isinstance(one, str) or one not in _DIRECTIONS):
            raise StudyError(f"unknown direction {one!r}; allowed: {', '.join(_DIRECTIONS)}")
    if len(given) != len(objectives):
        raise StudyError(
            f"direction {direction!r}: there are {len(objectives)} objectives; give one for each, "
            "such as ('minimize', None), or leave direction out where names say it"
        )
    own_loop = settings["train"] is not None
    trains_itself, more = own_loop or not isinstance(settings["trainer"], str), settings["metrics"]
    for one, its in zip(objectives, given, strict=True):
        check_asked(one, its, more, trains_itself)
        if callable(one):  # of two functions with one name the second is refused
            more = (*more, one)
    names = list(objectives) if own_loop else [full_name(one) for one in objectives]
    if twice := [name for name in names if names.count(name) > 1]:
        raise StudyError(f"objective {twice[0]!r} is given twice; give each objective once")
    if len(objectives) > 1:
        _check_several(settings)


def _check_several(settings: Mapping[str, Any]) -> None:
    """Check that nothing was asked for that takes one objective to say which trial is better."""
    refused = {
        "pruner": (settings["pruner"] != "none", "take pruner 'none'"),
        "strategy": (settings["strategy"] != "search", "take strategy 'search'"),
        "encoding": (settings["encoding"] == "auto", "take encoding 'shape'"),
        "patience": (settings["patience"] > 0, "leave patience out"),
        "sampler": (settings["sampler"] not in SEVERAL, f"take one of {', '.join(SEVERAL)}"),
    }
    for what, (is_refused, instead) in refused.items():
        if is_refused:
            raise StudyError(
                f"{what} {settings[what]!r} follows a single objective, and there are several: "
                f"{', '.join(map(full_name, each(settings['objective'])))}; {instead}"
            )
    if settings["margin"] is not None:
        raise StudyError(
            f"margin {settings['margin']!r} is in the unit of one objective, and there are several;"
            " leave it out, it is then 1 % of the mean of each without dropout"
        )
