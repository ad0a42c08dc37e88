"""Columns bound where they lie: against what NumPy makes of the same arrays."""

from __future__ import annotations

import gc
import mmap
import pickle
import weakref
from copy import copy, deepcopy
from unittest import mock

import numpy as np
import pytest
from bound import Shown, bound_columns, values_of
from hypothesis import given, settings
from hypothesis import strategies as st

from soaview import Column, Layout, Scalar, Spec, Value, _bind, bind, explain, views

N = 5


@given(bound_columns())
@settings(max_examples=60, deadline=None)
def test_values_and_addresses(case):
    """Every column is read where it lies, also of a slice, and packed as it is."""
    rows, data = case
    soa = bind(data, rows=rows)
    assert (len(soa), list(soa)) == (rows, list(data))
    for name, array in data.items():
        field = soa.layout[name]
        found = soa[name if field.per_row else Value(name)]
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype
        if array.size:
            assert np.shares_memory(found, array)
            assert found.__array_interface__["data"] == array.__array_interface__["data"]
        if not field.per_row:
            np.testing.assert_array_equal(soa[name], np.broadcast_to(array, rows))
    part, packed, sent = soa[1:3], soa.pack(), pickle.loads(pickle.dumps(soa))
    for name, array in data.items():
        per_row = soa.layout[name].per_row
        wanted = array[1:3] if per_row else array
        key = name if per_row else Value(name)
        np.testing.assert_array_equal(part[key], wanted)
        np.testing.assert_array_equal(part.pack()[key], wanted)
        np.testing.assert_array_equal(packed[key], array)
        np.testing.assert_array_equal(sent[key], array)
    assert type(packed.layout) is type(sent.layout) is Layout
    assert [len(batch) for batch in soa.batches(2)] == [len(b) for b in packed.batches(2)]


@given(bound_columns(), st.data())
@settings(max_examples=60, deadline=None)
def test_several_columns(case, data):
    """They are one view exactly where one stride leads through them, and are gathered else."""
    rows, arrays = case
    soa = bind(arrays, rows=rows)
    kinds = {}
    for name, array in arrays.items():
        if array.ndim:
            kinds.setdefault((array.dtype, array.shape), []).append(name)
    if not kinds:
        return
    alike = data.draw(st.sampled_from(sorted(kinds.values())))
    names = data.draw(st.lists(st.sampled_from(alike), min_size=1, max_size=3))
    some = [arrays[name] for name in names]
    size = some[0].itemsize
    at = [array.__array_interface__["data"][0] for array in some]
    steps = set(np.diff(at).tolist()) or {size}
    aligned = not any(n % size for n in (*at, *some[0].strides)) or not some[0].size
    owners = {id(array if array.base is None else array.base) for array in some}
    one = len(owners) == len({array.strides for array in some}) == 1
    strided = len(steps) == 1 and min(steps) > 0 and not min(steps) % size
    spec = Spec(t=names)
    wanted = np.stack(some, axis=1)
    [verdict] = [v for v in explain(soa, spec).verdicts if v.way == "NumPy"]
    if some[0].size:
        assert (verdict.gives == "view") == (one and strided and aligned)
    if verdict.gives != "view":
        assert (verdict.gives, verdict.nbytes) == ("copy", wanted.nbytes)
        with pytest.raises(BufferError, match="tensor 't': "):
            views(soa, spec)
        return
    [view] = views(soa, spec)
    np.testing.assert_array_equal(view.numpy(), wanted)
    assert view.address == at[0] or not some[0].size


def test_what_is_written_is_seen():
    """Through names, by assignment, and in the arrays themselves."""
    x, records = np.zeros(N, "f4"), np.zeros(N, [("y", "f4"), ("n", "i1"), ("z", "f4")])
    soa = bind({"x": x, "y": records["y"], "z": records["z"], "s": np.float32(2)})
    soa["x"] = np.arange(N, dtype="f4")
    soa["z"][:] = 3
    soa["y"] += 1
    soa[Value("s")][...] = 7
    assert x.tolist() == [0, 1, 2, 3, 4]
    assert records["z"].tolist() == [3] * N
    assert records["y"].tolist() == [1] * N
    assert soa["s"].tolist() == [7] * N
    with pytest.raises(ValueError, match="read-only"):
        soa["s"][0] = 1  # a value that all rows share
    soa[1:3]["x"] = np.array([8, 9], "f4")
    assert x.tolist() == [0, 8, 9, 3, 4]


