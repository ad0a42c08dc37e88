"""A fixed capacity with a count: `mask`, `segments`, and integers of every dtype."""

from __future__ import annotations

from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from soas import XY, filled

from soaview import Column, Layout, Scalar, Spec, Value
from soaview_jax import arrays, mask, segments, update

NEEDS = ["jit"]


def test_one_compilation_for_every_count(compilations):
    """1000 events of 0 to 4000 rows at capacity 4096 compile once."""
    layout = Layout([Column("x", "float32"), Column("y", "float32"), Scalar("n", "int32")])
    random = np.random.default_rng(0)
    counts = [0, 4000, *random.integers(0, 4001, 998).tolist()]

    @jax.jit
    def run(soa, count):
        [xy, n] = arrays(soa, Spec(xy=["x", "y"], n=Value("n")))
        valid = mask(soa, count)
        assert (valid.shape, valid.dtype) == ((4096,), bool)
        inside = mask(soa, n)  # the count may also be a scalar of the SoA
        return jnp.where(valid[:, None], xy, 0).sum(0), (inside == valid).all()

    events = [layout.wrap(random.integers(0, 99, layout.nbytes(4096), np.uint8), 4096)]
    events[0]["x"][:] = random.integers(0, 9, 4096)
    events[0]["y"][:] = 1
    with compilations() as compiled:
        for count in counts:
            soa = layout.wrap(events[0].buffer.root.copy(), 4096)
            soa[Value("n")][...] = count
            sums, same = jax.device_get(run(soa, count))
            assert (*sums, same) == (soa["x"][:count].sum(), count, True)
    assert len(compiled) == 1


@pytest.fixture
def compilations():
    """Counts what XLA compiles."""

    @contextmanager
    def counting():
        seen = []

        def listen(event, duration, **_):
            if event == "/jax/core/compile/backend_compile_duration":
                seen.append(duration)

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            yield seen
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)

    return counting


def test_rows_beyond_what_jax_counts():
    """Past 2**31 rows, what needs a row's number wants 64-bit types."""
    rows = 2**31 + 64
    layout = Layout([Column("a", "int8")])
    soa = layout.wrap(np.zeros(layout.nbytes(rows), np.uint8), rows)
    late = lambda s: update(s[2**31 + 3 :], Spec(a="a"), [jnp.ones(61, "int8")])  # noqa: E731
    for bad in (lambda s: mask(s, 3), late):
        with pytest.raises(ValueError, match="JAX does not count to .*64-bit types .*switch"):
            jax.eval_shape(bad, soa)
        with jax.enable_x64(True):
            jax.eval_shape(bad, soa)
    [t] = jax.jit(lambda s: arrays(s[: 2**31 - 1][-3:], Spec(a="a")))(soa)
    assert t.shape == (3,)


def test_no_soa():
    """What is no SoA is refused by its type."""
    for bad in (lambda s: mask(s, 3), lambda s: arrays(s, XY), lambda s: update(s, XY, [])):
        with pytest.raises(TypeError, match="soa must be an SoA, got list"):
            bad([1, 2])


@pytest.mark.parametrize(
    ("count", "error", "message"),
    [
        (34, ValueError, "count must be between 0 and the SoA's 33 rows, got 34"),
        (-1, ValueError, "count must be between 0"),
        (1.0, TypeError, "count must be an integer, got 1.0"),
        (True, TypeError, "count must be an integer, got True"),
        (np.arange(2), TypeError, "count must be an integer"),
    ],
)
def test_bad_counts(count, error, message):
    """A count is one integer within the rows."""
    with pytest.raises(error, match=message):
        mask(filled(33), count)


@pytest.mark.slow
def test_counts_of_other_libraries():
    """Whatever counts as an integer is one."""

    class Count:
        def __index__(self):
            return 7

    assert mask(filled(33), Count()).sum() == 7


@pytest.mark.slow
def test_bad_traced_counts():
    """A traced count is one integer."""
    for count in (jnp.float32(1), jnp.arange(3), jnp.bool(True)):
        with pytest.raises(TypeError, match="count must be one integer, got "):
            jax.jit(mask)(filled(33), count)
    assert jax.jit(mask)(filled(33), np.uint8(7)).sum() == 7
    assert mask(filled(33), jnp.int32(7)).sum() == 7


