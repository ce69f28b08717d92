"""What a worker runs for others: which code it imports, and which settings it takes.

Whoever can write to the database can queue a study, and running one runs its code. So a worker
imports only from the packages that it was started with, and takes from the database nothing but
names of modules, numbers and words of known settings.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from droptune.errors import DroptuneError


class NotAllowed(DroptuneError):
    """A worker may not run a submitted study; another worker may."""


def module_of(target: Any) -> str | None:
    """Return the module that a target names; None: it names a file, or nothing importable."""
    if not isinstance(target, str):
        return None
    module, colon, name = target.partition(":")
    parts = module.split(".")
    dotted = all(part.isidentifier() for part in parts) and parts[-1].lower() != "py"
    return module if dotted and (name.isidentifier() or not colon) else None


def check_target(target: str, allow: Sequence[str], files: bool = False) -> None:
    """Check that a worker may import a target.

    Args:
        target: as it was submitted.
        allow: packages and modules; each allows itself and what is inside it.
        files: whether files are allowed, wherever they are.

    Raises:
        NotAllowed: it may not; the message says what to add.
    """
    module = module_of(target)
    if module is None:
        if files:
            return
        raise NotAllowed(
            f"target {target!r} is no package.module[:name]; this worker imports modules alone, "
            "files only with --allow-files"
        )
    parts = module.split(".")
    if not any(parts[: len(own)] == own for own in (prefix.split(".") for prefix in allow)):
        raise NotAllowed(
            f"target {target!r} is not in what this worker may import ({', '.join(allow) or 'none'}"
            f"); if you trust it, start a worker with --allow {parts[0]}"
        )


def check_prefixes(allow: Sequence[str]) -> None:
    """Check that each prefix is the dotted name of a package or module.

    Raises:
        NotAllowed: one is not.
    """
    for prefix in allow:
        if not all(part.isidentifier() for part in prefix.split(".")):
            raise NotAllowed(f"--allow {prefix!r}: give the name of a package or module")


def check_options(options: Any) -> dict[str, Any]:
    """Return the settings of a submission.

    Raises:
        NotAllowed: one is unknown, or of another type; none of them may name a file, a database
            or code.
    """
    if not isinstance(options, Mapping):
        raise NotAllowed(f"options are a {type(options).__name__}, not named settings")
    for name, value in options.items():
        fits = _SETTINGS.get(name)
        if fits is None:
            raise NotAllowed(f"option {name!r} is not taken from a queue; {_KNOWN}")
        if not fits(value):
            said = repr(value)
            said = "a URL, which may hold a password" if "://" in said else said
            raise NotAllowed(f"option {name!r} has a value that is not allowed: {said}")
    return dict(options)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _word(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 512


def _words(value: Any) -> bool:
    return isinstance(value, list) and all(map(_word, value))


def _duration(value: Any) -> bool:
    return _word(value) or _whole(value) or isinstance(value, float)


def _studies(value: Any) -> bool:
    """Names of studies of the same store: a URL would be another, or a file."""
    return _words(value) and not any("://" in source for source in value)


_SETTINGS = {
    "trials": _whole,
    "time": _duration,
    "trial_time": _duration,
    "hang_time": _duration,
    "gpu_memory": lambda value: isinstance(value, float),
    "seed": _whole,
    "objective": lambda value: _word(value) or _words(value),
    "sampler": _word,
    "strategy": _word,
    "pruner": _word,
    "encoding": _word,
    "tune": _words,
    "warm_start": _studies,
    "slots": lambda value: _whole(value) or value == "auto",
    "trainer": lambda value: value in ("auto", "fused", "serial"),
    "patience": _whole,
    "confirm_blocks": _whole,
    "recalibrate": lambda value: isinstance(value, bool),
}
_KNOWN = f"known: {', '.join(_SETTINGS)}"
