"""What bound columns cost: `python benchmarks/bound.py`.

Eight columns of float32: arrays that were allocated one by one, the rows of one array, and records;
against `torch.from_numpy` of each array, and against memory that a rule has laid out. All runs
interleaved, round by round, by the thread's own time; the ratios are those of the medians.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from measure import medians

from soaview import Column, Layout, Spec, bind
from soaview_torch import tensors

NAMES = [f"c{i}" for i in range(8)]
EACH = Spec({name: name for name in NAMES})
ONE = Spec(x=NAMES)


def measured(rows: int) -> dict[str, float]:
    heap = {name: np.zeros(rows, "f4") for name in NAMES}
    rows_of_one = dict(zip(NAMES, np.zeros((len(NAMES), rows), "f4"), strict=True))
    records = np.zeros(rows, [(name, "f4") for name in NAMES])
    layout = Layout([Column(name, "float32") for name in NAMES])
    laid, arrays = layout.allocate(rows), [*heap.values()]
    root, bound, of_records = laid.buffer.root, bind(heap), bind(records)
    return medians(
        {
            "from_numpy of each": lambda: [torch.from_numpy(array) for array in arrays],
            "bind, arrays": lambda: bind(heap),
            "bind, records": lambda: bind(records),
            "bind, rows of one array": lambda: bind(rows_of_one),
            "wrap + tensors": lambda: tensors(layout.wrap(root, rows), EACH),
            "bind + tensors, arrays": lambda: tensors(bind(heap), EACH),
            "bind + tensors, records": lambda: tensors(bind(records), EACH),
            "wrap + one tensor": lambda: tensors(layout.wrap(root, rows), ONE),
            "bind + one tensor, records": lambda: tensors(bind(records), ONE),
            "bind + one tensor, arrays": lambda: tensors(bind(heap), ONE, copy=None),
            "np.stack + from_numpy": lambda: torch.from_numpy(np.stack(arrays, 1)),
            "tensors again, laid": lambda: tensors(laid, EACH),
            "tensors again, arrays": lambda: tensors(bound, EACH),
            "tensors again, records": lambda: tensors(of_records, EACH),
        },
        rounds=40,
        repeat=50,
        clock=time.thread_time,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--rows", type=int, default=1000)
    found = measured(parser.parse_args().rows)
    base = found["from_numpy of each"]
    print(f"torch {torch.__version__}, numpy {np.__version__}")
    for name, seconds in found.items():
        print(f"{name:28s} {seconds * 1e6:8.2f} us  {seconds / base:6.2f} x from_numpy")
    for one, other in [
        ("bind + tensors, arrays", "wrap + tensors"),
        ("bind + tensors, records", "wrap + tensors"),
        ("bind + one tensor, arrays", "np.stack + from_numpy"),
        ("tensors again, arrays", "tensors again, laid"),
        ("tensors again, records", "tensors again, laid"),
    ]:
        print(f"{one} / {other}: {found[one] / found[other]:.2f}")


if __name__ == "__main__":
    main()
