"""`load_target`: the study that a file or module defines.

A target is `file.py[:name]` or `package.module[:name]`; the name is `study` unless given.
The file is imported, not run as `__main__`, so a part under `if __name__ == "__main__":`
stays out. Only `cli` and those who start workers need this module.
"""

import importlib
import importlib.util
import os
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from droptune.errors import DroptuneError, ModelError, TargetError, nearest
from droptune.frames import of_user, short

if TYPE_CHECKING:
    from droptune.study import Study

DEFAULT = "study"
"""The name of the study in a target that names none."""
_TARGET = re.compile(r"(?P<where>.+\.py|[^:]+)(:(?P<name>[^:]*))?", re.IGNORECASE)


def load_target(target: str) -> "Study":
    """Return the study that a target defines.

    Without a name the study called `study` is taken, else the only one there is.

    Args:
        target: `file.py[:name]`, relative to the working directory, or
            `package.module[:name]`, found from the working directory like `python -m` does.

    Raises:
        TargetError: the file is missing, fails when it is imported, or defines no such study.
    """
    where, name = _parts(target)
    is_file = where.lower().endswith(".py") or "/" in where or os.sep in where
    module = _import_file(where) if is_file else _import_module(where)
    return _pick(module, where, name)


def user_line(error: BaseException) -> str | None:
    """Return the file and line of the user's own code that an error came from, or None.

    The innermost frame counts that lies neither in an installed library nor in droptune.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{short(error.filename)} line {error.lineno}"
    frames = _user_frames(error)
    return f"{short(frames[-1].filename)} line {frames[-1].lineno}" if frames else None


def traceback_of(error: BaseException, whole: bool = False) -> str:
    """Return the traceback of what failed in the user's own model, in the user's frames alone.

    Empty for all other errors, and where torch's layers alone have failed.

    Args:
        error: any.
        whole: return all of any error's traceback instead.
    """
    if whole:
        return "".join(traceback.format_exception(error))
    cause = error.__cause__
    frames = _user_frames(cause) if isinstance(error, ModelError) and cause else []
    if not frames:
        return ""
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(frames)]
    return "".join([*lines, *traceback.format_exception_only(cause)])


def _user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the frames that lie neither in an installed library nor in droptune."""
    return [frame for frame in traceback.extract_tb(error.__traceback__) if of_user(frame)]


def _parts(target: str) -> tuple[str, str | None]:
    """Return where a target points to, and the name in it, if it has one."""
    match = _TARGET.fullmatch(target)
    name = match["name"] if match else None
    if match is None or (name is not None and not name.isidentifier()):
        raise TargetError(
            f"target {target!r} is not understood; give file.py, file.py:name, "
            "package.module or package.module:name"
        )
    return match["where"], name


def _import_file(where: str) -> ModuleType:
    path = Path(where).resolve()
    if not path.is_file() or path.suffix.lower() != ".py":
        raise TargetError(_no_file(where, path))
    _first_on_path(str(path.parent))
    # Under its own name what it defines can be pickled, and imported by a worker, unless the
    # name belongs to a module that is in use.
    loaded = sys.modules.get(path.stem)
    free = loaded is None or getattr(loaded, "__file__", None) == str(path)
    name = path.stem if free else f"droptune_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise _failed(where, error) from error
    return module


def _import_module(where: str) -> ModuleType:
    _first_on_path(str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise _failed(where, error) from error
        known = [path.stem for path in Path.cwd().glob("*.py")]
        raise TargetError(
            f"there is no module {error.name!r} in {str(Path.cwd())!r} or installed"
            f"{nearest(where, known)}"
        ) from None
    except (TypeError, ValueError) as error:  # ".name" or "a..b"
        if user_line(error):
            raise _failed(where, error) from error
        raise TargetError(f"{where!r} is no name of a module; give file.py[:name]") from None
    except (Exception, SystemExit) as error:
        raise _failed(where, error) from error


def _failed(where: str, error: Exception | SystemExit) -> TargetError:
    """Return the one-line error for a file or module that raised while it was imported."""
    line = user_line(error)
    place = f"{where!r} cannot be imported" + (f", {line}" if line else "")
    if isinstance(error, SystemExit):
        advice = 'put what runs it under `if __name__ == "__main__":`'
        return TargetError(f"{place}: it ends the program; {advice}")
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    text = " ".join(said.split())
    kind = "" if isinstance(error, DroptuneError) else f"{type(error).__name__}: "
    return TargetError(f"{place}: {kind}{text}" if text else f"{place}: {type(error).__name__}")


def _pick(module: ModuleType, where: str, name: str | None) -> "Study":
    from droptune.study import Study

    studies = {key: value for key, value in vars(module).items() if isinstance(value, Study)}
    wanted = name or DEFAULT
    if wanted in studies:
        return studies[wanted]
    if name is None and len({id(study) for study in studies.values()}) == 1:
        return next(iter(studies.values()))
    there = f"it defines {', '.join(studies)}" if studies else "it defines no droptune.Study"
    if name is not None:
        found = getattr(module, name, None)
        what = f"has no {name!r}" if found is None else f"has {name!r}, a {type(found).__name__}"
        advice = f"give {where}:{next(iter(studies))}" if studies else f"write {name} = Study(...)"
        raise TargetError(f"{where!r} {what}; {there}, {advice}")
    if studies:
        raise TargetError(f"{where!r} has several studies; {there}, give one as {where}:NAME")
    raise TargetError(f"{where!r} defines no droptune.Study; write study = Study(...) in it")


def _no_file(where: str, path: Path) -> str:
    """Return why there is no file to import, with those of its folder that are like it."""
    if not path.parent.is_dir():
        return f"there is no file {where!r}: folder {str(path.parent)!r} does not exist"
    if path.is_file():
        return f"{where!r} is no Python file; give file.py[:name] or package.module[:name]"
    near = nearest(path.name, [file.name for file in path.parent.glob("*.py")])
    return f"there is no file {where!r} in {str(path.parent)!r}{near}"


def _first_on_path(folder: str) -> None:
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
