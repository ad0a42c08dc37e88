"""What only a GPU can show: who waits for whom, and what XLA does with memory there.

Run with `--device cuda` alone.
"""

from __future__ import annotations

from contextlib import nullcontext

import places
import pytest

from soaview import Column, Layout, Spec

NEEDS = ["--device"]

ROWS = 1 << 20
LAYOUT = Layout([Column("x", "int8"), Column("y", "int8")])
X = Spec(x="x")


def memory():
    torch = places.under_test.torch
    return torch.zeros(LAYOUT.nbytes(ROWS), dtype=torch.uint8, device=places.under_test.device)


@pytest.mark.parametrize("by", ["DLPack", "pointer"])
def test_what_is_queued_is_waited_for(adapter, by):
    """What a stream of the producer's will have written is what is read: a thousand times.

    torch as a producer means its current stream; of a pointer it is told which.
    """
    cuda, owner = places.under_test.torch.cuda, memory()
    side = cuda.Stream(owner.device)
    side.wait_stream(cuda.current_stream(owner.device))
    soa = LAYOUT.wrap(owner, ROWS)
    if by == "pointer":
        at = {"device": str(owner.device), "owner": owner, "stream": side.cuda_stream}
        soa = LAYOUT.from_pointer(owner.data_ptr(), ROWS, **at)
    for number in range(1000):
        with cuda.stream(side):
            cuda._sleep(1 << 24)
            owner.fill_(number % 100)
            if by == "DLPack":
                found = adapter.to_numpy(adapter.tensors(soa, X)[0])
        if by == "pointer":
            found = adapter.to_numpy(adapter.tensors(soa, X)[0])
        assert (found == number % 100).all()
        cuda.synchronize()  # nobody waits for the consumer


def test_donation_never_writes_the_memory():
    """Whatever is donated, memory of the user's stays as it is: XLA refuses an import of it."""
    import jax

    import soaview_jax

    def update(soa):
        [x] = soaview_jax.arrays(soa, X)
        return soaview_jax.update(soa, X, [x + 1])

    owner = memory()
    soa = LAYOUT.wrap(owner, ROWS)
    refused = pytest.raises(jax.errors.JaxRuntimeError, match="external reference")
    for _ in range(10):
        for copy in (False, None, True):
            [x] = soaview_jax.arrays(soa, X, copy=copy)
            with nullcontext() if copy else refused:
                jax.jit(lambda x: x + 1, donate_argnums=0)(x).block_until_ready()
        with refused:
            jax.block_until_ready(jax.jit(update, donate_argnums=0)(soa))
        own = soaview_jax.to(soa, jax.devices()[0])
        [x] = soaview_jax.arrays(jax.jit(update, donate_argnums=0)(own), X)
        assert (x == 1).all()
    assert not owner.any()
