"""droptune: does dropout help this PyTorch model, and if so which, where and how much?

The table of contents. Each public name is loaded on first use, so that `import droptune`
costs nothing and the command line's listings need neither torch nor Optuna.
"""

from importlib import import_module
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


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _version()
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'droptune' has no attribute {name!r}")
    globals()[name] = value
    return value


def _version() -> str:
    # It reads the package's metadata as an e-mail, and loads all that this takes.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("droptune")
    except PackageNotFoundError:  # a checkout that is not installed
        return "0+unknown"


def __dir__() -> list[str]:
    return list(__all__)
