"""Checkpoints: the files in which members in training survive the process that trains them.

A checkpoint is two files in a folder of its worker: `000007.safetensors` holds the tensors,
`000007.json` all else, with the checksums of both. Each is written under another name, flushed to
the disk and renamed, the JSON last: what a death cuts short is not there. A reader takes the
newest checkpoint that is whole, and executes nothing of it.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from droptune.errors import StoreError
from droptune.trainers import Saved

#: Version of what the JSON holds.
FORMAT = 1
#: Checkpoints that are kept of a worker: one more than needed, should the newest be damaged.
KEPT = 2
#: The largest JSON that is read, in bytes; that of a thousand members has some megabytes.
MOST_JSON = 64 * 2**20

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
_FILE = re.compile(r"(\d{6,12})\.(json|safetensors)", re.ASCII)
_OS_ERROR = re.compile(r"(?:os error|code:) (\d+)")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
#: How often a folder is made that somebody else removes at that moment.
_TRIES = 10


class Damaged(Exception):
    """A checkpoint cannot be used; the message says why."""


class Checkpoints:
    """The checkpoints of one study's workers, in one folder.

    A name has one writer at a time. Files can be read by the user alone who wrote them.

    Args:
        folder: where they are, a folder for each name in it; made when the first is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def save(self, name: str, saved: Saved, about: Mapping[str, Any]) -> None:
        """Write a new checkpoint, then remove all but the newest two.

        Args:
            name: whose; letters, digits, `-`, `_` and `.`.
            saved: what a trainer's `save` returns.
            about: what else must be known to go on, as JSON values.

        Raises:
            StoreError: it cannot be written; older checkpoints are as they were.
        """
        place = self._place(name)
        with _explained(place):
            _make(place)
            _remove_strays(place)
            number = max(_numbers(place, "*"), default=0) + 1
            tensors, rest = _file(place, number, "safetensors"), _file(place, number, "json")
            try:
                digest = _write_tensors(tensors, saved)
                _write_json(rest, _document(saved, about, digest))
            except BaseException:
                _remove(rest, tensors)
                _remove_strays(place)
                raise
        _keep_newest(place)

    def load(self, name: str) -> tuple[Saved, dict[str, Any]] | None:
        """Return the newest checkpoint that is whole, and what was said about it.

        A damaged one is passed over for the older one. The tensors are on the CPU.

        Returns:
            None where there is none.

        Raises:
            StoreError: the name is not allowed, or its folder is a link or cannot be read.
        """
        place = self._place(name)
        with _explained(place):
            numbers = sorted(_numbers(place, "json"), reverse=True)
        for number in numbers:
            with suppress(Damaged):
                return _read(place, number)
        return None

    def drop(self, name: str) -> None:
        """Remove all checkpoints of a name, if there are any.

        Raises:
            StoreError: the name is not allowed, or its folder is a link or cannot be removed.
        """
        place = self._place(name)
        with _explained(place), suppress(FileNotFoundError):
            shutil.rmtree(place)
        with suppress(OSError):  # the last one takes the folder of all with it
            self.folder.rmdir()

    def names(self) -> list[str]:
        """Return the names that have a folder here, sorted.

        Raises:
            StoreError: the folder cannot be read.
        """
        with _explained(self.folder):
            if not self.folder.is_dir():
                return []
            found = [entry for entry in self.folder.iterdir() if _allowed(entry.name)]
            return sorted(e.name for e in found if e.is_dir() and not e.is_symlink())

    def _place(self, name: str) -> Path:
        """Return the folder of a name, which is inside of this one."""
        if not _allowed(name):
            raise StoreError(
                f"checkpoint {str(name)[:80]!r}: a name has letters, digits, '-', '_' and '.', no "
                "'..', no '.' in front, and at most 128 of them"
            )
        place = self.folder / name
        if place.resolve() != self.folder.resolve() / name:
            raise StoreError(
                f"checkpoint {str(place)!r} is a link, which may lead anywhere; remove it"
            )
        return place


def _allowed(name: Any) -> bool:
    return isinstance(name, str) and bool(_NAME.fullmatch(name)) and ".." not in name


def _file(place: Path, number: int, ending: str) -> Path:
    return place / f"{number:06d}.{ending}"


def _numbers(place: Path, ending: str) -> set[int]:
    """Return the numbers of the files that end so, or with `*` of all; none without a folder."""
    try:
        found = [_FILE.fullmatch(path.name) for path in place.iterdir()]
    except FileNotFoundError:
        return set()
    return {int(match[1]) for match in found if match and ending in ("*", match[2])}


# Writing


def _make(place: Path) -> None:
    """Make a folder, so that it survives a power cut."""
    if place.is_dir():
        return
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):  # whoever drops the last name removes the folder of all
            place.mkdir(0o700, parents=True, exist_ok=True)
            _sync_folder(place.parent)
            return
    place.mkdir(0o700, parents=True, exist_ok=True)


