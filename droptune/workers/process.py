"""A process that works on a study, as its parent sees it."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any

from droptune.workers.devices import Seat

_TAIL = 20  # lines of stderr that are kept
_LONGEST = 2000  # characters of one of them


class Worker:
    """A child process (child.py); `events` holds what it has told.

    Events are dicts with "event": "loaded", "message", "status", "nothing", "result", "error",
    "printed" (a line of stderr) and, as the last one, "ended" with "code": negative where a signal
    ended it.

    Args:
        seat: where it works.
        job: "target", "options", and "linger": seconds to wait where nothing is free; without
            it as long as it takes.
        events: (worker, event) are put there.
    """

    def __init__(self, seat: Seat, job: Mapping[str, Any], events: queue.Queue) -> None:
        self.seat, self.job, self._events = seat, job, events
        self.tail: deque[str] = deque(maxlen=_TAIL)
        self.trained = False  # it has told a status
        self.finished = False  # it has told how its work ended
        self.process = subprocess.Popen(
            [sys.executable, "-m", "droptune.workers.child"],
            stdin=subprocess.PIPE,  # its end tells the child that we are gone
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **seat.environment},
            start_new_session=True,  # Ctrl-C comes to us alone, and we pass it on once
        )
        threading.Thread(target=self._follow, daemon=True).start()
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(dict(job)).encode() + b"\n")
            self.process.stdin.flush()

    def stop(self) -> None:
        """Let it end at the end of its epoch, with all that it holds stored."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and what it started at once."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _follow(self) -> None:
        """Pass on what the child tells, until it ends."""
        readers = [
            threading.Thread(target=read, daemon=True)
            for read in (self._read_told, self._read_printed)
        ]
        for reader in readers:
            reader.start()
        # What a child leaves behind holds memory of the GPU, and our pipes. Its number is its
        # group's, and nobody else's before it is waited for.
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        self.kill()
        code = self.process.wait()
        for reader in readers:
            reader.join(timeout=5.0)
        with suppress(OSError):
            self.process.stdin.close()
        self._events.put((self, {"event": "ended", "code": code}))

    def _read_told(self) -> None:
        for line in self.process.stdout:
            with suppress(ValueError):  # the last one may be cut off
                self._events.put((self, json.loads(line)))

    def _read_printed(self) -> None:
        stream: IO[bytes] = self.process.stderr
        for raw in stream:
            # Of a line that was written over and over, as progress bars do, the last state.
            line = raw.decode("utf-8", "replace").rstrip().rpartition("\r")[2][:_LONGEST]
            self.tail.append(line)
            self._events.put((self, {"event": "printed", "text": line}))
