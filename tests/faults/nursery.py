"""Workers as real processes, started in no time: forked from one that has loaded everything.

Run as a program it is that one: it reads a JSON line for each thing that is asked of it, and
answers with one. It has one thread and no connection, so a fork of it is as good as new.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]
_ENDS = 120.0  # seconds after which a worker that has not ended is an error


class Worker:
    """A process that runs `droptune`, in a process group of its own.

    Attributes:
        pid: of the process and of its group.
        output: where its stdout and stderr go.
    """

    def __init__(self, nursery: "Nursery", pid: int, output: Path) -> None:
        self._nursery, self.pid, self.output = nursery, pid, output
        self._code: int | None = None

    @property
    def code(self) -> int | None:
        """The exit code, below zero of one that a signal ended; None while it runs."""
        if self._code is None:
            self._code = self._nursery.ask(poll=self.pid)
        return self._code

    def wait(self, seconds: float = _ENDS) -> int:
        """Return the exit code, as soon as there is one."""
        give_up = time.monotonic() + seconds
        while self.code is None:
            if time.monotonic() > give_up:
                self.signal(signal.SIGKILL)
                raise AssertionError(f"a worker did not end in {seconds} s: {self.said()}")
            time.sleep(0.01)
        return self.code

    def signal(self, number: int) -> None:
        """Send a signal to it and to all that it has started."""
        if self.code is None:
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """End it by SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.wait()

    def said(self) -> str:
        """Return what it has printed."""
        return self.output.read_text(errors="replace")


class Nursery:
    """Starts workers.

    Args:
        folder: for what they print.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._workers = folder, []
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery"],
            cwd=ROOT,
            env=environment | {"PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.signal(signal.SIGCONT)
            worker.signal(signal.SIGKILL)
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def start(
        self, task: str, url: str, *options: object, before: str = "", **values: Any
    ) -> Worker:
        """Start `droptune optimize` of one of the tasks.

        Args:
            task: name of the study in tasks.py.
            url: of the store.
            options: further ones of the command.
            before: `module:function`, called in the process beforehand.
            values: that it is called with, as JSON.
        """
        target = f"{ROOT / 'tests/faults/tasks.py'}:{task}"
        words = ["optimize", target, "--store", url, "--quiet", *map(str, options)]
        return self.run(words, before=before, **values)

    def run(self, words: list[str], *, before: str = "", **values: Any) -> Worker:
        """Start `droptune` with these words."""
        output = self._folder / f"worker-{len(self._workers)}.txt"
        spec = {"words": words, "before": before, "values": values, "output": str(output)}
        self._workers.append(Worker(self, self.ask(start=spec), output))
        return self._workers[-1]

    def ask(self, **what: Any) -> Any:
        """Ask the process for something, and return its answer."""
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


# The process that is asked


def serve() -> None:
    """Answer until nobody asks any more."""
    load()
    for line in sys.stdin:
        asked = json.loads(line)
        answer = _start(asked["start"]) if "start" in asked else _poll(asked["poll"])
        print(json.dumps(answer), flush=True)


def load() -> None:
    """Load all that a worker needs."""
    import torch

    torch.set_num_threads(1)
    for module in (
        "alembic.command",
        "droptune.cli",
        "droptune.optimize",
        "droptune.report",
        "droptune.store.workers",
        "alembic.migration",
        "filelock",
        "optuna.storages._rdb.storage",
        "sklearn.gaussian_process",
        "sqlalchemy.dialects.postgresql.psycopg",
        "tests.faults.tasks",
        "torch._dynamo",  # which the first optimiser loads
        "torch.func",
    ):
        importlib.import_module(module)


def _poll(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _start(spec: dict[str, Any]) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        with open(spec["output"], "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = _work(spec)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _work(spec: dict[str, Any]) -> int:
    """Run the command line as a process of its own would; return its exit code."""
    from droptune.cli import main

    if spec["before"]:
        module, _, function = spec["before"].partition(":")
        getattr(importlib.import_module(module), function)(**spec["values"])
    try:
        main(spec["words"], prog_name="droptune")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve()
