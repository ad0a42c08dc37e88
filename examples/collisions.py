"""Events and their muons as two SoAs, for the examples that train: from a file, or made up.

The file is `uproot-HZZ.root` of scikit-hep-testdata. A network is to tell which events have a Z
boson: whose first two muons have its mass, within ten GeV. It is told the muons, of which every
event has another number, and the missing momentum.
"""

from __future__ import annotations

import numpy as np
import pandas

from soaview import Column, Layout, SoA

EVENTS = Layout(
    [
        *(Column(name, "float32") for name in ("MET_px", "MET_py", "z", "score")),
        *(Column(name, "int32") for name in ("first", "count")),
    ]
)
"""One row for each event; `first` and `count` say which of the muons are its own."""

P4 = [f"Muon_{part}" for part in ("Px", "Py", "Pz", "E")]
MUONS = Layout([*(Column(name, "float32") for name in P4), Column("event", "int32")])
"""One row for each muon."""

Columns = dict[str, np.ndarray]


def from_file(path: str) -> tuple[pandas.DataFrame, Columns]:
    """The events as a frame, and the columns of their muons."""
    import awkward
    import uproot

    flat = ("MET_px", "MET_py", "NMuon")
    with uproot.open(path) as file:
        found = file["events"].arrays([*flat, *P4])
    events = {name: awkward.to_numpy(found[name]) for name in flat}
    return pandas.DataFrame(events), {n: awkward.to_numpy(awkward.flatten(found[n])) for n in P4}


def made_up(events: int = 2000) -> tuple[pandas.DataFrame, Columns]:
    """The same, of random numbers."""
    random = np.random.default_rng(0)
    kind = random.integers(0, 3, events)  # nothing, one muon of a W's, two of a Z's
    axis = random.normal(size=(events, 3))
    axis /= np.linalg.norm(axis, axis=1)[:, None]
    p3 = np.stack([45.6 * axis, -45.6 * axis], axis=1) + random.normal(scale=3, size=(events, 2, 3))
    p3[kind == 0] *= random.uniform(0.2, 0.8, ((kind == 0).sum(), 1, 1))
    count = np.where(kind == 0, random.integers(0, 3, events), kind)
    p3 = p3[np.arange(2) < count[:, None]]
    p4 = [*p3.T, np.linalg.norm(p3, axis=1)]
    missing = random.normal(scale=15, size=(2, events)).astype("float32")
    frame = {"MET_px": missing[0], "MET_py": missing[1], "NMuon": count.astype("int32")}
    return pandas.DataFrame(frame), {n: v.astype("float32") for n, v in zip(P4, p4, strict=True)}


def soas(frame: pandas.DataFrame, columns: Columns) -> tuple[SoA, SoA]:
    """The events and the muons: one copy of each column."""
    count = frame["NMuon"].to_numpy()
    first = count.cumsum(dtype="int32") - count
    p4 = np.stack([columns[name].astype("float64") for name in P4])
    pairs = first[count >= 2]
    x, y, z, energy = p4[:, pairs] + p4[:, pairs + 1]
    mass = np.zeros(len(frame))
    mass[count >= 2] = np.sqrt(np.maximum(energy**2 - x**2 - y**2 - z**2, 0))
    events = EVENTS.pack(
        {
            **{name: frame[name] for name in ("MET_px", "MET_py")},
            "z": (abs(mass - 91.2) < 10).astype("float32"),
            "score": 0.0,
            "first": first,
            "count": count,
        }
    )
    return events, MUONS.pack(
        {**columns, "event": np.arange(len(frame), dtype="int32").repeat(count)}
    )


def rows_of(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Which muons are these events', event after event."""
    return np.repeat(first - (count.cumsum() - count), count) + np.arange(count.sum())


def report(frame: pandas.DataFrame, events: SoA, losses: list[float], trained: int) -> None:
    """How well the events are told apart that were not trained with, and by guessing."""
    frame["score"] = events["score"]
    right = (events["score"] > 0) == (events["z"] > 0)
    accuracy, share = right[trained:].mean(), events["z"][trained:].mean()
    guessing = max(share, 1 - share)
    print(f"loss {losses[0]:.3f} to {losses[-1]:.3f}")
    print(f"accuracy {accuracy:.3f}, by guessing {guessing:.3f}, of {len(frame) - trained} events")
    print(frame.tail(3))
    assert losses[-1] < losses[0]
    assert accuracy > guessing + 0.1
