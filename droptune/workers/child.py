"""A process that works on one study: `python -m droptune.workers.child`.

It reads one line from where its stdin was, the job as JSON, and writes events as lines of JSON to
where its stdout was; what the user's own code prints goes to stderr, and what it reads is empty.
Nothing of the job is in the list of processes, so a password in a URL shows nowhere. When the pipe
ends, the parent is gone: the process ends itself as SIGTERM would, and in a while at once.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from io import TextIOWrapper
from typing import Any, BinaryIO

from droptune.errors import DroptuneError
from droptune.progress import SilentProgress, Status

ORPHAN_SECONDS = 60.0  # from the parent's death to the end of an epoch, at most
_EVERY = 0.2  # seconds between two statuses
INTERRUPTED = 130  # exit code
FAILED = 1


class Channel:
    """Writes events to the parent, from any thread; a parent that is gone does not matter."""

    def __init__(self, stream: Any) -> None:
        # A signal may come while a line is written, and its handler has one of its own to say.
        self._stream, self._lock = stream, threading.RLock()

    def send(self, event: str, **values: Any) -> None:
        """Write one event."""
        line = json.dumps({"event": event, **values})
        with self._lock, suppress(BrokenPipeError):
            self._stream.write(f"{line}\n")
            self._stream.flush()


class Told(SilentProgress):
    """A progress that goes to the parent."""

    def __init__(self, channel: Channel) -> None:
        self._channel, self._latest, self._sent_at = channel, None, 0.0

    def update(self, status: Status) -> None:
        """Send the status, unless one was sent a moment ago; the last one of a phase always."""
        if self._latest is not None and self._latest.phase != status.phase:
            self._send()
        self._latest = status
        if time.monotonic() - self._sent_at >= _EVERY:
            self._send()

    def message(self, text: str) -> None:
        """Send one line."""
        self._channel.send("message", text=text)

    def close(self) -> None:
        """Send the last status."""
        self._send()

    def _send(self) -> None:
        if self._latest is not None:
            self._channel.send("status", status=asdict(self._latest))
            self._latest, self._sent_at = None, time.monotonic()


def main() -> None:
    """Work on the study of the job that comes through stdin."""
    channel = Channel(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    sys.stdout = sys.stderr = _Lasting(open(2, "wb", 0, closefd=False), line_buffering=True)
    pipe = _own_stdin()
    job = json.loads(pipe.readline())
    threading.Thread(target=_watch_parent, args=(pipe,), daemon=True).start()
    try:
        code = work(job, channel)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        channel.send("error", **_described(error))
        code = FAILED
    sys.stdout.flush()
    sys.exit(code)


def work(job: Mapping[str, Any], channel: Channel) -> int:
    """Run the study of a job until it is done, or nothing is free for `job["linger"]` seconds.

    Returns:
        The exit code, 0.
    """
    from droptune.hang import leave
    from droptune.target import load_target
    from droptune.watch import NothingFree

    study = load_target(job["target"]).using(**job["options"])
    channel.send("loaded")
    try:
        told = Told(channel)
        wait = job.get("linger", True)
        result = study.optimize(progress=told, wait=wait, on_hang=partial(leave, told))
    except NothingFree:
        channel.send("nothing")
        return 0
    before = result.finished_before
    channel.send("result", answer=result.to_json(), verdict=str(result.verdict), before=before)
    return 0


class _Lasting(TextIOWrapper):
    """Text to a stream that may end before its writer; a print never fails."""

    def __init__(self, raw: Any, **options: Any) -> None:
        super().__init__(raw, encoding="utf-8", errors="backslashreplace", **options)

    def write(self, text: str) -> int:
        with suppress(BrokenPipeError):
            super().write(text)
        return len(text)


def _own_stdin() -> BinaryIO:
    """Return where the parent writes; code of the user's that reads stdin finds its end."""
    pipe, nothing = os.fdopen(os.dup(0), "rb"), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return pipe


def _watch_parent(pipe: BinaryIO) -> None:
    """Wait for the end of the pipe, then end this process."""
    while os.read(pipe.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_SECONDS)
    os._exit(INTERRUPTED)


def _described(error: Exception) -> dict[str, Any]:
    """Return an error as the parent shows it: its kind, a line, and the user's traceback."""
    from droptune.target import traceback_of, user_line

    whole = bool(os.environ.get("DROPTUNE_TRACEBACK"))
    ours = [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, DroptuneError)]
    place = user_line(error)
    text = str(error) if ours else f"{type(error).__name__}: {error}"
    return {
        "kinds": ours,
        "text": text if ours or not place else f"{text}, at {place}",
        "traceback": traceback_of(error, whole=whole),
    }


if __name__ == "__main__":
    main()