# Allocations


def test_one_allocation():
    """Arrays of one owner are one allocation; neighbours of several are not, however they lie."""
    block = np.zeros((4, 16), "f4")
    soa = bind({name: block[i] for i, name in enumerate("abcd")})
    assert len(soa.buffer.pieces) == 1
    [view] = views(soa, Spec(t=["a", "c"]))
    assert view.strides == (1, 32)
    assert soa.buffer.root.size == soa.buffer.nbytes == block.nbytes
    memory = bytearray(4 * 64)
    halves = [np.frombuffer(memory, "f4", 16, 64 * i) for i in range(4)]
    assert len(bind(dict(zip("abcd", halves, strict=True))).buffer.pieces) == 1
    apart = bind({name: np.zeros(16, "f4") for name in "abcd"})
    assert len(apart.buffer.pieces) == 4
    for ask in ("root", "address", "words", "unguarded"):
        with pytest.raises(BufferError, match=r"in 4 allocations.*soa\.pack\(\)"):
            getattr(apart.buffer, ask)
    with pytest.raises(BufferError, match="in memory apart .a in allocation 0, b in allocation 1"):
        views(apart, Spec(t=["a", "b"]))


def test_bounds():
    """What reaches out of its owner's memory is refused, on either side."""
    array = np.zeros(10, "f4")
    for shape, strides in (((11,), (4,)), ((6,), (8,)), ((3, 4), (16, 4))):
        beyond = np.lib.stride_tricks.as_strided(array, shape, strides)
        with pytest.raises(BufferError, match="column 'x' reaches from byte 0 to 4"):
            bind({"x": beyond})
    within = np.lib.stride_tricks.as_strided(array[1:], (4,), (8,))
    assert bind({"x": within})["x"].size == 4


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("step", [1, 2])
def test_owners_are_kept(first, step):
    """By each view its own, as long as that lives, when all else has gone; and then no longer."""
    owners = [np.arange(2.0 * N) for _ in range(2)]
    alive = [weakref.ref(owner) for owner in owners]
    soa = bind({name: a[::step] for name, a in zip("xy", owners, strict=True)})
    found = [soa["x"], soa["y"]]
    del owners, soa
    gc.collect()
    for number in (first, 1 - first):
        assert alive[number]() is not None
        assert found[number][1] == step
        found[number] = None
        gc.collect()
        assert alive[number]() is None


def test_exports_are_held():
    """A mapping is not closed, and a bytearray not resized, while columns are bound to it."""
    memory = bytearray(64)
    soa = bind({"x": np.frombuffer(memory, "f4")})
    with pytest.raises(BufferError):
        memory.extend(b"more")
    del soa
    memory.extend(b"more")
    mapping = mmap.mmap(-1, 4096)
    soa = bind({"x": np.ndarray((16,), "f4", mapping)})
    with pytest.raises(BufferError):
        mapping.close()
    del soa
    mapping.close()


def test_read_only_columns():
    """By column: one that is, and one that is not, in one SoA."""
    x, y = np.zeros(N, "f4"), np.zeros(N, "f4")
    y.flags.writeable = False
    soa = bind({"x": x, "y": y, "z": np.frombuffer(bytes(4 * N), "f4")})
    assert soa.readonly
    soa["x"] = np.ones(N, "f4")
    for name in "yz":
        with pytest.raises((BufferError, ValueError), match="read-only"):
            soa[name] = np.ones(N, "f4")
    assert not y.any()
    assert not bind({"x": x}).readonly
    forbidden = bind({"x": x}, readonly=True)
    with pytest.raises(ValueError, match="read-only"):
        forbidden["x"][0] = 3
    with pytest.raises(ValueError, match="read-only"):
        bind({"z": np.frombuffer(bytes(4), "f4")}, readonly=False)["z"][0] = 1
    assert bind({"y": y}, readonly=False).readonly  # what its owner refuses
    view = x[:]
    view.flags.writeable = False
    assert bind({"x": view}).readonly
    assert not bind({"x": view}, readonly=False).readonly


