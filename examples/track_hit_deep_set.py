"""TrackHitDeepSet: tracks in batches, their hits whole: `python examples/track_hit_deep_set.py`."""

from __future__ import annotations

import sys

import jax
import numpy as np
import torch
from both import dense, show
from simple_net import INPUTS, OUTPUTS, SIMPLE_NET

from soaview import Blocks, Column, Layout, Scalar, Spec, Value

EVENT = Blocks(
    {
        "tracks": Layout(
            [*(Column(name, "float32") for name in ("pt", "eta", "phi")), Column("index", "int32")]
        ),
        "hits": Layout(
            [
                *(Column(name, "float32") for name in ("x", "y", "z")),
                Column("track_index", "int32"),
                Scalar("hit_scale", "float32"),
            ]
        ),
    }
)

TRACKS = Spec({**INPUTS, "index": "index"})
HITS = Spec(hits=["x", "y", "z"], track_index="track_index", hit_scale=["hit_scale"])


class Net(torch.nn.Module):
    """The network in torch: a track and the sum of what its hits are encoded as."""

    def __init__(self) -> None:
        super().__init__()
        self.track, self.hit = torch.nn.Linear(3, 16), torch.nn.Linear(3, 16)
        self.last = torch.nn.Linear(32, 1)

    def forward(self, features, index, hits, track_index, hit_scale):
        encoded = torch.relu(self.hit(hits * hit_scale))
        # The batch's tracks are neighbours. Hits of others go to one more place, left out.
        place = track_index - index[0]
        place = torch.where((place >= 0) & (place < index.shape[0]), place, index.shape[0])
        pooled = encoded.new_zeros((index.shape[0] + 1, 16)).index_add_(0, place, encoded)
        both = torch.cat((torch.relu(self.track(features)), pooled[:-1]), dim=1)
        return torch.sigmoid(self.last(both))


def net(weights, features, index, hits, track_index, hit_scale):
    """The same in JAX, which leaves hits of other tracks out by itself."""
    encoded = jax.nn.relu(dense(weights, "hit", hits * hit_scale))
    pooled = jax.ops.segment_sum(encoded, track_index - index[0], num_segments=index.shape[0])
    both = jax.numpy.concatenate([jax.nn.relu(dense(weights, "track", features)), pooled], axis=1)
    return jax.nn.sigmoid(dense(weights, "last", both))


def event(rows):
    """What goes in, from two SoAs in one buffer, and where it goes."""
    random = np.random.default_rng(rows)
    found = EVENT.allocate({"tracks": rows, "hits": 4 * rows})
    tracks, hits = found.values()
    for soa, names in ((tracks, ("pt", "eta", "phi")), (hits, ("x", "y", "z"))):
        for name in names:
            soa[name][:] = random.normal(size=len(soa))
    tracks["index"][:] = np.arange(rows)
    hits["track_index"][:] = np.sort(random.integers(0, max(rows, 1), len(hits)))
    hits[Value("hit_scale")][...] = 0.5
    return [(tracks, TRACKS), (hits, HITS)], (SIMPLE_NET.allocate(rows), OUTPUTS)


BATCH_SIZE = [300, None]  # of tracks; all hits go with each batch

if __name__ == "__main__":
    show(sys.modules[__name__], batch_size=BATCH_SIZE)