def _write_tensors(path: Path, saved: Saved) -> str:
    """Write the tensors and return the checksum of their file."""
    part = _part(path)
    save_file(_separate(saved), part)
    with part.open("rb+") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    _rename(part, path)
    return digest


def _separate(saved: Saved) -> dict[str, Any]:
    """Return the tensors on the CPU, contiguous, and none in the memory of another."""
    found, seen = {}, set()
    for name, tensor in saved.tensors.items():
        plain = tensor.detach().cpu().contiguous()
        memory = plain.untyped_storage()
        if memory.data_ptr() in seen or memory.nbytes() != plain.nbytes:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        found[name] = plain
    return found


def _document(saved: Saved, about: Mapping[str, Any], digest: str) -> dict[str, Any]:
    content = {"about": dict(about), "rest": saved.rest, "tensors": digest}
    content = json.loads(json.dumps(content))  # as it is read: keys that were numbers are text
    return {"format": FORMAT, "sha256": _digest(content), "content": content}


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    text = json.dumps(document).encode()
    if len(text) > MOST_JSON:
        raise ValueError(f"its JSON has {len(text)} bytes, at most {MOST_JSON} are read")
    part = _part(path)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    _rename(part, path)


def _part(path: Path) -> Path:
    """Return where a file is written before it is whole: a name that no reader looks at."""
    return path.with_name(f".{path.name}.part")


def _rename(part: Path, path: Path) -> None:
    part.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make new names in a folder survive a power cut, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _keep_newest(place: Path) -> None:
    """Remove all but the newest checkpoints, and tensors that no JSON belongs to."""
    kept = sorted(_numbers(place, "json"))[-KEPT:]
    for number in _numbers(place, "*").difference(kept):
        _remove(*(_file(place, number, ending) for ending in ("json", "safetensors")))


def _remove_strays(place: Path) -> None:
    """Remove what a writer left that died, or failed; safetensors writes to a `.tmp` first."""
    _remove(*(path for path in place.iterdir() if path.name.startswith(".")))


def _remove(*paths: Path) -> None:
    for path in paths:
        with suppress(OSError):  # what stays is removed next time, and read by nobody
            path.unlink()


# Reading


def _read(place: Path, number: int) -> tuple[Saved, dict[str, Any]]:
    content = _content(_file(place, number, "json"))
    path = _file(place, number, "safetensors")
    with _opened(path) as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != content["tensors"]:
            raise Damaged(f"{path}: its checksum is wrong")
        try:
            tensors = load_file(path)
        except Exception as error:  # whatever a reader of headers thinks of one that lies
            raise Damaged(f"{path}: {error}") from error
    return Saved(tensors, content["rest"]), content["about"]


def _content(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file whose checksum is right."""
    with _opened(path) as file:
        text = file.read(MOST_JSON + 1)
    if len(text) > MOST_JSON:
        raise Damaged(f"{path}: larger than {MOST_JSON} bytes")
    try:
        document = json.loads(text)
        content = document["content"]
        whole = document["format"] == FORMAT and document["sha256"] == _digest(content)
        kinds = isinstance(content["rest"], dict) and isinstance(content["about"], dict)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{path}: {error}") from error
    if not (whole and kinds and isinstance(content.get("tensors"), str)):
        raise Damaged(f"{path}: its format or checksum is another")
    return content


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a plain file to read: no link, and nothing that would make a reader wait."""
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):  # as far as the system has them
        flags |= getattr(os, name, 0)
    try:
        if path.is_symlink():  # where the system has no O_NOFOLLOW
            raise Damaged(f"{path} is a link")
        with os.fdopen(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Damaged(f"{path} is no plain file")
            yield file
    except OSError as error:
        raise Damaged(f"{path}: {error}") from error


# Errors


@contextmanager
def _explained(place: Path) -> Iterator[None]:
    """Turn what a file system says inside into a StoreError of one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StoreError(f"checkpoint {str(place)!r} {_cause(error)}") from error
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise StoreError(
            f"checkpoint {str(place)!r} cannot hold what the trainer saves "
            f"({type(error).__name__}: {_line(error)}); let its save() return dense tensors, and "
            "JSON values for the rest"
        ) from error


def _cause(error: Exception) -> str:
    code = getattr(error, "errno", None)
    said = _OS_ERROR.search(str(error))
    code = int(said[1]) if code is None and said else code
    other = "set DROPTUNE_CHECKPOINTS to another folder"
    if code in _FULL:
        return f"cannot be used, the disk is full; free some space, or {other}"
    if code in _FORBIDDEN:
        return f"cannot be used, this user may not; allow reading and writing there, or {other}"
    return f"cannot be used ({_line(error)}); check that folder, or {other}"


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
