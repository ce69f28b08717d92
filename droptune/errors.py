"""Every error that droptune raises on purpose; the lowest module of the package.

    DroptuneError
      + TargetError      the file or module that should define a study does not
      + DataError        the data cannot be trained on
      + ModelError       the model builder or the model does not fit the task
      + PlanError        a plan, kind, rate or site is not valid
      + SpaceError       a search space is not valid
      + TrainingError    a trainer cannot go on (not: one member diverged)
      + StudyError       a study is unknown, finished, or was defined otherwise
      + StoreError       the database cannot be used
          + SchemaError      the database is older or newer than this droptune, or not ours
          + TransientError   a server is away or busy for a moment; the same again may work
              + BusyError        it is there, and lets nobody in for now

Each message is one line: what was given, what is allowed, what to do next. The command
line prints it after "Error: " and exits with code 1.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class DroptuneError(Exception):
    """Base of all errors that droptune raises on purpose."""


class TargetError(DroptuneError):
    """The target file or module does not exist, does not import or defines no study."""


class DataError(DroptuneError):
    """The data cannot be trained on."""


class ModelError(DroptuneError):
    """The model builder returns no module, or the module does not fit the data."""


class PlanError(DroptuneError):
    """A plan names an unknown site or kind, or a rate outside [0, 1)."""


class SpaceError(DroptuneError):
    """A search space is empty or asks for something unknown."""


class TrainingError(DroptuneError):
    """A trainer cannot go on; the message names the cause."""


class StudyError(DroptuneError):
    """A study is unknown, already finished, or was stored with another definition."""


class StoreError(DroptuneError):
    """The database cannot be opened, read or written."""


class SchemaError(StoreError):
    """The database's schema is older or newer than this droptune, or not droptune's."""


class TransientError(StoreError):
    """A database server is away or busy for a moment; nothing was stored, or it is not known."""


class BusyError(TransientError):
    """A database server takes no more connections now, or is about to start or to stop."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message that names the known names most like `name`.

    Returns:
        `"; nearest: a, b"`, or all known names (at most ten) when none is alike,
        or `""` when nothing is known.
    """
    names = sorted(known)
    alike = get_close_matches(name, names, n=3, cutoff=0.4)
    if alike:
        return f"; nearest: {', '.join(alike)}"
    return f"; known: {', '.join(names[:10])}" if names else ""
