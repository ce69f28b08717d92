"""droptune: does dropout help this PyTorch model, and if so which, where and how much?

The table of contents. Each public name is loaded on first use, so that `import droptune`
costs nothing and the command line's listings need neither torch nor Optuna.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_HOME = {
    "ConsistencyLoss": "droptune.trainers",
    "Data": "droptune.data",
    "DroptuneError": "droptune.errors",
    "KINDS": "droptune.kinds",
    "Plan": "droptune.plan",
    "Result": "droptune.answer",
    "Site": "droptune.sites",
    "Space": "droptune.space",
    "Study": "droptune.study",
    "TableTrainer": "droptune.trainers",
    "Term": "droptune.consistency",
    "Trainer": "droptune.trainers",
    "advance": "droptune.install",
    "apply": "droptune.install",
    "find_fixed": "droptune.fixed",
    "find_sites": "droptune.sites",
    "read": "droptune.install",
    "remove": "droptune.install",
}

__all__ = sorted(_HOME, key=str.casefold)

try:
    __version__ = version("droptune")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'droptune' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
