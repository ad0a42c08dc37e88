"""Bound columns at their edges: no rows, one row, odd addresses, less memory than is asked for."""

from __future__ import annotations

import mmap

import ml_dtypes
import numpy as np
import pytest
from bound import Shown

from soaview import Spec, Value, bind, views

N = 5


# Row counts


def test_one_row_says_nothing_about_steps():
    """What is bound after one row, of which NumPy has any stride, is read by strides of its own."""
    bind({"v": np.ones((1, 3), order="F")})
    values = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(bind({"v": values.copy()})["v"], values)
    bind({"x": np.ndarray((1,), "f8", strides=(32,))})
    assert bind({"x": np.arange(4.0)})["x"].tolist() == [0, 1, 2, 3]


def test_axes_that_nobody_steps_along():
    """A stride within a row of one component is no reason to refuse."""
    block = np.zeros((2, N, 1), "f4")
    turned = np.ndarray((N, 1), "f4", block, 4 * N, (4, 4 * N))
    [view] = views(bind({"a": block[0], "b": turned}), Spec(t=["a", "b"]))
    assert view.shape == (N, 2, 1)
    odd = np.ndarray((N, 1), "f4", block, 0, (4, 7))
    assert bind({"a": odd}).layout.home("a").aligned


def test_scalars_without_rows():
    """They have a value where the columns have none."""
    numbers, packed = np.array([1, 2, 3]), np.array((7, 8), [("i", "i1"), ("n", "i4")])
    soa = bind({"x": np.zeros(0, "f4"), "n": numbers[2:].reshape(()), "p": packed["n"]})
    assert (soa[Value("n")], soa[Value("p")]) == (3, 8)
    soa[Value("n")] = 4
    assert numbers.tolist() == [1, 2, 4]


@pytest.mark.parametrize(
    "data",
    [np.zeros(0, [("a", "f4"), ("b", "f4")]), {"a": np.zeros(0, "f4"), "b": np.zeros(0, "f4")}],
    ids=["records", "arrays"],
)
def test_an_event_without_rows(data):
    """Its columns make a view in any order, and take the values that there are."""
    soa = bind(data)
    for names in (["a", "b"], ["b", "a"]):
        [view] = views(soa, Spec(t=names))
        assert view.shape == (0, 2)
        soa[names] = np.zeros((0, 2), "f4")
    soa["a"] = np.zeros(0, "f4")
    with pytest.raises(BufferError, match="no positive, even distance"):
        views(soa, Spec(t=["a", "a"]))


# Addresses


def test_what_is_aligned_is_a_view():
    """Also where the memory that somebody vouches for starts between two items."""
    memory = np.zeros(16 * N + 16, np.uint8)
    first = -memory.ctypes.data % 16
    at = {name: first + 4 * i for i, name in enumerate("abcd")}
    data = {n: Shown(memory, at[n], N, "<f4", (16,)) for n in "ab"}
    # Eight bytes from the second on: they overlap with the others, and start on a multiple of 8.
    data["d"] = Shown(memory, at["c"], N, "<f8", (16,))
    del data["a"]
    soa = bind(data)
    assert all(home.aligned for home in soa.layout.homes)
    [d] = views(soa, Spec(d="d"))
    d.numpy()[:] = 3
    assert soa["d"].tolist() == [3] * N
    assert not soa["b"].any()


def test_columns_of_one_import_are_in_one_allocation():
    """What was handed out as a whole is vouched for as a whole."""
    block = np.from_dlpack(np.arange(4.0 * N).reshape(4, N))
    soa = bind({"a": block[0], "b": block[2], "r": block[::-1][0]})
    assert len(soa.buffer.pieces) == 1
    [view] = views(soa, Spec(t=["a", "b"]))
    assert view.numpy()[1].tolist() == [1, 2 * N + 1]


def test_what_is_empty_parts_nobody():
    """Memory without bytes in the midst of an allocation leaves that whole."""
    memory = np.zeros(64, np.uint8)
    whole, inner = np.asarray(Shown(memory, 0, 16)), np.asarray(Shown(memory, 32, 1))
    data = {"s": whole[:1].reshape(()), "z": Shown(memory, 16, 0), "t": inner.reshape(())}
    soa = bind(data)
    assert len(soa.buffer.pieces) == 2
    assert soa[["s", "t"]].shape == (0, 2)


@pytest.mark.parametrize("side", [-1, 1])
def test_no_byte_beyond(side):
    """What reaches a byte past what its owner vouches for is refused, whatever the owner is."""
    base = np.zeros(N + 2, "f4")
    for whole in (
        base[1:-1].copy(),
        np.asarray(Shown(base, 4, N)),
        np.from_dlpack(base[1:-1]),
        np.frombuffer(bytearray(4 * N), "f4"),
        np.frombuffer(bytes(4 * N), "f4"),
        np.asarray(memoryview(base[1:-1].copy())),
    ):
        assert bind({"x": whole})["x"].size == N
        bytes_of = whole.view("u1")
        tricks = np.lib.stride_tricks
        longer = tricks.as_strided(bytes_of, (4 * N + 1,), (1,))
        beyond = longer if side > 0 else tricks.as_strided(longer[::-1], (4 * N + 2,), (-1,))[::-1]
        with pytest.raises(BufferError, match="column 'x' reaches from byte .* bind an array that"):
            bind({"x": beyond})


# Sources


def test_memory_that_was_closed_before():
    """An array that was only pointed at a mapping is refused when that is closed."""
    mapping = mmap.mmap(-1, 4096)
    array = np.ndarray((16,), "f4", mapping)
    mapping.close()
    with pytest.raises(BufferError, match="column 'x' is in memory of mmap, .* before it is clos"):
        bind({"x": array})


def test_bound_columns_are_bound_again():
    """Also those that are not aligned."""
    records = np.zeros(N, [("i", "i1"), ("x", "f4")])
    head = np.zeros((), [("i", "i1"), ("n", "f8")])
    again = bind(bind({"x": records["x"], "i": records["i"], "n": head["n"]}))
    again["x"], again[Value("n")] = np.arange(N, dtype="f4"), 2
    assert records["x"].tolist() == [0, 1, 2, 3, 4]
    assert head["n"] == 2
    with pytest.raises(BufferError, match="not on multiples of its item size"):
        views(again, Spec(x="x"))


def test_bfloat16():
    """NumPy has it by `ml_dtypes`."""
    array = np.arange(N).astype(ml_dtypes.bfloat16)
    soa = bind({"x": array})
    assert soa.layout["x"].dtype == "bfloat16"
    assert np.shares_memory(soa["x"], array)
