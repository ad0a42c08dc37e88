"""`explain` of bound memory: what it says is what happens, and what stands in the way."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from adapters import spec_of
from test_drawing_bound import everything
from test_explain import happens, verdict

from soaview import Value, bind, explain
from soaview.adapter import columns_of, views_or_gathers


def frames(rows):
    """Columns as frames give them: read-only, from a block whose rows are the columns."""
    block = np.arange(3.0 * rows).reshape(3, rows)
    block.flags.writeable = False
    return dict(zip("abc", block, strict=True))


def unaligned(rows):
    """Columns that start on no multiple of their size, and neighbours of theirs that do."""
    memory = np.zeros(64 + 24 * rows, np.uint8)
    at = {"late": 1, "fine": 8 * rows + 8 - 8 * rows % 8, "wide": 16 * rows + 16}
    return {n: memory[first:][: 8 * rows].view("f8") for n, first in at.items()}


def aligned(rows):
    """One column on a multiple of 64 bytes, and one of its own beside it."""
    memory = np.zeros(4 * rows + 64, np.uint8)
    first = -memory.ctypes.data % 64
    return {"x": memory[first : first + 4 * rows].view("f4"), "y": np.zeros(rows, "f4")}


MEMORIES = {
    "everything": (
        everything,
        [
            ["b0", "b1"], ["b1", "b0"], ["b0", "b1", "b3"], ["b0", "b0"], ["b0", "locked"],
            ["r.pt", "r.eta"], "r.m", ["r.q"], "p.m", ["p.pt"], ["p.pt", "r.pt"], "p.q",
            "number", Value("number"), "few", "step", "turned", ["turned"], "rows", ["rows"],
            ["turned", "rows"], "holes", "locked",
        ],
    ),
    "frames": (frames, ["a", ["a", "b", "c"], ["c", "b"], ["a", "c"]]),
    "unaligned": (unaligned, ["late", "fine", "wide", ["late", "fine"], ["fine", "wide"]]),
    "aligned": (aligned, ["x", "y", ["x", "y"]]),
}  # fmt: skip
CASES = [(kind, make, entry) for kind, (make, some) in MEMORIES.items() for entry in some]


def goes_in(soa, spec, said):
    """Inside jit: does JAX alias the leaves of the columns, and are these the memory itself?"""
    jax = importlib.import_module("jax")
    ranges = [range(p.address, p.address + p.nbytes) for p in soa.buffer.pieces]
    names = {*columns_of(spec["t"])}
    if 0 in views_or_gathers(soa, spec)[0].shape:
        names = set()  # nothing is read for it
    nbytes = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(soa):
        if path[0].key in names and leaf.size:
            there = jax.device_put(leaf, jax.local_devices(backend="cpu")[0])
            start = there.unsafe_buffer_pointer()
            nbytes += 0 if any(start in memory for memory in ranges) else leaf.nbytes
    assert (said.gives, said.nbytes) == (("copy", nbytes) if nbytes else ("view", 0))


@pytest.mark.slow_but_every(8)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[2]}")
def test_it_is_what_happens(adapter, case):
    """A view lies where the column does; `copy=False` refuses a copy; a refusal is one always."""
    _, make, entry = case
    spec = spec_of(entry)
    for rows in (0, 1, 33):
        whole = bind(make(rows), rows=rows)
        for soa in [whole, whole[1:-1], whole[:1]] if rows > 2 else [whole]:
            said = verdict(adapter, soa, spec)
            assert bool(said.why) == (said.gives != "view"), said
            assert (said.nbytes > 0) <= (said.gives == "copy")
            if said.gives != "refused" and not adapter.aliases:
                goes_in(soa, spec, said)
            elif adapter.way == "NumPy" and isinstance(entry, (str, Value)):
                assert said.gives == "view"
                array = soa[entry]  # NumPy alone reads what is not aligned, where it lies
                assert not array.size or any(piece.shares(array) for piece in soa.buffer.pieces)
            else:
                happens(adapter, soa, spec, said, case[0])


def reason(soa, entry, way="NumPy"):
    [found] = [v for v in explain(soa, spec_of(entry)).verdicts if v.way == way]
    return found.why


def test_it_says_what_is_in_the_way():
    """Allocations by number, distances in bytes, strides, alignment; each with the ways out."""
    soa = bind(everything(33), rows=33)
    out = "; let copy=None of an adapter gather them, or take them from soa.pack()"
    assert reason(soa, ["b0", "r.pt", "locked"]) == (
        f"its columns are in memory apart (b0 in allocation 2, r.pt in allocation 0, locked in "
        f"allocation 3){out}"
    )
    assert reason(soa, ["b0", "b1", "b3"]) == (
        f"its columns are at no positive, even distance ('b0' to 'b1' 132, 'b1' to 'b3' 264 bytes)"
        f"{out}"
    )
    assert "('b1' to 'b0' -132 bytes)" in reason(soa, ["b1", "b0"])
    assert "column 'p.m' is not on multiples of its item size, 8 bytes" in reason(soa, ["p.m"])
    other = np.zeros((4, 8), "f4")
    mixed = bind({"row": other[0][:4], "column": other[:, 0]})
    assert "('row' (4,), 'column' (32,), in bytes)" in reason(mixed, ["row", "column"])
