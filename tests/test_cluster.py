"""Several processes: Dask's workers, JAX's processes, torch's ranks."""

from __future__ import annotations

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from processes import LAYOUT

from soaview import Value

NEEDS = ["torch", "jax"]

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"


@pytest.fixture(scope="module")
def on_cluster(run_python, environment, tmp_path_factory):
    """What `cluster.py` says, in a process of its own, and the folder with its files."""
    folder = tmp_path_factory.mktemp("cluster")
    path = ":".join([environment["PYTHONPATH"], str(EXAMPLES), str(HERE)])  # the workers', too
    done = run_python(HERE / "cluster.py", folder, timeout=120, PYTHONPATH=path)
    return done.stdout.splitlines(), folder


@pytest.mark.slow
def test_soas_are_sent(on_cluster):
    """Workers view what may be written; what is read-only torch refuses, with the way out."""
    assert on_cluster[0][:2] == ["sent 100000 writable", "sent 3 read-only"]


@pytest.mark.slow
def test_a_worker_that_is_killed(on_cluster):
    """The job ends, and every event has one score, though a worker was killed on the way."""
    said, folder = on_cluster
    assert said[2:] == ["killed 1"]
    scores = sorted(folder.glob("*.scores"))
    assert [path.stem for path in scores] == [p.stem for p in sorted(folder.glob("*.parquet"))]
    events = [pyarrow.parquet.read_table(path)["event"].to_numpy() for path in scores]
    np.testing.assert_array_equal(np.sort(np.concatenate(events)), np.arange(36_000))


def free_port():
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.fixture
def in_two(environment):
    """Run a job of `processes.py` in two processes, which are ended if they take a minute."""

    def run(job, *more):
        settings = {**environment, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
        port = free_port()
        both = [
            subprocess.Popen(
                [sys.executable, HERE / "processes.py", job, port, str(rank), *more],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=settings,
            )
            for rank in range(2)
        ]
        try:
            with ThreadPoolExecutor() as pool:
                found = list(pool.map(lambda process: process.communicate(timeout=60), both))
        finally:
            for process in both:
                process.kill()
                process.communicate()
        for process, (out, err) in zip(both, found, strict=True):
            assert process.returncode == 0, out + err
        return [out.splitlines()[-1] for out, _ in found]  # before that Gloo says something

    return run


@pytest.mark.slow
def test_two_processes_of_jax(in_two):
    """Each process gives its own rows, both see all of them; what differs is refused in both."""
    assert in_two("sharded") == ["sharded 0", "sharded 1"]


@pytest.mark.slow
def test_two_ranks_of_torch(in_two, tmp_path):
    """Ranks train on their slices of memory that they share, and find the line that is in both."""
    memory = np.memmap(tmp_path / "memory", np.uint8, "w+", shape=LAYOUT.nbytes(200))
    soa = LAYOUT.wrap(memory, 200)
    soa["x"][:] = np.linspace(-1, 1, 200)
    soa["y"][:] = 3 * soa["x"] + 0.5
    assert in_two("ddp", str(tmp_path / "memory")) == ["ddp 0 3.0 0.5", "ddp 1 3.0 0.5"]
    assert soa[Value("n")] == 2
