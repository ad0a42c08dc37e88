"""One of several processes, of JAX's or torch's, that `test_cluster.py` runs on one machine.

Its arguments: the job, a port, its number, and for torch the file that is their memory.
"""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from soaview import Column, Layout, Scalar, Spec, Value

LAYOUT = Layout([Column("x", "float32"), Column("y", "float32"), Scalar("n", "int32")])
SPEC = Spec(xy=["x", "y"], n=Value("n"))


def refused(*facts):
    return pytest.raises(ValueError, match=".*".join(facts))


def sharded(port: str, rank: int) -> None:
    """Each process gives rows of its own, and both train on all of them."""
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    import soaview_jax

    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank, initialization_timeout=60)
    own = LAYOUT.allocate(64)
    own["x"][:] = np.arange(64) + 64 * rank
    own["y"], own["n"] = 1.0, 7

    @jax.jit
    def of_all(soa):
        xy, n = soaview_jax.arrays(soa, SPEC)
        return xy.sum(0), xy[:, 0].max(), n

    for kind in (AxisType.Explicit, AxisType.Auto):
        mesh = jax.make_mesh((4,), ("rows",), axis_types=(kind,))
        sharding = NamedSharding(mesh, PartitionSpec("rows"))
        soa = soaview_jax.to(own, sharding, local=True)
        assert soa.rows == 128
        with jax.set_mesh(mesh):
            (x, y), last, n = of_all(soa)
        assert (float(x), float(y), int(last), int(n)) == (128 * 127 / 2, 128, 127, 7)
    other = LAYOUT.allocate(64)
    other["n"] = rank
    # What would be wrong in silence is refused in both processes, and nobody waits for the other.
    with refused("differ in their scalars,"):
        soaview_jax.to(other, sharding, local=True)
    with refused("differ in their row counts,"):
        soaview_jax.to(LAYOUT.allocate(64 - 30 * rank), sharding, local=True)
    with refused("padding would lie between", "for 64 rows"):
        soaview_jax.to(LAYOUT.allocate(34), sharding, local=True)
    with refused("differ in their rows,", "pass local=True"):
        soaview_jax.to(own, sharding)
    with refused("the rows into 1 parts for 2 processes"):
        soaview_jax.to(own, NamedSharding(mesh, PartitionSpec()), local=True)
    own["x"] = 1.0
    assert float(of_all(soaview_jax.to(own, sharding))[0][0]) == 64
    print("sharded", rank)


def ddp(port: str, rank: int, path: str) -> None:
    """Each rank trains on its slice of shared memory, and the weights stay the same."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    import soaview_torch

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    whole = LAYOUT.wrap(np.memmap(path, np.uint8, "r+"), 200)
    own = whole[100 * rank : 100 * rank + 100]
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(1, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    generator = torch.Generator().manual_seed(rank)
    batches = soaview_torch.loader(
        own, Spec(x=["x"], y=["y"]), 20, shuffle=True, generator=generator
    )
    for _ in range(15):
        for x, y in batches:
            loss = (model(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    weights = torch.stack([p.detach().flatten() for p in model.parameters()])
    both = [torch.empty_like(weights) for _ in range(2)]
    dist.all_gather(both, weights)
    assert torch.equal(*both)
    if rank:
        whole["n"] = 2  # seen by who made the memory
    dist.destroy_process_group()
    print("ddp", rank, *[round(w, 2) for w in weights.flatten().tolist()], flush=True)
    # Threads of Gloo's that are not joined would now and then end the process as it ends: theirs to
    # mend, and nothing of ours comes after this.
    os._exit(0)


if __name__ == "__main__":
    job, port, rank, *more = sys.argv[1:]
    globals()[job](port, int(rank), *more)
