"""Whose code runs: the user's own, or that of a library."""

import os
import sys
import sysconfig
import traceback
from pathlib import Path

_LIBRARIES = tuple(
    str(Path(folder).resolve()) + os.sep
    for folder in (
        *map(sysconfig.get_path, ("stdlib", "purelib", "platlib", "scripts")),
        Path(__file__).parent,
    )
)


def of_user(frame: traceback.FrameSummary) -> bool:
    """Tell whether a frame lies neither in an installed library nor in droptune."""
    path = Path(frame.filename)
    ours = str(path.resolve()).startswith(_LIBRARIES) or "site-packages" in path.parts
    return path.is_file() and not ours


def short(filename: str) -> str:
    """Return a path relative to the working directory if it is inside it."""
    path, here = Path(filename).resolve(), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else filename


def place_of(thread: int) -> str | None:
    """Return file, line and function where a thread is now; None: it has ended.

    Of its frames the innermost one of the user's own code counts, or else the innermost of all.

    Args:
        thread: as `threading.get_ident` calls it.
    """
    now = sys._current_frames().get(thread)
    if now is None:
        return None
    frames = traceback.extract_stack(now)
    frame = next((one for one in reversed(frames) if of_user(one)), frames[-1])
    return f"{short(frame.filename)} line {frame.lineno} ({frame.name})"
