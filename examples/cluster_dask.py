"""A model over many files, a task for each: `python examples/cluster_dask.py [FOLDER]`.

Of each Parquet file in the folder it writes one beside it, `NAME.scores`, of as many rows. A file
is there whole or not at all: if a worker dies, Dask gives its files to another one, which writes
them anew. Without a folder it makes one up.

Here the cluster is two processes of this machine. Any other one is one line in place of
`LocalCluster(...)`, from the packages dask-jobqueue and dask-kubernetes; files and results must be
on a file system that its machines share:

    SLURMCluster(cores=4, memory="8GB", n_workers=10)
    HTCondorCluster(cores=4, memory="8GB", disk="1GB", n_workers=10)
    KubeCluster(name="scores", image="an image with soaview, torch and pyarrow", n_workers=10)

With Ray, `score` is `ray.remote(score)`, the model's reference is `ray.put(model)`, and the results
are `ray.get([score.remote(path, model) for path in paths])`.
"""

from __future__ import annotations

import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from distributed import Client, Future, LocalCluster

import soaview_torch
from soaview import Column, Layout, Spec

NAMES = ["x", "y", "z"]
LAYOUT = Layout([*(Column(name, "float32") for name in NAMES), Column("score", "float32")])


def made_up(folder: Path, files: int = 8, rows: int = 50_000) -> None:
    """Files of events, each with a number of its own."""
    random = np.random.default_rng(0)
    for file in range(files):
        columns = {name: random.normal(size=rows).astype("float32") for name in NAMES}
        events = np.arange(file * rows, (file + 1) * rows)
        pyarrow.parquet.write_table(
            pyarrow.table({"event": events, **columns}), folder / f"part-{file}.parquet"
        )


def net() -> torch.nn.Module:
    """What stands for a model that somebody has trained."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(3, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1), torch.nn.Flatten(0)
    return torch.nn.Sequential(*layers).eval()


def score(path: Path, model: torch.nn.Module) -> tuple[int, float]:
    """Score a file, and write the scores beside it; how many rows, and seconds of a CPU."""
    begin = time.process_time()
    torch.set_num_threads(1)  # a worker has one CPU for each of its threads
    table = pyarrow.parquet.read_table(path)
    soa = LAYOUT.pack({**{name: table[name] for name in NAMES}, "score": 0.0})
    soaview_torch.forward(
        model, (soa, Spec(x=NAMES)), (soa, Spec(score="score")), batch_size=65_536
    )
    unfinished = path.with_suffix(f".{uuid.uuid4().hex}.unfinished")
    scores = pyarrow.table({"event": table["event"], "score": soa["score"]})
    pyarrow.parquet.write_table(scores, unfinished)
    unfinished.replace(path.with_suffix(".scores"))  # at once, whoever else has done it before
    return soa.rows, time.process_time() - begin


def submit(client: Client, folder: Path) -> list[Future[Any]]:
    """A task for each file; the model is sent to each worker once."""
    model = client.scatter(net(), broadcast=True)
    return client.map(score, sorted(folder.glob("*.parquet")), model=model, pure=False)


def main(folder: Path) -> None:
    """Score the files of a folder."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        begin = time.perf_counter()
        done = client.gather(submit(client, folder))
        wall = time.perf_counter() - begin
    rows, seconds = map(sum, zip(*done, strict=True))
    print(f"{len(done)} files, {rows} rows: {wall:.2f} s, {seconds:.2f} s of CPUs in the tasks")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as made:
            made_up(Path(made))
            main(Path(made))
