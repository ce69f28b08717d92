"""A study on a Ray cluster of two nodes, one of which goes away."""

import os
import subprocess
import sys
import warnings

import pytest

from droptune.errors import StudyError
from droptune.progress import SilentProgress
from tests.workers.targets import ROOT, until, write
from tests.workers.test_local import complete, rows, states

pytestmark = [
    pytest.mark.slow,  # a node takes seconds to start
    pytest.mark.filterwarnings("ignore"),  # of Ray's own
]
pytest.importorskip("ray", reason="ray is not installed: pip install '.[dev]'")


@pytest.fixture
def cluster(monkeypatch):
    """A head node without cores for us, and two nodes with one core each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        quiet = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **quiet})
        made.leaving = [made.add_node(num_cpus=1, **quiet) for _ in range(2)]
        made.quiet = quiet
        yield made
        made.shutdown()


def tune(folder, cluster, *words):
    """Start the command line on the cluster."""
    code = "from droptune.cli import main; main()"
    options = ["--engine", "ray", "--address", cluster.address, *map(str, words)]
    return subprocess.Popen(
        [sys.executable, "-c", code, "optimize", "mine.py", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def workers(folder) -> int:
    """Return how many workers have trained a trial to its end."""
    sql = "SELECT count(DISTINCT worker_id) FROM droptune_run WHERE state = 'complete'"
    found = rows(folder, sql)
    return found[0][0] if found else 0


def test_a_node_leaves_and_another_joins_and_the_study_ends_whole(tmp_path, cluster):
    write(tmp_path, trials=60, sleep=0.3, blocks=2)
    process = tune(tmp_path, cluster)
    try:
        until(lambda: workers(tmp_path) == 2, 120)
        cluster.remove_node(cluster.leaving[0], allow_graceful=False)
        seen = len(complete(tmp_path))
        cluster.add_node(num_cpus=1, **cluster.quiet)
        until(lambda: workers(tmp_path) == 3, 120)
        assert len(complete(tmp_path)) > seen
        out, err = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert states(tmp_path) == [(number, "COMPLETE") for number in range(60)]
    assert "is replaced" in err and "confirm" in err and "study          mine" in out


def test_ctrl_c_stops_the_actors_and_an_error_is_one_line(tmp_path, cluster):
    write(tmp_path, trials=1000)
    process = tune(tmp_path, cluster)
    try:
        until(lambda: len(complete(tmp_path)) > 1, 120)
        process.send_signal(2)
        err = process.communicate(timeout=90)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Interrupted: what has finished is kept" in err
    assert not rows(tmp_path, "SELECT 1 FROM droptune_run WHERE state = 'running'")
    process = tune(tmp_path, cluster, "--sampler", "tbe")
    err = process.communicate(timeout=90)[1]
    assert process.returncode == 1 and "Error: unknown sampler 'tbe'" in err


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1", "no where:x"])
def test_a_cluster_that_is_not_there_is_one_line(address):
    from droptune.workers.ray import run_on_ray

    with pytest.raises(StudyError, match="cannot be reached.*--address"):
        run_on_ray("sqlite:///x.db", "x.py", {}, SilentProgress(), address)
