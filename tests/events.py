"""Ten rows that are cut into five events."""

from __future__ import annotations

import numpy as np

from soaview import Column, Layout, Scalar

LAYOUT = Layout(
    [
        Column("x", "float32"),
        Column("y", "float32"),
        Column("v", "float64", (3,)),
        Column("m", "float32", (2, 2)),
        Scalar("s", "float32"),
    ]
)
OFFSETS = np.array([0, 3, 3, 4, 10, 10])
COUNTS = np.diff(OFFSETS)


def filled():
    """An SoA of these rows, with random numbers."""
    soa, random = LAYOUT.allocate(10), np.random.default_rng(0)
    for name in ("x", "y", "v", "m"):
        soa[name][...] = random.normal(size=soa[name].shape)
    return soa
