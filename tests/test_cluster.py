"""Several processes: Dask's workers, JAX's processes, torch's ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

NEEDS = ["torch", "jax"]

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"


@pytest.fixture
def on_cluster(run_python, environment, tmp_path):
    """Run a job of `cluster.py` in a process of its own, whose workers find what it imports."""

    def run(job):
        path = ":".join([environment["PYTHONPATH"], str(EXAMPLES), str(HERE)])
        done = run_python(HERE / "cluster.py", job, tmp_path, timeout=120, PYTHONPATH=path)
        return done.stdout

    return run


@pytest.mark.slow
def test_a_worker_that_is_killed(on_cluster, tmp_path):
    """The job ends, and every event has one score, though a worker was killed on the way."""
    assert on_cluster("killed") == "killed 1\n"
    scores = sorted(tmp_path.glob("*.scores"))
    assert [path.stem for path in scores] == [p.stem for p in sorted(tmp_path.glob("*.parquet"))]
    events = [pyarrow.parquet.read_table(path)["event"].to_numpy() for path in scores]
    np.testing.assert_array_equal(np.sort(np.concatenate(events)), np.arange(36_000))


@pytest.mark.slow
def test_soas_are_sent(on_cluster):
    """Workers view what may be written; what is read-only torch refuses, with the way out."""
    assert on_cluster("sent") == "sent 100000 writable\nsent 3 read-only\n"
