"""SimpleNet: columns, dense layers, a column. Run it: `python examples/simple_net.py`."""

from __future__ import annotations

import sys

import jax
import numpy as np
import torch
from both import dense, show

from soaview import Column, Layout, Spec

PARTICLES = Layout([Column(name, "float32") for name in ("pt", "eta", "phi")])
SIMPLE_NET = Layout([Column("reco_pt", "float32")])

INPUTS = Spec(features=["pt", "eta", "phi"])
OUTPUTS = Spec(reco_pt=["reco_pt"])  # a list of one name: shape (N, 1), as the last layer gives it


class Net(torch.nn.Module):
    """The network in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 16), torch.nn.Linear(16, 16)
        self.last = torch.nn.Linear(16, 1)

    def forward(self, features):
        return self.last(torch.relu(self.second(torch.relu(self.first(features)))))


def net(weights, features):
    """The same in JAX."""
    for name in ("first", "second"):
        features = jax.nn.relu(dense(weights, name, features))
    return dense(weights, "last", features)


def particles(rows):
    """Random ones."""
    random, soa = np.random.default_rng(rows), PARTICLES.allocate(rows)
    for name in soa:
        soa[name][:] = random.normal(size=rows)
    return soa


def event(rows):
    """What goes in, and where it goes."""
    return (particles(rows), INPUTS), (SIMPLE_NET.allocate(rows), OUTPUTS)


BATCH_SIZE = 300

if __name__ == "__main__":
    show(sys.modules[__name__], batch_size=BATCH_SIZE)
