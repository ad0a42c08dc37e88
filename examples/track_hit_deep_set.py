"""TrackHitDeepSet: tracks in batches, their hits whole: `python examples/track_hit_deep_set.py`."""

from __future__ import annotations

import sys

import jax
import numpy as np
import torch
from both import dense, show
from simple_net import INPUTS, OUTPUTS, SIMPLE_NET

from soaview import Blocks, Column, Layout, Spec

EVENT = Blocks(
    {
        "tracks": Layout([Column(name, "float32") for name in ("pt", "eta", "phi")]),
        "hits": Layout([Column(name, "float32") for name in ("x", "y", "z")]),
        "hit_to_track": Layout([Column("index", "int32")]),  # of each hit
        "track_begin": Layout([Column("index", "int32")]),  # of each batch: its first track
    }
)

HITS = Spec(hit_features=["x", "y", "z"])
HIT_TO_TRACK, TRACK_BEGIN = Spec(hit_to_track=["index"]), Spec(track_begin=["index"])


class Net(torch.nn.Module):
    """The network in torch: a track and the sum of what its hits are encoded as."""

    def __init__(self) -> None:
        super().__init__()
        self.track, self.hit = torch.nn.Linear(3, 16), torch.nn.Linear(3, 16)
        self.last = torch.nn.Linear(32, 1)

    def forward(self, features, hit_features, hit_to_track, track_begin):
        tracks = features.shape[0]
        # Hits of other batches' tracks go to one more place, left out.
        place = hit_to_track[:, 0] - track_begin[0, 0]
        place = torch.where((place >= 0) & (place < tracks), place, tracks)
        encoded = torch.relu(self.hit(hit_features))
        pooled = encoded.new_zeros((tracks + 1, 16)).index_add_(0, place, encoded)
        both = torch.cat((torch.relu(self.track(features)), pooled[:-1]), dim=1)
        return torch.sigmoid(self.last(both))


def net(weights, features, hit_features, hit_to_track, track_begin):
    """The same in JAX, which leaves hits of other tracks out by itself."""
    place = hit_to_track[:, 0] - track_begin[0, 0]
    encoded = jax.nn.relu(dense(weights, "hit", hit_features))
    pooled = jax.ops.segment_sum(encoded, place, num_segments=features.shape[0])
    both = jax.numpy.concatenate([jax.nn.relu(dense(weights, "track", features)), pooled], axis=1)
    return jax.nn.sigmoid(dense(weights, "last", both))


def event_in_batches(rows, batch_size):
    """What goes in, from four SoAs in one buffer, and where it goes."""
    random, size = np.random.default_rng(rows), batch_size[0]
    counts = {"tracks": rows, "hits": 4 * rows, "hit_to_track": 4 * rows}
    found = EVENT.allocate({**counts, "track_begin": -(-rows // size)})
    tracks, hits, hit_to_track, track_begin = found.values()
    for soa in (tracks, hits):
        for name in soa:
            soa[name][:] = random.normal(size=len(soa))
    hit_to_track["index"][:] = np.sort(random.integers(0, max(rows, 1), len(hits)))
    track_begin["index"][:] = size * np.arange(len(track_begin))
    specs = INPUTS, HITS, HIT_TO_TRACK, TRACK_BEGIN
    return list(zip(found.values(), specs, strict=True)), (SIMPLE_NET.allocate(rows), OUTPUTS)


def event(rows):
    """The same in one batch."""
    return event_in_batches(rows, [max(rows, 1), None, None, 1])


BATCH_SIZE = [300, None, None, 1]  # 300 tracks; all hits; all of their tracks; where it begins

if __name__ == "__main__":
    show(sys.modules[__name__], batch_size=BATCH_SIZE)
