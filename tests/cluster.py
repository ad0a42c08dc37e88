"""What `test_cluster.py` runs on a cluster of two processes: `python cluster.py FOLDER`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import cluster_dask
import numpy as np
from distributed import Client, LocalCluster, as_completed

import soaview_torch
from soaview import Column, Layout, Scalar, Spec, Value

SPEC = Spec(x=["a", "b"], n="n")


def killed(client: Client, folder: Path) -> None:
    """One worker is killed when the first file is done."""
    cluster_dask.made_up(folder, files=12, rows=3000)
    running = client.run(os.getpid)
    futures = cluster_dask.submit(client, folder)
    next(iter(as_completed(futures)))
    os.kill(min(running.values()), signal.SIGKILL)
    done = client.gather(futures)
    assert sum(rows for rows, _ in done) == 36_000
    client.wait_for_workers(2)
    print("killed", len(set(client.run(os.getpid).values()) - set(running.values())))


def seen(soa):
    """What a worker makes of an SoA that was sent to it."""
    try:
        [x, n], refused = soaview_torch.tensors(soa, SPEC), ""
    except BufferError as error:
        [x, n], refused = soaview_torch.tensors(soa, SPEC, copy=None), str(error)
    out = Layout([Column("sum", "float32")]).pack({"sum": (x.sum(1) + n).numpy()})
    return soa.readonly, refused, np.shares_memory(x.numpy(), soa["a"]), out


def sent(client: Client) -> None:
    """SoAs are scattered, one of them in read-only memory that stays it, and others come back."""
    layout = Layout([Column("a", "float32"), Column("b", "float32"), Scalar("n", "float32")])
    for rows in (100_000, 3):
        a, b = np.arange(rows, dtype="float32"), np.ones(rows, "float32")
        soa = layout.pack({"a": a, "b": b, "n": 3.0})
        if rows == 3:
            soa = layout.wrap(soa.buffer.root.tobytes(), rows)
        readonly, refused, shared, out = client.submit(seen, client.scatter(soa)).result()
        assert ("copy=None copies it" in refused) is readonly
        assert shared is not readonly
        np.testing.assert_array_equal(out["sum"], a + b + soa[Value("n")])
        print("sent", rows, "read-only" if readonly else "writable")


if __name__ == "__main__":
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        sent(client)
        killed(client, Path(sys.argv[1]))