# What an SoA is asked


def test_what_it_says():
    """Its text, its map, and what a notebook shows."""
    soa = bind({"<x>": np.zeros(N, "f4"), "v": np.zeros((3, N)).T, "n": 3})
    assert repr(soa) == (
        "SoA(5 rows, bound, 3 allocations on cpu: <x> float32, v float64 (3,), n int64)"
    )
    lines = soa.describe().splitlines()
    assert lines[2].split() == ["<x>", "float32", "(5,)", "0", "0", "(4,)"]
    assert lines[3].split()[-3:] == ["0", "(8,", "40)"]
    assert "&lt;x&gt;" in soa._repr_html_()
    assert "<x>" not in soa._repr_html_()
    assert "more fields" in bind({f"c{n}": 1 for n in range(100)}, rows=2)._repr_html_()
    assert repr(soa.layout).startswith("BoundFields([Column('<x>', 'float32')")
    assert soa.layout["v"].shape == (3,)
    assert copy(soa)["n"].tolist() == [3] * N
    assert type(deepcopy(soa).layout) is Layout
    with pytest.raises(TypeError, match="pickle the SoA"):
        pickle.dumps(soa.layout)


def test_the_same_columns_have_the_same_plans():
    """Of the next event, wherever its memory lies, what was compiled is found again."""
    one, other = (bind({"x": np.zeros(N, "f4"), "k": np.zeros(N, "i8")}) for _ in range(2))
    assert one.layout is other.layout
    assert hash(one.layout) == hash(other.layout)
    other = bind({"x": np.zeros(2 * N, "f4")[::2], "k": np.zeros(N, "i8")})
    assert one.layout != other.layout


# On a device


class OnDevice:
    """What has the CUDA array interface, and no memory that anybody reads here."""

    def __init__(self, shape, dtype="f4", strides=None, address=1 << 40):
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": self.dtype.str,
            "data": (address, False),
            "version": 3,
            "strides": strides,
        }


def test_columns_of_a_device():
    """Contiguous arrays, pointers and other SoAs; NumPy does not read them."""
    layout = Layout([Column("x", "f4"), Column("v", "f4", (3,)), Scalar("n", "i4")])
    soa = layout.from_pointer(1 << 44, N, device="cuda:0", owner=object())
    pointer = (1 << 42, "float64", (2, 2))
    both = bind(
        {"a": OnDevice((N, 2)), "x": views(soa, Spec(x="x"))[0], "q": pointer},
        rows=N,
        device="cuda:0",
        owner=object(),
    )
    assert (both.device, len(both.buffer.pieces)) == ("cuda:0", 3)
    a, x, q = views(both, Spec(a="a", x="x", q="q"))
    assert (a.strides, x.strides, q.strides) == ((2, 1), (1,), (4, 2, 1))
    assert (a.address, x.address, q.address) == (1 << 40, 1 << 44, 1 << 42)
    again = bind(soa)
    assert [v.address for v in views(again, Spec(v="v", n=Value("n")))] == [
        v.address for v in views(soa, Spec(v="v", n=Value("n")))
    ]
    for read in (lambda: both["a"], both.pack, lambda: np.asarray(a)):
        with pytest.raises(BufferError, match="on cuda:0, which NumPy does not read"):
            read()
    with pytest.raises(ValueError, match=r"2 devices \(cpu, cuda:0\)"):
        bind({"x": np.zeros(N), "a": OnDevice((N,))})
    for wrong in ((2, 2), (N, 2, 2), ()):
        with pytest.raises(ValueError, match="column 'a': on a device a column is"):
            bind({"a": OnDevice(wrong)}, rows=2)
    with pytest.raises((BufferError, ValueError), match="column 'a'"):
        bind({"a": OnDevice((N, 2), strides=(4, 20))})
    with pytest.raises(BufferError, match="column 'a'.*not contiguous"):
        bind({"a": OnDevice((N,), strides=(8,))})


def test_a_count_of_its_own():
    """A scalar of the columns says how many rows there are."""
    packed = np.zeros((), [("i", "i1"), ("n", "i4")])
    packed["n"] = 2
    soa = bind({"x": np.arange(N), "n": np.int32(3), "odd": packed["n"]})
    assert soa.counted("n")["x"].tolist() == [0, 1, 2]
    assert len(soa.counted("odd")) == 2


