"""The edges of memory: every address, more rows than 2**31, bytes that are no bools."""

from __future__ import annotations

import numpy as np
import pytest
from cases import padded_bytes

from soaview import Column, Layout, Scalar, Spec, Value


@pytest.mark.slow_but_every(5)
@pytest.mark.aliasing
@pytest.mark.x64
@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "float16", "bfloat16", "float32", "int64", "complex64", "complex128"]
)
def test_every_address(adapter, dtype):
    """At each of 256 addresses a tensor aliases, or is refused with the way out; none is copied."""
    layout, size = Layout([Column("x", dtype)]), np.dtype(dtype).itemsize
    raw = np.zeros(2048, np.uint8)
    start = -raw.ctypes.data % 256
    aliased = 0
    for offset in range(256):
        memory = raw[start + offset :][: padded_bytes(dtype, 33)]
        if offset % size:
            with pytest.raises(BufferError, match=f"past a multiple of {size}"):
                layout.wrap(memory, 33)
            continue
        soa = layout.wrap(memory, 33)
        soa["x"][:] = values = np.arange(33).astype(soa["x"].dtype)
        try:
            [x] = adapter.tensors(soa, Spec(x="x"))
        except BufferError as error:
            assert f"{offset % 64} bytes past a multiple of 64" in str(error)  # noqa: PT017
            assert offset % 64
        else:
            aliased += 1
            assert adapter.address(x) == raw.ctypes.data + start + offset
        for copy in (None, True):
            [copied] = adapter.tensors(soa, Spec(x="x"), copy=copy)
            np.testing.assert_array_equal(adapter.to_numpy(copied), values)
    assert aliased == 256 // (size if adapter.writable else 64)


MANY = 2**31 + 1


@pytest.mark.aliasing
@pytest.mark.x64
def test_more_rows_than_an_int32_counts(adapter):
    """2**31 + 1 rows, zeroed and never touched but for a few, read and written at their end."""
    layout = Layout(
        [Column("x", "int8"), Column("y", "int8"), Column("b", "bool"), Scalar("n", "i4")]
    )
    soa = layout.allocate(MANY)
    soa[Value("n")][...] = 5
    for name, value in (("x", 1), ("y", 2), ("b", True)):
        soa[name][-1] = value
    x, b = adapter.tensors(soa, Spec(x="x", b="b"))
    assert tuple(x.shape) == tuple(b.shape) == (MANY,)
    assert adapter.address(b) - adapter.address(x) == 2 * padded_bytes("int8", MANY) > 2**32
    assert np.from_dlpack(x)[-1] == 1
    [xy] = adapter.tensors(soa, Spec(xy=["x", "y"]), padded=True)
    assert tuple(xy.shape) == (padded_bytes("int8", MANY), 2)
    assert np.from_dlpack(xy)[MANY - 1].tolist() == [1, 2]
    for start in (MANY - 1, MANY - 3):
        last = soa[start:]
        [end] = adapter.tensors(last, Spec(xy=["x", "y"]), copy=True)
        assert adapter.to_numpy(end)[-1].tolist() == [1, 2]
    batch = list(soa[MANY - 5 :].batches(2))[-1]
    adapter.write(batch, Spec(y="y"), [adapter.from_numpy(np.array([9], np.int8))])
    assert soa["y"][-2:].tolist() == [0, 9]


@pytest.mark.parametrize("byte", [0, 1, 2, 255])
def test_foreign_bools(byte):
    """Bytes other than 0 and 1 are found, in columns, matrices and scalars, of a slice its own."""
    layout = Layout([Column("b", "bool"), Column("m", "bool", (2, 2)), Scalar("s", "bool")])
    for entry, field in (("b", "b"), ("m", "m"), (Value("s"), "s")):
        soa = layout.allocate(33)
        found = soa[entry].view(np.uint8)
        found[(7, *(1 for _ in found.shape[1:])) if found.ndim else ()] = byte
        if byte > 1:
            row = ", row 7" if found.ndim else ""
            message = f"field '{field}'{row}: a bool is stored as 0 or 1, got byte {byte}; declare"
            with pytest.raises(ValueError, match=message):
                soa.check_bools()
            part = soa[5:] if found.ndim else soa[:0]  # a scalar is there without rows, too
            with pytest.raises(ValueError, match=message.replace("row 7", "row 2")):
                part.check_bools()
        else:
            soa.check_bools()
        if found.ndim:
            soa[8:].check_bools()
            soa[:0].check_bools()
    Layout([Column("x", "uint8")]).wrap(bytes([255]) * 128, 3).check_bools()
