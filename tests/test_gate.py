"""The gate in front of every view, against an oracle that lists the bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soaview import Column, Layout, Scalar, SoA, Spec, View, views
from soaview._dtypes import INT64_MAX
from soaview._strided import check_bounds

LAYOUT = Layout([Column("x", "float32"), Column("y", "float32"), Scalar("n", "int32")])
ROWS = 33
NBYTES = LAYOUT.nbytes(ROWS)


def fits(itemsize, shape, strides, offset, nbytes):
    """The oracle: list every byte that the view touches."""
    numbers = [*shape, *strides, offset]
    if any(type(n) is not int for n in numbers):
        return False
    if any(not 0 <= n <= INT64_MAX for n in numbers) or offset * itemsize > nbytes:
        return False
    if 0 in shape:
        return True
    starts = {offset}
    for count, stride in zip(shape, strides, strict=True):
        # Beyond this many steps of a positive stride, everything lies outside anyway.
        steps = range(min(count, nbytes + 2) if stride else 1)
        starts = {start + step * stride for start in starts for step in steps}
        if max(starts) * itemsize >= nbytes:
            return False
    return all(
        0 <= start * itemsize + byte < nbytes for start in starts for byte in range(itemsize)
    )


EDGES = [0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 33, 63, 64, 65, -1, -2, -64]
EDGES += [2**31, 2**32, 2**53, *(2**n + d for n in (61, 62, 63, 64) for d in (-1, 0, 1))]
number = st.one_of(st.integers(0, 20), st.sampled_from(EDGES))


@pytest.mark.slow
@settings(max_examples=10 * settings.default.max_examples, deadline=None)
@given(st.data())
def test_the_gate_agrees_with_an_oracle(data):
    """What is accepted touches only bytes of the buffer, and whatever does so is accepted."""
    itemsize = data.draw(st.sampled_from([1, 2, 4, 8, 16]))
    ndim = data.draw(st.integers(0, 3))
    shape = tuple(data.draw(st.lists(number, min_size=ndim, max_size=ndim)))
    strides = tuple(data.draw(st.lists(number, min_size=ndim, max_size=ndim)))
    offset, nbytes = data.draw(number), data.draw(st.integers(0, 200))
    if data.draw(st.booleans()):  # just enough, or a byte less or more
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        nbytes = min(max((last + 1) * itemsize + data.draw(st.integers(-1, 1)), 0), 200)
    view = ("t", "dtype", itemsize, shape, strides, offset)
    if fits(itemsize, shape, strides, offset, nbytes):
        check_bounds([view], nbytes)
    else:
        with pytest.raises(ValueError, match="tensor 't': shape .* do not lie inside the buffer"):
            check_bounds([view], nbytes)


@pytest.mark.parametrize("odd", [True, 2.0, np.int64(2), np.uint8(2), None, "2"])
def test_the_gate_takes_plain_integers_only(odd):
    """A number of another kind could wrap around: it is refused, wherever it stands.

    But for a stride of True, which is 1.
    """
    for view in (
        ("t", "", 4, (odd, 2), (1, 1), 0),
        ("t", "", 4, (2, 2), (1, odd), 0),
        ("t", "", 4, (1, 0), (1, odd), 0),
        ("t", "", 4, (2, 2), (1, 1), odd),
    ):
        if odd is not True or view[4] != (1, True) or 0 in view[3]:
            with pytest.raises((ValueError, TypeError)):
                check_bounds([view], 1000)


def test_the_gate_stands_before_every_view():
    """A layout whose arithmetic were wrong could not get a view out of its buffer."""
    soa = LAYOUT.allocate(ROWS)
    soa = SoA(LAYOUT, soa.buffer, 10 * ROWS, 0, 10 * ROWS)
    with pytest.raises(ValueError, match="do not lie inside the buffer's 640 bytes"):
        views(soa, Spec(xy=["x", "y"]))
    with pytest.raises(ValueError, match="do not lie inside"):
        soa["x"]
    with pytest.raises(ValueError, match="do not lie inside"):
        View("t", "float32", 4, (NBYTES // 4 + 1,), (1,), 0, soa.buffer)
    sizes = [NBYTES // 4]
    for shape, strides, offset in (
        (sizes, (1,), 0),
        ((2,), [1], 0),
        ((True,), (1,), 0),
        ((2.0,), (1,), 0),
        ((2,), (np.int64(1),), 0),
        ((2,), (1,), True),
        ((type("Odd", (int,), {"__sub__": lambda *_: 0})(2**40),), (1,), 0),
    ):
        with pytest.raises(TypeError, match="tuples of plain integers"):
            View("t", "float32", 4, shape, strides, offset, soa.buffer)
    with pytest.raises(TypeError, match="plain integers"):
        View("t", "uint8", 1.0, (2,), (1,), 0, soa.buffer)
    for dtype, itemsize in (("float32", 1), ("uint8", 4), ("float8", 1), ("bfloat16", 4)):
        with pytest.raises(ValueError, match=f"no dtype '{dtype}' of {itemsize} bytes; known are"):
            View("t", dtype, itemsize, (2,), (1,), 0, soa.buffer)
    for shape, strides in (((2, 2), (1,)), ((2,), (1, 1)), ((), (1,))):
        with pytest.raises(ValueError, match="differ in length"):
            View("t", "float32", 4, shape, strides, 0, soa.buffer)
