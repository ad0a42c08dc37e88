"""Views of arrays that were bound before, at the same places in other arrays."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from soaview import Spec, _again, bind, views

ROWS = 6


def block(start=0.0):
    """Three columns in one array of their own, and one of another."""
    table = np.arange(3.0 * ROWS).reshape(3, ROWS) + start
    table = table.copy()
    other = np.arange(4 * ROWS, dtype="i4").reshape(ROWS, 4).copy()
    return {"x": table[0], "y": table[2], "v": other[:, 1:3], "z": table[1]}


def known(data):
    """Whether it is bound as what came before was."""
    return _again.again(data) is not None


@pytest.fixture(autouse=True)
def _learned():
    for _ in range(2):
        bind(block())
    assert known(block())


def test_values_and_places():
    """They are views of the new arrays, in as many allocations, which live as long as they do."""
    for start in (10, 20):
        data = block(start)
        soa = bind(data)
        assert len(soa.buffer.pieces) == 2
        assert [piece.nbytes for piece in soa.buffer.pieces] == [3 * ROWS * 8, ROWS * 16]
        for name, array in data.items():
            np.testing.assert_array_equal(soa[name], array)
            assert soa[name].strides == array.strides
            assert np.shares_memory(soa[name], array)
        xy, v = views(soa, Spec(xy=["x", "z", "y"], v="v"))
        assert (xy.strides, v.strides) == ((1, ROWS), (4, 1))
        alive = weakref.ref(data["x"].base)
        found = soa["y"]
        del data, soa, array, xy, v
        gc.collect()
        assert alive() is not None
        assert found[0] == 2 * ROWS + start
        del found
        gc.collect()
        assert alive() is None
    soa = bind(block())
    assert soa.layout is bind(block()).layout
    assert len(bind({n: a[:-1] for n, a in block().items()})) == ROWS - 1


def other_place(data):
    data["y"] = data["y"].base[1]


def shifted(data):
    data["v"] = data["v"].base[:, :2]


def other_strides(data):
    data["v"] = np.arange(4 * ROWS, dtype="i4").reshape(4, ROWS).copy().T[:, 1:3]


def other_rows(data):
    for name in data:
        data[name] = data[name][:4]


def larger(data):
    data["v"] = np.arange(4 * ROWS + 4, dtype="i4").reshape(ROWS + 1, 4).copy()[:ROWS, 1:3]


def other_base(data):
    data["y"] = (data["y"].base + 1)[2]


def other_dtype(data):
    data["v"] = data["v"].base.view("f4")[:, 1:3]


def an_owner(data):
    data["x"] = data["x"].copy()


def read_only(data):
    data["v"].flags.writeable = False


def of_a_read_only_base(data):
    base = data["v"].base.copy()
    data["v"] = base[:, 1:3]
    base.flags.writeable = False


def of_bytes(data):
    data["v"] = np.frombuffer(bytearray(16 * ROWS), "i4").reshape(ROWS, 4)[:, 1:3]


def of_a_list(data):
    data["v"] = data["v"].tolist()


@pytest.mark.parametrize(
    "change",
    [
        other_place,
        shifted,
        other_strides,
        other_rows,
        larger,
        other_base,
        other_dtype,
        an_owner,
        read_only,
        of_a_read_only_base,
        of_bytes,
    ],
)
def test_what_is_unlike(change):
    """It is bound as it is, by the long way."""
    data = block(5)
    change(data)
    assert not known(data)
    soa = bind(data)
    for name, array in data.items():
        np.testing.assert_array_equal(soa[name], array)
        assert soa[name].strides == array.strides
        assert np.shares_memory(soa[name], array)
        [view] = views(soa, Spec({name: name}))
        buffer = view.buffer
        assert buffer.readonly == (change in (read_only, of_a_read_only_base) and name == "v")
    soa = bind(block(7))
    assert soa["x"][0] == 7


def test_what_is_refused():
    """By name, whatever came before."""
    data = block()
    of_a_list(data)
    with pytest.raises(TypeError, match="column 'v': got list"):
        bind(data)
    data = block()
    data["v"] = data["v"][::-1]
    with pytest.raises(ValueError, match="column 'v': strides"):
        bind(data)


def test_a_square_that_is_turned():
    """A column is never taken for its whole array, which has its shape and its dtype."""
    torch = pytest.importorskip("torch")
    from soaview_torch import tensors

    for _ in range(3):
        square = np.arange(9.0).reshape(3, 3).copy()
        soa = bind({"t": square.T})
        [found] = tensors(soa, Spec(t="t"))
        assert found.stride() == (1, 3)
        np.testing.assert_array_equal(found, square.T)
        [found] = tensors(bind({"t": square}), Spec(t="t"))
        np.testing.assert_array_equal(found, square)
        assert isinstance(found, torch.Tensor)
        small = np.arange(9, dtype="u1").reshape(3, 3).copy()
        [found] = tensors(bind({"u": small.T}), Spec(u="u"))
        np.testing.assert_array_equal(found, small.T)


def test_by_turns():
    """Arrays of both kinds under the same names are known each."""
    names = "xy"
    table, owners = np.zeros((2, 4)), {n: np.zeros(4) for n in names}
    parts = dict(zip(names, table, strict=True))
    for data in (parts, parts, owners):
        bind(data)
    for data in (parts, owners, parts):
        assert known(data)
        assert len(bind(data).buffer.pieces) == (1 if data is parts else 2)


def test_two_arrays_that_are_one():
    """Views of one array are in one allocation, though there were two before."""
    tables = np.zeros((2, 4)), np.zeros((2, 4))
    for _ in range(2):
        bind({"p": tables[0][0], "q": tables[1][0]})
    assert known({"p": tables[0][0], "q": tables[1][0]})
    soa = bind({"p": tables[0][0], "q": tables[0][0]})
    assert len(soa.buffer.pieces) == 1


def test_nothing_is_made_for_one_event():
    """What lies elsewhere in each event, or is never taken, is not made a function for."""
    for rows in (3, 4, 5, 4):
        table = np.zeros((2, rows))
        bind({"late": table[1], "first": table[0]})
    assert ("late", "first") not in _again._PARTS
    table = np.zeros((2, 4))
    table.flags.writeable = False
    for base in (table, np.frombuffer(bytearray(64)).reshape(2, 4)):
        for _ in range(3):
            bind({"one": base[0], "two": base[1]})
        assert ("one", "two") not in _again._PARTS


def test_memory_that_starts_anywhere(monkeypatch):
    """Arrays are known by what their addresses are multiples of; so is what is learned."""
    real, past = _again.address_of, [8]
    monkeypatch.setattr(_again, "address_of", lambda array: real(array) + past[0])
    dtype = np.dtype([("a", "f8"), ("b", "f8")])
    for _ in range(3):
        table = np.zeros((2, 4))
        bind({"k": table[0], "l": table[1]})
        bind(np.zeros(3, dtype))
    assert ("k", "l") not in _again._PARTS
    assert id(dtype) not in _again._RECORDS
    past[0] = 0
    for _ in range(2):
        bind({"k": table[0], "l": table[1]})
    assert known({"k": table[0], "l": table[1]})
    past[0] = 8
    assert not known({"k": table[0], "l": table[1]})


def test_tables_of_records():
    """Of two axes they are no records of one, whichever come first."""
    dtype = np.dtype([("a", "f8"), ("b", "i2")])
    for shape in ((3, 2), (3,), (3, 2)):
        assert bind(np.zeros(shape, dtype))["b"].shape == shape


def test_only_so_many_are_kept(monkeypatch):
    """What is kept of other names is let go, and found again."""
    monkeypatch.setattr(_again, "_MOST", 3)
    for number in range(7):
        bind({f"n{number}": np.zeros(3), "m": np.zeros(3)})
    assert len(_again._OWNERS) <= 3
    assert known({"n6": np.zeros(5), "m": np.zeros(5)})
    assert not known({"n0": np.zeros(3), "m": np.zeros(3)})
