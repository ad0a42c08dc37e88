"""DataLoaders with workers, which `test_loader_torch.py` runs in a process without JAX."""

from __future__ import annotations

import gc
import sys
from multiprocessing.shared_memory import SharedMemory

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

import soaview
from soaview import Column, Layout, Spec
from soaview_torch import Rows

LAYOUT = Layout([Column("y", "int32"), Column("x", "float32")])
sent: list[object] = []


def loaded(soa: soaview.SoA, method: str) -> bool:
    """Whether workers give each row once."""
    rows = Rows(soa, Spec(x="x"))
    sampler = BatchSampler(RandomSampler(rows), 8, drop_last=False)
    workers = {"num_workers": 1 + (method == "fork"), "multiprocessing_context": method}
    batches = DataLoader(rows, sampler=sampler, batch_size=None, **workers)
    seen = torch.cat([x for [x] in batches]).tolist()
    return sorted(seen) == soa["x"].tolist()


def main() -> None:
    """Say of each kind of memory and worker whether it was right, and how many SoAs were sent."""
    pickled = soaview.SoA.__reduce_ex__

    def reduced(soa, protocol):
        sent.append(soa)
        return pickled(soa, protocol)

    soaview.SoA.__reduce_ex__ = reduced
    memory = SharedMemory(create=True, size=LAYOUT.nbytes(54))
    try:
        for kind in ("shared", "own"):
            soa = LAYOUT.wrap(memory, 54) if kind == "shared" else LAYOUT.allocate(54)
            soa["x"][:] = range(54)
            for method in ("fork", "spawn"):
                print(kind, method, loaded(soa[2:52], method), len(sent))
                sent.clear()
        del soa
        gc.collect()
    finally:
        memory.close()
        memory.unlink()


if __name__ == "__main__":
    assert "jax" not in sys.modules
    main()
