"""Whether memory stays behind: `python leaks.py ADAPTER`, in a process of its own.

Prints, once for each way in which a call can go, how many of Python's blocks of memory stayed until
a garbage collection, and by how many kilobytes the process grew beyond it. Left out is the one that
JAX itself keeps of every import, until a collection or its own next operation. With `leaky-` before
the adapter's name it keeps 1600 bytes for each view, and a tenth as many calls must show it.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import adapters
import numpy as np
from cases import layout_of

from soaview import Spec

LAYOUT = layout_of("float32", "int8")
KEPT: list[object] = []


def held() -> int:
    """Kilobytes of the process's own, wherever they are: files' pages come and go (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = [line.split() for line in lines if line.startswith(("RssAnon", "VmSwap"))]
    assert len(found) == 2
    return sum(int(size) for _, size, _ in found)


def let_go() -> None:
    """Collect garbage, and give the system what the C library keeps of what was freed (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def print_growth(call: Callable[[], object], count: int, imports: int = 0) -> None:
    """Of so many calls, after a tenth as many to warm up; the second time if the first shows some.

    What stays behind by chance, such as a page with one live object, does not do so again.
    """
    for _ in range(count // 10):
        call()
    for _ in range(2):
        let_go()
        start, blocks = held(), sys.getallocatedblocks()
        for _ in range(count):
            call()
        kept = sys.getallocatedblocks() - blocks
        let_go()
        grown = held() - start
        if grown < 500:
            break
    print(kept - count * imports, grown)


def main(name: str) -> None:
    name, leaky = name.removeprefix("leaky-"), name.startswith("leaky-")
    adapter = adapters.load(name)
    count = 100_000 if name == "torch" else 10_000  # the others' calls take longer
    spec = Spec(x="x", y="y", z="z", one=["y"], gap="gap")  # five views a call
    soa, empty = LAYOUT.allocate(33), LAYOUT.allocate(0)
    memory = np.zeros(LAYOUT.nbytes(33) + 64, np.uint8)
    memory = memory[-memory.ctypes.data % 64 :]

    def views() -> None:
        adapter.tensors(soa, spec)
        if leaky:
            KEPT.extend(bytes(1600) for _ in spec)

    def new_memory() -> None:
        adapter.tensors(LAYOUT.wrap(memory, 33), spec)

    def refusals() -> None:
        for bad in (Spec(x=["z", "x"]), Spec(x="nothing"), Spec(x=["x", "gap"])):
            try:
                adapter.tensors(soa, bad)
            except (BufferError, KeyError, ValueError):
                continue
            assert not adapter.aliases

    def events() -> Callable[[], object]:
        prepare = getattr(getattr(adapter, "adapter", None), "prepare", None)
        if prepare is None:
            return lambda: None
        side, rows = (LAYOUT, Spec(x="x")), cycle(range(1, 34))
        run = prepare(lambda x: x + 1, side, side)
        own = np.zeros(LAYOUT.nbytes(33), np.uint8)
        return lambda: run((own, count := next(rows)), (own, count))

    with adapter.settings():
        imports = 5 if name == "jax" else 0
        print_growth(views, count // 10 if leaky else count, imports)
        if leaky:
            return
        print_growth(new_memory, count, imports)
        print_growth(lambda: adapter.tensors(empty, spec), count // 10, imports)
        print_growth(events(), count // 10)
        print_growth(refusals, 33_334 if adapter.aliases else 100)  # inside jit they are traced
    print("end")


if __name__ == "__main__":
    main(*sys.argv[1:])
