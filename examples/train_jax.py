"""Train JAX on ragged events: `python examples/train_jax.py [uproot-HZZ.root]`."""

from __future__ import annotations

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from collisions import P4, from_file, made_up, report, rows_of, soas

import soaview_jax
from soaview import Spec

EVENT = Spec(met=["MET_px", "MET_py"])
BATCH = Spec({**EVENT, "z": "z", "first": "first", "count": "count"})
MUON = Spec(p4=P4, event="event")
SIZES = {"muon": (4, 32), "met": (2, 32), "hidden": (64, 32), "last": (32, 1)}


def new_weights(key):
    """Of each layer a matrix and a bias."""
    keys = zip(SIZES.items(), jax.random.split(key, len(SIZES)), strict=True)
    return {
        name: (jax.random.normal(k, size) / size[0] ** 0.5, jnp.zeros(size[1]))
        for (name, size), k in keys
    }


def net(weights, met, p4, event):
    """The missing momentum, and the sum of what the event's muons are encoded as."""

    def dense(name, x):
        return x @ weights[name][0] + weights[name][1]

    encoded = jax.nn.relu(dense("muon", p4 / 50))
    pooled = jax.ops.segment_sum(encoded, event, num_segments=len(met))
    both = jnp.concatenate([jax.nn.relu(dense("met", met / 25)), pooled], axis=1)
    return dense("last", jax.nn.relu(dense("hidden", both)))[:, 0]


def loss_of(weights, met, z, count, muons):
    """Of one batch: the muons are those of its events, then others, which are left out."""
    [p4] = soaview_jax.arrays(muons, MUON.subset("p4"))
    score = net(weights, met, p4, soaview_jax.segments(muons, counts=count))
    return (jnp.logaddexp(0, score) - z * score).mean()


@jax.jit
def step(state, *batch):
    """One step of Adam."""
    weights, mean, square, number = state
    loss, slope = jax.value_and_grad(loss_of)(weights, *batch)
    mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, slope)
    square = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g**2, square, slope)
    rate = 3e-3 * jnp.sqrt(1 - 0.999**number) / (1 - 0.9**number)
    weights = jax.tree.map(
        lambda w, m, s: w - rate * m / (jnp.sqrt(s) + 1e-8), weights, mean, square
    )
    return (weights, mean, square, number + 1), loss


def main(path: str | None = None) -> None:
    """Train, then score all events."""
    frame, columns = from_file(path) if path else made_up()
    events, muons = soas(frame, columns)
    trained, size = len(events) * 3 // 4, 64
    weights = new_weights(jax.random.key(0))
    zeros = jax.tree.map(jnp.zeros_like, weights)
    # Put where the batches will be, or else the step would be compiled again for its own results.
    state = jax.device_put(
        (weights, zeros, zeros, jnp.ones(())), jax.local_devices(backend="cpu")[0]
    )
    losses = []
    # One shape for all batches: as many events, and as many muons as these have at most.
    batches = soaview_jax.loader(events[:trained], BATCH, size, shuffle=True, drop_last=True)
    most = int(np.sort(events["count"])[-size:].sum())
    for _ in range(10):
        total = 0.0
        for met, z, first, count in batches:
            rows = np.resize(rows_of(np.asarray(first), np.asarray(count)), most)
            state, loss = step(state, met, z, count, muons.take(rows))
            total += float(loss)
        losses.append(total / len(batches))
    # All events at once, from the columns themselves into a column.
    soaview_jax.forward(
        partial(net, state[0]), [(events, EVENT), (muons, MUON)], (events, Spec(score="score"))
    )
    report(frame, events, losses, trained)
    assert step._cache_size() == 1


if __name__ == "__main__":
    main(*sys.argv[1:])
