"""What makes two studies the same, and where a study was made; JSON values for the store."""

import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from droptune.errors import StudyError
from droptune.plan import Plan
from droptune.space import Space

PACKAGES = ("droptune", "torch", "optuna", "sqlalchemy", "numpy")


def check_same(name: str, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Check that a study goes on as it began.

    Args:
        name: of the study.
        stored: the definition in the store, see `Study.definition`.
        given: the definition now.

    Raises:
        StudyError: they differ; the message names in what.
    """
    differs = [key for key in given if key != "training" and stored.get(key) != given[key]]
    was, now = stored.get("training", {}), given["training"]
    differs += [
        f"{key} ({was.get(key)!r}, now {now.get(key)!r})"
        for key in now | was
        if was.get(key) != now.get(key)
    ]
    if differs:
        raise StudyError(
            f"study {name!r} is stored with another {', '.join(differs)}; put it back, "
            "or take a new name (--study NAME)"
        )


def qualified(function: Any) -> str:
    """Return module and name of a function."""
    module = getattr(function, "__module__", "?")
    return f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def environment() -> dict[str, Any]:
    """Return versions and platform; no names of hosts, users or databases."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that is not installed
        return None


def all_kinds(space: Space, fixed: Iterable[Plan]) -> dict[str, tuple[str, ...]]:
    """Return the kinds at each site: those of the space, and those that fixed plans use."""
    kinds = {site: list(names) for site, names in space.kinds.items()}
    for plan in fixed:
        for site, entry in plan.items():
            if entry.kind not in kinds[site]:
                kinds[site].append(entry.kind)
    return {site: tuple(names) for site, names in kinds.items()}
