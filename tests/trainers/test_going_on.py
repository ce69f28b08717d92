"""Members go on in another process, through files, bit for bit, with every kind of dropout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from droptune.checkpoints import Checkpoints
from droptune.kinds import KINDS
from tests.trainers.going_on import CASES, TRAINERS, scores

NAMES = [f"{case}-{how}" for case in CASES for how in TRAINERS]
#: Of attention's own weights: tests/test_functional_training.py trains it; it keeps nothing.
ELSEWHERE = {"drop_key"}


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[dict, dict]:
    """Return name -> scores, of a run that was never interrupted and of another process's."""
    kept, here = Checkpoints(tmp_path_factory.mktemp("kept")), {}
    for name in NAMES:
        case, _, how = name.partition("-")
        task, plans = CASES[case]()
        trainer = TRAINERS[how](task, len(plans))
        trainer.begin(seed=4, clock=1)
        for slot, plan in enumerate(plans):
            trainer.start(slot, plan)
        scores(trainer)
        kept.save(name, trainer.save(), {"case": case})
        here[name] = scores(trainer)
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "tests.trainers.going_on", str(kept.folder)],
        cwd=root,
        # Sums are split over threads, and their last bits hang on how many there are.
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(json.dumps(here)), json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_another_process_goes_on_bit_for_bit(both, name):
    here, there = both
    assert there[name] == here[name]


def test_every_kind_was_among_them():
    plans = [plan for make in CASES.values() for plan in make()[1]]
    used = {entry.kind for plan in plans for entry in plan.values()}
    assert used == set(KINDS) - ELSEWHERE
