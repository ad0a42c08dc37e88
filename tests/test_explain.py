"""`explain`: what it says of views and copies is what happens."""

from __future__ import annotations

import importlib
import time

import numpy as np
import pytest
from adapters import spec_of
from cases import CASES, SCATTERED, Case, filled, layout_of

from soaview import Blocks, Column, Layout, Scalar, Spec, Value, explain
from soaview._explain import Explanation
from soaview.adapter import Gather, Verdict, announce, columns_of, verdicts, views_or_gathers

ODD = [
    Case(f"{dtype}-{'-'.join(names)}", layout_of(dtype, "int8"), list(names), (), tuple, dtype)
    for dtype in ("float32", "float64", "bfloat16")
    for names in SCATTERED
]
LAYOUT = Layout([Column("x", "float32"), Column("y", "float32"), Scalar("n", "int32")])


def memories(layout, rows):
    """One SoA in each kind of memory that decides about a view: by name."""
    memory, _ = filled(layout, rows)
    room = np.zeros(memory.nbytes + 128, np.uint8)
    room = room[-room.ctypes.data % 64 :]
    misaligned = room[16 : 16 + memory.nbytes]
    misaligned[:] = memory
    aligned = layout.allocate(rows)
    aligned.buffer.root[:] = memory
    locked = layout.allocate(rows).buffer.root
    locked[:] = memory
    locked.flags.writeable = False
    found = {
        "allocated": aligned,
        "read-only": layout.wrap(locked, rows),
        "misaligned": layout.wrap(misaligned, rows),
    }
    if rows > 2:
        found["a slice"] = aligned[1:-1]
        found["the first rows"] = aligned[:2]
    return found


def verdict(adapter, soa, spec):
    [found] = [v for v in explain(soa, spec).verdicts if v.way == adapter.way]
    return found


@pytest.mark.slow_but_every(24)
@pytest.mark.parametrize(
    "case",
    [c for c in [*CASES, *ODD] if c.dtype in ("float32", "float64", "bfloat16", "bool")],
    ids=str,
)
def test_it_is_what_happens(adapter, case):
    """A view lies where the SoA does; `copy=False` refuses a copy; what is refused is so always."""
    spec = spec_of(case.entry)
    for rows in (0, 1, 32, 33):
        for kind, soa in memories(case.layout, rows).items():
            said = verdict(adapter, soa, spec)
            assert (said.tensor, said.way) == ("t", adapter.way)
            assert bool(said.why) == (said.gives != "view"), said
            assert (said.nbytes > 0) <= (said.gives == "copy")
            happens(adapter, soa, spec, said, kind)


def happens(adapter, soa, spec, said, kind):
    if said.gives == "refused":
        with pytest.raises(TypeError):
            adapter.tensors(soa, spec)
        return
    if not adapter.aliases:
        goes_in(soa, spec, said)
        return
    if said.gives == "view":
        [found] = adapter.tensors(soa, spec)
        assert 0 in found.shape or adapter.address(found) == start(soa, spec), kind
        return
    with pytest.raises(BufferError) as refusal:
        adapter.tensors(soa, spec)
    assert said.why in str(refusal.value)
    [found] = adapter.tensors(soa, spec, copy=None)
    assert np.prod(found.shape, dtype=int) * adapter.to_numpy(found).itemsize == said.nbytes
    assert 0 in found.shape or adapter.address(found) != start(soa, spec)


def start(soa, spec):
    [tensor] = views_or_gathers(soa, spec)
    if isinstance(tensor, Gather):
        return tensor.parts[0].address if tensor.aligned else soa[tensor.columns[0]].ctypes.data
    return tensor.address


def goes_in(soa, spec, said):
    """Inside jit: does JAX alias the leaves in which the columns are?"""
    jax = importlib.import_module("jax")
    memory = range(soa.buffer.address, soa.buffer.address + soa.buffer.nbytes)
    names = {*columns_of(spec["t"])}
    if 0 in views_or_gathers(soa, spec)[0].shape:
        names = set()  # nothing is read for it
    copied, nbytes = False, 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(soa):
        first, _, last = path[0].key.partition(":")
        fields = [field.name for field in soa.layout.fields]
        run = fields[fields.index(first) : fields.index(last or first) + 1]
        if names & set(run) and leaf.size:
            there = jax.device_put(leaf, jax.local_devices(backend="cpu")[0])
            if there.unsafe_buffer_pointer() not in memory:
                copied = True
                nbytes += leaf.nbytes
    assert (said.gives, said.nbytes) == (("copy", nbytes) if copied else ("view", 0))


