"""Ends a process before or after its n-th commit, or its n-th change of a file; run inside it.

The commits of all connections count, whoever opened them: droptune's store or Optuna.
"""

import os
import pathlib
from collections.abc import Callable
from typing import Any

from sqlalchemy.engine.default import DefaultDialect

CODE = 9


class _Points:
    """Counts points as they are passed, and ends the process at one of them."""

    def __init__(self, at: int, side: str, log: str | None) -> None:
        self._at, self._side, self._log, self._passed = at, side, log, 0

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same, and is a point."""

        def pointed(*arguments: Any, **options: Any) -> Any:
            self._passed += 1
            here = self._passed == self._at
            if self._log is not None:
                pathlib.Path(self._log).write_text(str(self._passed))
            if here and self._side == "before":
                os._exit(CODE)
            result = work(*arguments, **options)
            if here and self._side == "after":
                os._exit(CODE)
            return result

        return pointed


def at_commit(at: int = 0, side: str = "before", log: str | None = None) -> None:
    """End this process just before, or just after, its n-th commit.

    Args:
        at: n, from 1; 0: never.
        side: "before" or "after".
        log: a file for the number of commits so far.
    """
    points = _Points(at, side, log)
    # What psycopg's and sqlite's dialects have in common. A commit of nothing counts, too.
    DefaultDialect.do_commit = points.around(DefaultDialect.do_commit)


def at_file(at: int = 0, side: str = "before", log: str | None = None) -> None:
    """End this process just before, or just after, it renames or removes its n-th file.

    Those are the moments in which a checkpoint appears or an old one goes; one is written after
    every epoch.
    """
    from droptune import keeping

    keeping.Keeping.due = property(lambda self: True)
    points = _Points(at, side, log)
    pathlib.Path.replace = points.around(pathlib.Path.replace)
    pathlib.Path.unlink = points.around(pathlib.Path.unlink)
