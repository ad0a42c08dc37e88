"""TinyResNet: matrix columns as images into convolutions. Run: `python examples/tiny_resnet.py`."""

from __future__ import annotations

import sys

import jax
import numpy as np
import torch
from both import dense, show
from jax import lax
from torch.nn.functional import relu

from soaview import Column, Layout, Spec

IMAGE = Layout([Column(name, "float32", (9, 9)) for name in ("r", "g", "b")])
LOGITS = Layout([Column("logits", "float32", (10,))])

INPUTS = Spec(image=["r", "g", "b"])  # (N, 3, 9, 9)
OUTPUTS = Spec(logits="logits")


class Block(torch.nn.Module):
    """Two convolutions, and a way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        same = {"kernel_size": 3, "padding": 1, "bias": False}
        self.conv1 = torch.nn.Conv2d(channels, channels, **same)
        self.bn1 = torch.nn.BatchNorm2d(channels)
        self.conv2 = torch.nn.Conv2d(channels, channels, **same)
        self.bn2 = torch.nn.BatchNorm2d(channels)

    def forward(self, x):
        return relu(x + self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))


class Net(torch.nn.Module):
    """The network in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = torch.nn.Conv2d(3, 8, kernel_size=3, padding=1)
        self.block = Block(8)
        self.fc = torch.nn.Linear(8, 10)

    def forward(self, image):
        x = self.block(relu(self.conv_in(image)))
        return torch.softmax(self.fc(x.mean(dim=(2, 3))), dim=1)


def net(weights, image):
    """The same in JAX."""

    def conv(name, x):
        return lax.conv(x, weights[f"{name}.weight"], (1, 1), "SAME")

    def norm(name, x):
        scale, bias, mean, var = (
            weights[f"{name}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / jax.numpy.sqrt(var + 1e-5) * scale + bias

    x = jax.nn.relu(conv("conv_in", image) + weights["conv_in.bias"][:, None, None])
    inner = jax.nn.relu(norm("block.bn1", conv("block.conv1", x)))
    x = jax.nn.relu(x + norm("block.bn2", conv("block.conv2", inner)))
    return jax.nn.softmax(dense(weights, "fc", x.mean(axis=(2, 3))), axis=1)


def event(rows):
    """What goes in, and where it goes."""
    random, images = np.random.default_rng(rows), IMAGE.allocate(rows)
    for name in images:
        images[name][:] = random.normal(size=(rows, 9, 9))
    return (images, INPUTS), (LOGITS.allocate(rows), OUTPUTS)


BATCH_SIZE = 300

if __name__ == "__main__":
    # Convolutions are slow on strides: copy=True would pay for itself in torch.
    show(sys.modules[__name__], batch_size=BATCH_SIZE)
