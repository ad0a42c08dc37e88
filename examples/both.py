"""What the examples share: one network in both frameworks, from SoA to SoA."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import numpy as np
import torch
from jax.tree_util import Partial

import soaview_jax
import soaview_torch


def weights(model: torch.nn.Module) -> dict[str, jax.Array]:
    """A torch model's weights as JAX takes them: by torch's names."""
    return {name: jax.numpy.array(value.numpy()) for name, value in model.state_dict().items()}


def dense(weights: dict[str, Any], name: str, x: Any) -> Any:
    """`torch.nn.Linear` of that name."""
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


@cache
def networks(example: Any) -> tuple[torch.nn.Module, Partial]:
    """An example's network in torch, with random weights, and with the same ones in JAX."""
    torch.manual_seed(0)
    model = example.Net().eval()
    return model, Partial(example.net, weights(model))


def event(example: Any, rows: int, batch_size: Any = None) -> Any:
    """What goes in, and where it goes; an example with a row for each batch is told of them."""
    if batch_size is None or not hasattr(example, "event_in_batches"):
        return example.event(rows)
    return example.event_in_batches(rows, batch_size)


def run(example: Any, rows: int, batch_size: Any = None) -> list[dict[str, np.ndarray]]:
    """What torch, then JAX, write into the output SoA."""
    inputs, (soa, spec) = event(example, rows, batch_size)
    model, function = networks(example)
    found = []
    for forward, network in ((soaview_torch.forward, model), (soaview_jax.forward, function)):
        soa.buffer.root[:] = 0
        forward(network, inputs, (soa, spec), batch_size=batch_size)
        found.append({name: soa[name].copy() for name in soa})
    return found


def show(example: Any, batch_size: Any) -> None:
    """Run both, and print how far they are apart."""
    by_torch, by_jax = run(example, 1000, batch_size)
    for name, values in by_torch.items():
        apart = np.abs(values - by_jax[name]).max()
        print(f"{name}: {values.shape}, torch and JAX differ by {apart:.1e}, first {values[0]}")
