"""How the benchmarks measure, and the layout that they share."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from soaview import Column, Layout, Scalar, Spec

LAYOUT = Layout(
    [
        Column("a", "float64", (3,)),
        Column("b", "float64", (3,)),
        Column("c", "float32", (2, 2)),
        Column("x", "float64"),
        Column("y", "float64"),
        Column("z", "float64"),
        Scalar("type", "float32"),
        Scalar("someNumber", "int32"),
        Column("v", "float64"),
        Column("w", "float64"),
    ]
)
"""Five tensors are made of it, as in the CMS experiment's own test."""

TENSORS = {"ab": ["a", "b"], "c": "c", "xyz": ["x", "y", "z"], "x": "x"}
SPEC = Spec(TENSORS, type="type")


def medians(
    calls: dict[str, Callable[[], object]],
    rounds: int,
    repeat: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each call, run round by round in alternating order.

    A call is made `repeat` times in a row, or as often as makes that last ten milliseconds.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    repeats = dict.fromkeys(calls, repeat or 1)
    for number in range(rounds + 3):
        for name in list(calls)[:: 1 if number % 2 else -1]:
            call = calls[name]
            begin = clock()
            for _ in range(repeats[name]):
                call()
            found = (clock() - begin) / repeats[name]
            if number >= 3:
                times[name].append(found)
            elif repeat is None:
                repeats[name] = math.ceil(1e-2 / found)
    return {name: statistics.median(found) for name, found in times.items()}


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, as a long-running process ends up doing (Linux).

    Otherwise large results are mapped and unmapped in each call, by turns of chance.
    """
    library = ctypes.CDLL(None)
    for option, value in ((-3, 1 << 30), (-1, (1 << 31) - 1)):  # M_MMAP_ and M_TRIM_THRESHOLD
        assert library.mallopt(option, value) == 1


def growth(call: Callable[[], object]) -> float:
    """Megabytes by which the process's peak memory rises over what is resident now (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what was freed before is taken again, and not seen
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident("VmRSS")
    call()
    return max(_resident("VmHWM") - before, 0) / 1024


def _resident(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind))