def test_arrays_of_the_next_event():
    """What owns its memory is bound by its flags alone, after the first; others never are."""
    for rows in (5, 7, 1):
        data = {"x": values_of(rows, "f4", rows), "v": values_of((rows, 3), "f8")}
        soa = bind(data)
        assert len(soa) == rows
        assert soa.layout is bind({n: a.copy() for n, a in data.items()}).layout
        for name, array in data.items():
            np.testing.assert_array_equal(soa[name], array)
            assert np.shares_memory(soa[name], array)
        alive = weakref.ref(data["x"])
        found = soa["x"]
        del data, soa, array
        gc.collect()
        assert alive() is not None
        np.testing.assert_array_equal(found, values_of(rows, "f4", rows))
    for rows in (5, 2):
        records = np.zeros(rows, [("x", "f4"), ("i", "i1"), ("z", "c16")])
        records["x"], records["z"] = np.arange(rows), 1j
        soa = bind(records)
        assert len(soa.buffer.pieces) == 1
        assert soa["x"].tolist() == list(range(rows))
        assert soa["z"].tolist() == [1j] * rows
        assert bind(records[1:])["x"].tolist() == list(range(1, rows))
    x, v = np.zeros(5, "f4"), np.zeros((5, 3), "f8")
    assert len(bind({"x": x, "v": v}).buffer.pieces) == 2
    assert not bind({"x": np.zeros(0, "f4"), "v": np.zeros((0, 3), "f8")}).rows
    x.flags.writeable = False
    assert bind({"x": x, "v": v}).readonly
    assert bind({"x": np.zeros(10, "f4")[::2], "v": v})["x"].strides == (8,)
    same = bind({"x": v, "v": v})
    assert len(same.buffer.pieces) == 1
    with pytest.raises(ValueError, match="'v' has 4 rows, and 'x' has 5"):
        bind({"x": np.zeros(5, "f4"), "v": np.zeros((4, 3), "f8")})


def test_records_that_start_anywhere():
    """An array whose memory is less aligned than NumPy's is not taken for one of those."""
    dtype = np.dtype([("z", "c16"), ("x", "f8"), ("y", "f8")])
    for _ in range(2):
        assert bind(np.zeros(N, dtype)).layout.home("z").aligned
    memory = np.zeros(N * dtype.itemsize + 8, np.uint8)[8:].view(dtype)
    assert not bind(memory).layout.home("z").aligned
    real = _bind.address_of
    with mock.patch.object(_bind, "address_of", lambda array: real(array) + 8):
        assert _bind._key_of(np.zeros(N, dtype)) is None


def test_columns_that_share_bytes():
    """They are not written at once, also by their names alone; records' fields are."""
    x, records = np.zeros(N, "f4"), np.zeros(N, [("a", "f4"), ("i", "i1"), ("b", "f4")])
    soa = bind({"x": x, "y": x[:], "a": records["a"], "b": records["b"]})
    with pytest.raises(ValueError, match="'x' and 'y' share bytes, and would be written twice"):
        soa[["x", "y"]] = np.ones((N, 2), "f4")
    assert not x.any()


def test_touching_is_not_one_allocation():
    """Memory of two owners stays apart, though the one ends where the other begins."""
    memory = np.zeros(64, np.uint8)
    soa = bind({"x": Shown(memory, 0, 8), "y": Shown(memory, 32, 8)})
    assert len(soa.buffer.pieces) == 2
    overlapping = bind({"x": Shown(memory, 0, 8), "y": Shown(memory, 28, 8)})
    assert len(overlapping.buffer.pieces) == 1


def test_slices_without_rows():
    """Where the last record ends no field of another begins; what is empty is read all the same."""
    records = np.zeros(N, [("a", "f4"), ("i", "i1"), ("b", "f4"), ("c", "f8")])
    for soa in (bind(records), bind(np.zeros(N, np.dtype(records.dtype, align=True)))):
        for part in (soa[N:], soa[2:2], soa[N:][0:]):
            assert [part[name].shape for name in part] == [(0,)] * 4
            assert len(part.pack()) == 0
