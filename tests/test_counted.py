"""How many rows of a fixed capacity are used, by the SoA's own word."""

from __future__ import annotations

import numpy as np
import pytest

from soaview import Blocks, Column, Layout, Scalar, Value

DTYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


def layout_of(dtype):
    fields = [Column("x", "float32"), Scalar("n", dtype), Scalar("more", dtype, (2,))]
    return Layout([*fields, Column("p", "float32", (3,), interleaved=True), Scalar("f", "float64")])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rows_that_count(dtype):
    """The first rows, over the same memory, whatever the integer; none and all of them, too."""
    soa = layout_of(dtype).allocate(100)
    for count in (0, 1, 33, 100):
        soa[Value("n")] = count
        found = soa.counted("n")
        assert (len(found), found.buffer, found.start) == (count, soa.buffer, 0)
        found["x"][...] = count
        assert (soa["x"][:count] == count).all()
    assert not len(layout_of(dtype).allocate(0).counted("n"))


def test_it_is_read_in_every_call():
    """What was given stays as it is; the next call reads again, also of read-only memory."""
    layout = layout_of("int32")
    memory = layout.allocate(100).buffer.root
    soa = layout.wrap(memory, 100)
    frozen = memory.view()
    frozen.flags.writeable = False
    soa[Value("n")] = 3
    first = soa.counted("n")
    soa[Value("n")] = 5
    assert (len(first), len(soa.counted("n")), len(layout.wrap(frozen, 100).counted("n"))) == (
        3,
        5,
        5,
    )


@pytest.mark.parametrize(
    ("dtype", "count"),
    [("int32", -1), ("int8", 101), ("int64", -(2**63)), ("uint64", 2**64 - 1), ("uint8", 0xEE)],
)
def test_counts_that_cannot_be(dtype, count):
    """Negative, and above the rows by one or by all that the type has: with number and name."""
    soa = layout_of(dtype).allocate(100)
    soa[Value("n")] = np.dtype(dtype).type(count)
    with pytest.raises(
        ValueError, match=rf"scalar 'n' says {count} rows, and there is room for 100"
    ):
        soa.counted("n")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("x", TypeError, r"a count is a Scalar of an integer dtype, got Column\('x'"),
        ("f", TypeError, r"a count is .* got Scalar\('f', 'float64'"),
        ("more", TypeError, r"a count is .* got Scalar\('more', 'int32', \(2,\)"),
        ("m", KeyError, "no column 'm'"),
        (3, KeyError, "no column 3"),
    ],
)
def test_what_is_no_count(name, error, message):
    """Columns, floats, arrays, and names that are not there."""
    with pytest.raises(error, match=message):
        layout_of("int32").allocate(100).counted(name)


def test_bools_are_no_counts():
    """Though Python takes them for integers."""
    soa = Layout([Scalar("n", "bool")]).allocate(3)
    with pytest.raises(TypeError, match="a count is a Scalar of an integer"):
        soa.counted("n")


def test_slices_have_no_count():
    """The count is that of the whole memory."""
    soa = layout_of("int32").allocate(100)
    with pytest.raises(
        ValueError, match="rows 10:20 are a slice of 100, whose count is not theirs"
    ):
        soa[10:20].counted("n")
    assert not len(soa[:].counted("n"))


def test_a_block_has_its_own():
    """In blocks each SoA has a count of its own."""
    soas = Blocks({"a": layout_of("int32"), "b": layout_of("int16")}).allocate({"a": 9, "b": 7})
    soas["b"][Value("n")] = 4
    assert [len(soa.counted("n")) for soa in soas.values()] == [0, 4]
