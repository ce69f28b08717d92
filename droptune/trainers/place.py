"""Where in the code of a model something went wrong, in words for one line."""

import traceback
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

import torch
from torch.utils import checkpoint

from droptune.trainers.base import first_line

_BELOW = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


def place_of(frames: Iterable[FrameType]) -> str:
    """Return " at FILE line N" of the first frame outside of torch and droptune, or ""."""
    return _first((frame.f_code.co_filename, frame.f_lineno) for frame in frames)


def why(error: BaseException) -> str:
    """Return why a model could not be mapped: what was raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    if any(frame.filename == checkpoint.__file__ for frame in frames):
        return "torch.utils.checkpoint runs a part of its forward"
    where = _first((frame.filename, frame.lineno) for frame in reversed(frames))
    return f"{type(error).__name__}: {first_line(error)}{where}"


def _first(places: Iterable[tuple[str, int | None]]) -> str:
    for filename, line in places:
        if Path(filename).is_file() and not filename.startswith(_BELOW):
            return f" at {Path(filename).name} line {line}"
    return ""
