"""NormFirst: a normalization, then a dense layer. Run it: `python examples/norm_first.py`.

Rows of many columns are normalized column by column, and a view has each column in one piece. Given
as features by rows, torch's own `BatchNorm1d` reads them so, and writes its result so.
"""

from __future__ import annotations

import sys

import jax
import numpy as np
import torch
from both import dense, show

from soaview import Column, Layout, Spec

NAMES = [f"x{i}" for i in range(16)]
LAYOUT = Layout([Column(name, "float32") for name in NAMES])
RESULT = Layout([Column("y", "float32")])


class Net(torch.nn.Module):
    """The network in torch, as it is for rows that lie one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 1)

    def forward(self, x):
        return self.last(self.norm(x))


class ByFeature(torch.nn.Module):
    """The same network, and its weights, for views: the normalization takes (1, features, rows).

    It takes the mean over rows in training, and keeps it, as the other does.
    """

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.norm, self.last = net.norm, net.last

    def forward(self, x):
        return self.last(self.norm(x.T[None])[0].T)


def net(weights, x):
    """The same in JAX, where XLA reads the columns as they lie."""
    x = (x - weights["norm.running_mean"]) / jax.numpy.sqrt(weights["norm.running_var"] + 1e-5)
    return dense(weights, "last", x * weights["norm.weight"] + weights["norm.bias"])


def event(rows):
    """What goes in, and where it goes."""
    soa, random = LAYOUT.allocate(rows), np.random.default_rng(rows)
    for name in soa:
        soa[name][:] = random.normal(2, 3, size=rows)
    return (soa, Spec(x=NAMES)), (RESULT.allocate(rows), Spec(y=["y"]))


BATCH_SIZE = 300

if __name__ == "__main__":
    show(sys.modules[__name__], batch_size=BATCH_SIZE)
