"""MultiHeadNet: two outputs, a column and a vector. Run: `python examples/multi_head_net.py`."""

from __future__ import annotations

import sys

import jax
import torch
from both import dense, show
from simple_net import INPUTS, particles

from soaview import Column, Layout, Spec

MULTI_HEAD_NET = Layout(
    [Column("regression_head", "float32"), Column("classification_head", "float32", (3,))]
)

OUTPUTS = Spec(regression=["regression_head"], classification="classification_head")


class Net(torch.nn.Module):
    """The network in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torch.nn.Linear(3, 32)
        self.reg_head, self.class_head = torch.nn.Linear(32, 1), torch.nn.Linear(32, 3)

    def forward(self, features):
        x = torch.relu(self.backbone(features))
        return self.reg_head(x), self.class_head(x)


def net(weights, features):
    """The same in JAX, with its results by name."""
    x = jax.nn.relu(dense(weights, "backbone", features))
    return {
        "classification": dense(weights, "class_head", x),
        "regression": dense(weights, "reg_head", x),
    }


def event(rows):
    """What goes in, and where it goes."""
    return (particles(rows), INPUTS), (MULTI_HEAD_NET.allocate(rows), OUTPUTS)


BATCH_SIZE = 300

if __name__ == "__main__":
    show(sys.modules[__name__], batch_size=BATCH_SIZE)
