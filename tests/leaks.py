"""Whether memory stays behind: `python leaks.py ADAPTER [COUNT]`, in a process of its own.

Prints by how many kilobytes the process grew, once for each way in which a call can go.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import adapters
import numpy as np
from cases import layout_of

from soaview import Spec

LAYOUT = layout_of("float32", "int8")
KEPT: list[object] = []


def resident() -> int:
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def grown(call: Callable[[], object], count: int) -> int:
    """Kilobytes, after as many calls to warm up."""
    for _ in range(count):
        call()
    before = resident()
    for _ in range(count):
        call()
    return resident() - before


def main(name: str, count: int = 0) -> None:
    adapter = adapters.load(name.removeprefix("leaky-"))
    count = count or {"jax": 2_000, "jit": 500}.get(name, 20_000)
    spec = Spec(x="x", y="y", z="z", one=["y"], gap="gap")  # five views a call
    soa, empty = LAYOUT.allocate(33), LAYOUT.allocate(0)
    memory = np.zeros(LAYOUT.nbytes(33) + 64, np.uint8)
    memory = memory[-memory.ctypes.data % 64 :]

    def views() -> None:
        found = adapter.tensors(soa, spec)
        if name.startswith("leaky"):
            KEPT.append(found)

    def new_memory() -> None:
        adapter.tensors(LAYOUT.wrap(memory, 33), spec)

    def refusals() -> None:
        for bad in (Spec(x=["z", "x"]), Spec(x="nothing"), Spec(x=["x", "gap"])):
            try:
                adapter.tensors(soa, bad)
            except (BufferError, KeyError, ValueError):
                continue
            assert not adapter.aliases

    with adapter.settings():
        for call in (views, new_memory, lambda: adapter.tensors(empty, spec)):
            print(grown(call, count))
        print(grown(refusals, count // 20))
    print("end")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