def with_both(numbers):
    """A test's dtypes, with what JAX must have switched on for each."""
    return pytest.mark.parametrize(
        ("dtype", "wide"),
        [(d, w) for d in numbers for w in ([True] if "64" in d else [False, True])],
    )


INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


@pytest.mark.slow
@with_both(INTEGERS)
def test_counts_of_every_dtype(dtype, wide):
    """Traced or not, in strict promotion, too, a count is the number that it is."""
    soa, info = Layout([Column("x", "int8")]).allocate(300), np.iinfo(dtype)
    with jax.enable_x64(wide), jax.numpy_dtype_promotion("strict"):
        function = jax.jit(mask)
        for count in (0, 1, 99, 127):
            number = np.dtype(dtype).type(count)
            wanted = np.arange(300) < count
            for given in (number, jnp.asarray(number)):
                for found in (function(soa, given), mask(soa, given)):
                    np.testing.assert_array_equal(found, wanted)
        # A traced count is not checked, but does not turn into another one.
        for count in (info.max, info.max - 1, info.min, info.min + 1, -1 if info.min else 5):
            found = function(soa, np.dtype(dtype).type(count))
            np.testing.assert_array_equal(found, [row < count for row in range(300)])
        each = jax.vmap(lambda count: mask(soa, count))(jnp.asarray([3, 5], dtype))
        assert each.sum(1).tolist() == [3, 5]


@pytest.mark.slow
@with_both(INTEGERS)
def test_offsets_of_every_dtype(dtype, wide):
    """Traced or not, in strict promotion, too, offsets and counts say the same."""
    soa = Layout([Column("x", "int8")]).allocate(120)
    counts, offsets = np.array([5, 0, 100, 10], dtype), np.array([0, 5, 5, 105, 115], dtype)
    wanted = np.repeat([0, 2, 3, 4], [5, 100, 10, 5])
    with jax.enable_x64(wide), jax.numpy_dtype_promotion("strict"):
        by_counts = jax.jit(lambda s, c: segments(s, counts=c))
        for function, given in (
            (jax.jit(segments), offsets),
            (segments, offsets),
            (by_counts, counts),
            (lambda s, c: segments(s, counts=c), counts),
        ):
            for numbers in (given, jnp.asarray(given)):
                found = function(soa, numbers)
                assert found.dtype == np.int32
                np.testing.assert_array_equal(found, wanted)
        most = np.iinfo(
            dtype
        ).max  # beyond the rows, or the sum is: all rows that come belong to it
        late = np.repeat([0, 1], [5, 115])
        found = by_counts(soa, np.array([5, most, most, most], dtype))
        np.testing.assert_array_equal(found, late if most > 200 else late + (np.arange(120) >= 132))
        if dtype.startswith("int"):
            found = jax.jit(segments)(soa, np.array([0, -1, 5], dtype))
            np.testing.assert_array_equal(found, np.repeat([1, 2], [5, 115]))
        if most > 120:
            found = jax.jit(segments)(soa, np.array([0, 5, most, most], dtype))
            np.testing.assert_array_equal(found, late)


@pytest.mark.slow
def test_traced_counts_whose_sum_is_beyond_32_bits():
    """They are not checked, but no event begins anew among the rows."""
    soa = Layout([Column("x", "int8")]).allocate(1_000_000)
    found = jax.jit(lambda s, c: segments(s, counts=c))(soa, np.full(3000, 1_000_000, "int32"))
    assert not found.any()


def test_segments_of_more_rows_than_64_bits_count():
    """Counts on the host are summed exactly."""
    soa = Layout([Scalar("n", "int8")]).allocate(2**62)
    with jax.enable_x64(True):
        for counts in ([2**62] * 5, np.full(5, 2**62), np.full(4, 2**62, "uint64")):
            with pytest.raises(ValueError, match=f"the events have {len(counts) * 2**62} rows"):
                segments(soa, counts=counts)
