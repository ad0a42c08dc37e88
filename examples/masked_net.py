"""MaskedNet: columns and two masks, a vector and a scalar. Run: `python examples/masked_net.py`."""

from __future__ import annotations

import sys

import numpy as np
import torch
from both import show
from simple_net import INPUTS, OUTPUTS, SIMPLE_NET, particles

from soaview import Column, Layout, Scalar, Spec

MASK = Layout([Column("mask", "uint8", (3,)), Scalar("scalar_mask", "uint8")])

MASKS = Spec(mask="mask", scalar_mask=["scalar_mask"])  # the scalar as (N, 1), without a copy


class Net(torch.nn.Module):
    """The network in torch; a mask of 1 hides a value, or the whole event."""

    def forward(self, features, mask, scalar_mask):
        return torch.sum(features * (1 - mask) * (1 - scalar_mask), dim=1, keepdim=True)


def net(weights, features, mask, scalar_mask):
    """The same in JAX."""
    return (features * (1 - mask) * (1 - scalar_mask)).sum(axis=1, keepdims=True)


def event(rows):
    """What goes in, from two SoAs, and where it goes."""
    mask = MASK.pack(
        {
            "mask": np.random.default_rng(rows).integers(0, 2, (rows, 3)).astype("uint8"),
            "scalar_mask": 0,
        }
    )
    inputs = [(particles(rows), INPUTS), (mask, MASKS)]
    return inputs, (SIMPLE_NET.allocate(rows), OUTPUTS)


BATCH_SIZE = [300, 300]  # of particles, and of their masks

if __name__ == "__main__":
    show(sys.modules[__name__], batch_size=BATCH_SIZE)