def test_the_text():
    """A line for each tensor and each way; a reason that two ways share stands once."""
    text = str(explain(LAYOUT.allocate(33), Spec(xy=["x", "y"], yx=["y", "x"], n=Value("n"))))
    lines = text.splitlines()
    assert "xy: float32 (33, 2), strides (1, 64)" in lines
    assert "yx: float32 (33, 2), no strides" in lines
    assert "n: int32 (), strides ()" in lines
    assert sum("reversed order" in line for line in lines) == 1
    assert sum("copy of 264 bytes" in line for line in lines) >= 1
    assert repr(explain(LAYOUT.allocate(33), Spec(x="x"))).startswith("x: float32 (33,), strides")
    assert str(explain(LAYOUT.allocate(33), Spec({}))) == ""


def test_the_text_of_any_name():
    """A long or hostile name of a tensor is cut, and stays in one line."""
    spec = Spec({"a\n\x1b[2Jb": "x", "b" * 1_000_000: "x"})
    text = str(explain(LAYOUT.allocate(3), spec))
    assert text.startswith(repr("a\n\x1b[2Jb") + ": float32 (3,)")
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 200


def test_the_text_of_many_tensors():
    """Ten times as many tensors take about ten times as long to say, not a hundred times."""
    soa, seconds = LAYOUT.allocate(3), []
    for count in (2_000, 20_000):
        tensors = views_or_gathers(soa, Spec({f"t{n}": "x" for n in range(count)}))
        said = tuple(Verdict(f"t{n}", "NumPy", "view", 0, "") for n in range(count))
        start = time.process_time()
        text = str(Explanation(tuple(tensors), said))
        seconds.append(time.process_time() - start)
        assert text.count("\n") == 2 * count - 1
    assert seconds[1] < 40 * seconds[0] + 0.5


@pytest.mark.parametrize(
    ("soa", "spec", "error", "message"),
    [
        (
            Blocks({"a": LAYOUT}).allocate({"a": 3}),
            Spec(x="x"),
            TypeError,
            "take one of the blocks",
        ),
        (LAYOUT.allocate(3), {"x": "x"}, TypeError, "spec must be a Spec"),
        (LAYOUT.allocate(3), Spec(x="z"), KeyError, "'z'"),
        (LAYOUT.allocate(3), Spec(x=["x", "n"]), ValueError, "one dtype"),
    ],
)
def test_what_does_not_fit(soa, spec, error, message):
    """Mistakes are refused as everywhere."""
    with pytest.raises(error, match=message):
        explain(soa, spec)


def test_what_is_announced_is_asked(monkeypatch):
    """An adapter of one's own says what it does; announced again it takes its place."""
    monkeypatch.setattr(importlib.import_module("soaview._explain"), "_ANNOUNCED", {})

    def take(soa, spec):
        raise BufferError("tensor 'x': never")

    def first(soa, spec):
        raise AssertionError

    def mine(soa, spec):
        return verdicts("mine", take, id, soa, spec)

    announce("mine", first)
    announce("mine", mine)
    found = explain(LAYOUT.allocate(2), Spec(x="x")).verdicts
    assert [tuple(v) for v in found] == [
        ("x", "NumPy", "view", 0, ""),
        ("x", "mine", "copy", 8, "never"),
    ]
    for wrong in (None, [1], (found[0],)):
        announce("mine", lambda soa, spec, wrong=wrong: wrong)
        with pytest.raises(TypeError, match="mine's explain must give a list of Verdict, got"):
            explain(LAYOUT.allocate(2), Spec(x="x"))
    for wrong in (("mine", 3), (3, mine)):
        with pytest.raises(TypeError, match="an adapter's name and its function, got"):
            announce(*wrong)


def test_a_copy_in_silence_is_found():
    """An adapter that copies where it should not is not believed."""

    def take(soa, spec):
        return [soa["x"].copy()]

    [found] = verdicts("mine", take, lambda a: a.ctypes.data, LAYOUT.allocate(2), Spec(x="x"))
    assert found.gives == "copy"
    assert "memory of its own all the same" in found.why


def test_it_changes_nothing():
    """Nothing is written, and what was kept for the SoA is kept."""
    soa = LAYOUT.allocate(33)
    soa["x"][:] = 1
    before = bytes(soa.buffer.root)
    explain(soa, Spec(x=["x", "y"], n="n"))
    assert bytes(soa.buffer.root) == before


def test_without_frameworks(run_python):
    """The core alone explains what NumPy does."""
    code = (
        "from soaview import *; s = Layout([Column('x', 'f4')]).allocate(3); "
        "print([v.way for v in explain(s, Spec(x='x')).verdicts])"
    )
    assert run_python("-c", code).stdout.strip() == "['NumPy']"
