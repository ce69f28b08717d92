"""Files that define studies for processes of their own, and the commands that run them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HEAD = """
import os, signal, sys, time
from pathlib import Path
import torch
import droptune as dt

def build():
    nn = torch.nn
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))

def once(name):
    '''Say whether nobody has asked before.'''
    try:
        Path(name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

def train(model, *, seed, device):
    rate = sum(m.p for m in model.modules() if isinstance(m, torch.nn.Dropout))
    for epoch in range(3):
        time.sleep({sleep})
        {body}
        yield {{"val_loss": 1.0 + rate + seed % 100 / 1000}}

study = dt.Study("mine", model=build, train=train, example=torch.zeros(2, 4), epochs=3,
                 trials={trials}, confirm_blocks={blocks}, sampler="random")
"""


def write(folder: Path, name: str = "mine.py", **parts: Any) -> Path:
    """Write a study that takes 3 times `sleep` seconds a trial, with `body` in each epoch."""
    values = {"sleep": 0.05, "body": "pass", "trials": 6, "blocks": 0} | parts
    path = folder / name
    path.write_text(HEAD.format(**values))
    return path


def start(folder: Path, *words: object) -> subprocess.Popen:
    """Start the command line in a process of its own."""
    code = "from droptune.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, *words: object, code: int = 0) -> tuple[str, str]:
    """Run the command line to its end and expect this exit code; return stdout and stderr."""
    process = start(folder, *words)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code, err
    return out, err


def until(true: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait until something is true, and return it."""
    give_up = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < give_up, "it did not come true"
        time.sleep(0.1)
    return found
