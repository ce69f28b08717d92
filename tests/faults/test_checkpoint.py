"""What one worker kept, another goes on from; without it, it begins again."""

import shutil
import signal

import pytest

from tests.faults import tasks
from tests.faults.test_alive import trains, until
from tests.faults.whole import Seen, check_whole
from tests.small import fresh

KEEPS = {"before": "tests.faults.alter:change", "slow": 0.02, "keep": True}
GOES_ON = "go on where another worker, or an earlier call, left off"


def half(nursery, url: str, task: str, phase: str, number: int = signal.SIGKILL) -> int:
    """Let a worker train until it is in the middle of a run, and end it."""
    worker = nursery.start(task, url, **KEEPS)
    until(lambda: trains(url, task, 6, phase))
    worker.signal(number)
    return worker.wait()


def rest(nursery, url: str, task: str, **values):
    """Let another worker train the rest; return it."""
    target = f"{tasks.__file__}:{task}"
    worker = nursery.run(["optimize", target, "--store", url], **values)
    assert worker.wait() == 0, worker.said()
    return worker


def same(url: str, task: str, expected: dict) -> None:
    """Fail unless the study is whole and, trained one by one, bit for bit as expected."""
    found = check_whole(url, task, getattr(tasks, task).trials).answer()
    if task == "long":
        assert found == expected
        return
    for phase in ("search", "confirm"):
        assert found[phase].keys() == expected[phase].keys()
        for key, (state, plan, curve) in found[phase].items():
            assert (state, plan) == expected[phase][key][:2]
            for here, there in zip(curve, expected[phase][key][2], strict=True):
                numbers = {name: value for name, value in there.items() if value != here[name]}
                numbers.pop("reliability", None)
                assert {name: here[name] for name in numbers} == pytest.approx(numbers, abs=1e-3)


@pytest.mark.parametrize(
    ("task", "phase"),
    [
        ("long", "search"),
        pytest.param("long", "confirm", marks=pytest.mark.slow),
        pytest.param("long_fused", "search", marks=pytest.mark.slow),
        ("long_fused", "confirm"),
    ],
)
def test_a_killed_workers_members_go_on(nursery, tmp_path, task, phase, undisturbed):
    url = fresh(tmp_path)
    assert half(nursery, url, task, phase) == -9
    assert GOES_ON in rest(nursery, url, task).said()
    same(url, task, undisturbed(task))
    assert not (tmp_path / "d.db-checkpoints").exists()


def test_sigterm_hands_the_members_back(nursery, tmp_path, undisturbed):
    url = fresh(tmp_path)
    assert half(nursery, url, "long", "search", signal.SIGTERM) == 130
    handed = [run for run in Seen(url, "long").runs if run["state"] == "interrupted"]
    assert len(handed) == 1
    assert GOES_ON in rest(nursery, url, "long").said()
    same(url, "long", undisturbed("long"))


@pytest.mark.parametrize(
    ("damaged", "goes_on"),
    [
        ("newest", True),
        pytest.param("all", False, marks=pytest.mark.slow),
        pytest.param("gone", False, marks=pytest.mark.slow),
    ],
)
def test_of_damaged_checkpoints_the_older_one_counts(
    nursery, tmp_path, undisturbed, damaged, goes_on
):
    url, folder = fresh(tmp_path), tmp_path / "d.db-checkpoints"
    half(nursery, url, "long", "search")
    # Of one that was being written there is no JSON yet.
    files = sorted(path.with_suffix(".safetensors") for path in folder.rglob("0*.json"))
    assert len(files) > 1
    if damaged == "gone":
        shutil.rmtree(folder)
    for file in {"newest": files[-1:], "all": files, "gone": []}[damaged]:
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
    assert (GOES_ON in rest(nursery, url, "long").said()) == goes_on
    same(url, "long", undisturbed("long"))


def test_a_study_goes_on_on_another_machine(nursery, tmp_path, undisturbed):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    half(nursery, fresh(here), "long", "search")
    shutil.copytree(here, there)
    shutil.rmtree(here)
    url = f"sqlite:///{there / 'd.db'}"
    worker = rest(
        nursery, url, "long", before="tests.faults.alter:change", place="elsewhere", lease=1.0
    )
    assert GOES_ON in worker.said()
    same(url, "long", undisturbed("long"))
