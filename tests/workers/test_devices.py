"""Where processes work: one a GPU that this process sees, or the cores of the CPU."""

import pytest

from droptune.errors import StudyError
from droptune.workers.devices import seats


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def visible(found) -> list[str]:
    return [seat.environment["CUDA_VISIBLE_DEVICES"] for seat in found]


def test_each_gpu_has_a_process_that_sees_it_alone():
    found = seats("auto", None, gpus=3, cores=8)
    assert visible(found) == ["0", "1", "2"]
    assert [(seat.name, seat.device) for seat in found][1] == ("cuda:1", "auto")
    assert visible(seats("2,0", None, 3, 8)) == ["2", "0"]
    assert visible(seats("0,2", 5, 3, 8)) == ["0", "2", "0", "2", "0"]
    assert visible(seats("auto", 2, 3, 8)) == ["0", "1"]


def test_numbers_count_the_gpus_that_a_scheduler_gave(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-ab12")
    assert visible(seats("auto", None, 2, 8)) == ["4", "GPU-ab12"]
    assert visible(seats("1", None, 2, 8)) == ["GPU-ab12"]


@pytest.mark.parametrize(("workers", "threads"), [(2, "4"), (3, "2"), (8, "1"), (20, "1")])
def test_processes_on_the_cpu_share_its_cores(workers, threads):
    for devices, gpus in (("auto", 0), ("cpu", 4)):
        found = seats(devices, workers, gpus, cores=8)
        assert len(found) == workers and {seat.device for seat in found} == {"cpu"}
        assert {seat.environment["OMP_NUM_THREADS"] for seat in found} == {threads}
        assert set(visible(found)) == {""}


def test_one_process_on_the_cpu_keeps_its_threads_and_a_user_their_own(monkeypatch):
    (alone,) = seats("auto", None, 0, 8)
    assert "OMP_NUM_THREADS" not in alone.environment
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert seats("cpu", 2, 0, 8)[0].environment["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("devices", "workers", "gpus", "said"),
    [
        ("gpu", None, 2, "give auto, cpu, or different numbers"),
        ("0,0", None, 2, "different numbers"),
        ("-1", None, 2, "different numbers"),
        ("0,", None, 2, "different numbers"),
        ("2", None, 2, "this machine has GPUs 0 to 1"),
        ("1", None, 1, "this machine has GPU 0 alone"),
        ("0", None, 0, "this machine has no GPU"),
        ("0,1", 1, 2, "cannot use the 2 GPUs"),
    ],
)
def test_what_is_not_there_is_said(devices, workers, gpus, said):
    with pytest.raises(StudyError, match=said):
        seats(devices, workers, gpus, 8)
