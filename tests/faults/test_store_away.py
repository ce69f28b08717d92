"""The store is away for a while: a server that restarts, a disk that is full."""

import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.faults import tasks
from tests.faults.test_alive import seen, trains, until
from tests.faults.whole import check_whole
from tests.small import fresh

SLOW = {"before": "tests.faults.alter:change", "slow": 0.05}


@pytest.mark.parametrize("how", ["stop", "crash"])
def test_a_server_that_restarts_under_three_workers_changes_nothing(
    nursery, postgres, how, undisturbed
):
    url = postgres.fresh()
    # What the tests' server leaves out for speed: a commit that it has told of is kept.
    name = url.split("?")[0].rpartition("/")[2]
    postgres.execute(f"ALTER DATABASE {name} SET synchronous_commit = on")
    crew = [nursery.start("serial", url, **SLOW) for _ in range(3)]
    until(lambda: trains(url, "serial", 1))
    for _ in range(3):
        getattr(postgres, how)()
        time.sleep(random.uniform(0, 0.5))
        postgres.start()
        time.sleep(random.uniform(0.2, 1))
    for worker in crew:
        assert worker.wait() == 0, worker.said()
    assert check_whole(url, "serial", tasks.TRIALS).answer() == undisturbed("serial")


def full(nursery, url: str, free, undisturbed, **values) -> None:
    """Run a study whose disk gets full, free some space, and let the same command go on."""
    worker = nursery.start("serial", url, **values)
    assert worker.wait() == 1
    said = worker.said()
    assert "the disk is full; free some space and run again" in said
    assert len(said.strip().splitlines()) == 1
    there = seen(url, "serial")
    done = [] if there is None else there.ended("search")
    free()
    again = nursery.start("serial", url)
    assert again.wait() == 0, again.said()
    found = check_whole(url, "serial", tasks.TRIALS)
    assert {run["id"] for run in done} <= {run["id"] for run in found.ended("search")}
    assert found.answer() == undisturbed("serial")


@pytest.mark.parametrize("more", [1, 3])
def test_a_file_that_cannot_grow_ends_in_one_line_and_the_study_goes_on(
    nursery, tmp_path, undisturbed, more
):
    url = fresh(tmp_path)
    pages = Path(tmp_path / "d.db").stat().st_size // 4096 + more
    change = {"before": "tests.faults.alter:change", "pages": pages}
    full(nursery, url, lambda: None, undisturbed, **change)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of eight megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here, which takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("left", [60_000, 300_000, 600_000])
def test_a_disk_that_is_full_ends_in_one_line_and_the_study_goes_on(
    nursery, small_disk, undisturbed, left
):
    url, filler = fresh(small_disk), small_disk / "filler"
    room = shutil.disk_usage(small_disk).free
    filler.write_bytes(bytes(room - left))
    full(nursery, url, filler.unlink, undisturbed, before="tests.faults.alter:change")
