"""The whole library against one oracle that lists the bytes of every element.

Random layouts, specs, row counts, slices and addresses: torch's list, JAX's eager list, its jitted
list, and NumPy's views have the oracle's shape, dtype and bytes, and lie where it says or are
refused where the rules say. What counts as a case is one tensor; an example has about ten.
"""

from __future__ import annotations

import itertools
from math import prod

import jax
import numpy as np
from adapters import JaxAdapter, TorchAdapter
from cases import DTYPES
from hypothesis import given, settings
from hypothesis import strategies as st

from soaview import Column, Layout, Scalar, Spec, Value, views

TORCH, JAX = TorchAdapter(), JaxAdapter()
SHAPES = [(), (), (), (1,), (3,), (2, 2), (1, 3), (3, 1)]


@st.composite
def layouts(draw):
    dtypes = draw(st.lists(st.sampled_from(sorted(DTYPES)), min_size=1, max_size=3))
    fields = []
    for number in range(draw(st.integers(1, 8))):
        dtype = draw(st.sampled_from(dtypes))
        if draw(st.integers(0, 4)):
            shape, order = draw(st.sampled_from(SHAPES)), draw(st.sampled_from("FFC"))
            fields.append(Column(f"f{number}", dtype, shape, order))
        else:
            fields.append(Scalar(f"f{number}", dtype))
    return Layout(fields, alignment=draw(st.sampled_from([16, 32, 64, 128, 256])))


@st.composite
def entries(draw, layout):
    first = draw(st.sampled_from(layout.fields))
    alike = [
        f.name
        for f in layout.fields
        if (f.per_row, f.dtype, f.shape) == (first.per_row, first.dtype, first.shape)
    ]
    match draw(st.integers(0, 9)):
        case 0 | 1:
            return first.name
        case 2:
            return Value(first.name)
        case 3:
            return draw(st.lists(st.sampled_from(layout.fields), min_size=1, max_size=4).map(names))
        case 4 | 5 | 6:
            return draw(st.lists(st.sampled_from(alike), min_size=1, max_size=4))
        case _:  # in memory order, every so many
            start = draw(st.integers(0, len(alike) - 1))
            return alike[start :: draw(st.integers(1, 3))]


def names(fields):
    return [f.name for f in fields]


row_counts = st.one_of(
    st.sampled_from([0, 1, 2, 31, 32, 33, 63, 64, 65, 128, 256]), st.integers(0, 300)
)


def starts_of(layout, rows):
    """Byte at which each field starts, and its pitch."""
    found, offset = {}, 0
    for f in layout.fields:
        used = f.itemsize * (rows if f.per_row else 1)
        pitch = (used + layout.alignment - 1) // layout.alignment * layout.alignment
        found[f.name] = offset, pitch
        offset += pitch * prod(f.shape)
    return found, offset


def places_of(layout, capacity, start, rows, entry):
    """The byte at which each element of a tensor lies, or the error that there is none."""
    columns = [entry] if isinstance(entry, str) else entry
    if isinstance(entry, Value):
        columns = [entry.name]
    fields = [layout.field(name) for name in columns]
    if isinstance(entry, Value) and fields[0].per_row:
        return ValueError
    if len({(f.dtype, f.shape) for f in fields}) > 1:
        return ValueError
    starts, _ = starts_of(layout, capacity)
    parts = []
    for f in fields:
        offset, pitch = starts[f.name]
        where = np.arange(prod(f.shape)).reshape(f.shape, order=f.order) * pitch + offset
        row = np.arange(start, start + rows) if f.per_row else np.zeros(rows, int)
        parts.append(where + row.reshape(-1, *(1 for _ in f.shape)) * f.itemsize)
    if isinstance(entry, Value):
        return np.array(starts[entry.name][0])
    return parts[0] if isinstance(entry, str) else np.stack(parts, axis=1)


def has_a_view(layout, entry):
    """Whether one stride leads through the columns, at every row count."""
    if not isinstance(entry, list) or len(entry) == 1:
        return True
    fields = [layout.field(name) for name in entry]
    if len({f.per_row for f in fields}) > 1:
        return False
    if len({steps_of(f) for f in fields}) > 1:
        return False
    for rows in (999, 1000, 12_345):
        starts, _ = starts_of(layout, rows)
        steps = {starts[b][0] - starts[a][0] for a, b in itertools.pairwise(entry)}
        if len(steps) > 1 or min(steps) <= 0:
            return False
    return True


def steps_of(field):
    """Which pitches the two axes of a matrix step by, where it has two."""
    if len(field.shape) < 2:
        return None
    r, c = field.shape
    return (1, r) if field.order == "F" else (c, 1)


def check_values(found, dtype, where, memory):
    """A NumPy array has these bytes."""
    size = np.dtype(dtype).itemsize
    assert found.shape == where.shape
    assert found.dtype.name == dtype
    wanted = memory[where[..., None] + np.arange(size)]
    got = np.ascontiguousarray(found).reshape(-1).view(np.uint8).reshape(wanted.shape)
    np.testing.assert_array_equal(got, wanted)


def check_jitted(found, dtype, where, memory):
    """As `check_values`, but XLA's CPU takes bfloat16 through float32 where it concatenates.

    That makes one NaN of all, and may take subnormal numbers for zero, as its arithmetic does.
    """
    if dtype != "bfloat16":
        return check_values(found, dtype, where, memory)
    assert found.shape == where.shape
    assert found.dtype.name == dtype
    wanted = memory[where[..., None] + np.arange(2)].view(np.uint16)[..., 0]
    assert ((found.view(np.uint16) == wanted) | subnormal_or_nan(wanted)).all()
    assert (subnormal_or_nan(found.view(np.uint16)) <= subnormal_or_nan(wanted)).all()
    return None


def subnormal_or_nan(bits):
    exponent = bits & 0x7F80
    return ((exponent == 0) | (exponent == 0x7F80)) & (bits & 0x7F != 0)


def check_addresses(adapter, tensor, dtype, where, base):
    """Every element of a tensor lies at its byte of the memory."""
    if not where.size:
        return
    got = np.full(where.shape, adapter.address(tensor))
    for axis, (count, step) in enumerate(zip(where.shape, adapter.strides(tensor), strict=True)):
        if count > 1:
            steps = np.arange(count) * step * np.dtype(dtype).itemsize
            got += steps.reshape(-1, *(1 for _ in where.shape[axis + 1 :]))
    np.testing.assert_array_equal(got, base + where)


def is_dense(where, itemsize):
    flat = np.sort(where.reshape(-1))
    return bool((np.diff(flat) == itemsize).all())


def given_or_refused(adapter, soa, spec, refused, **options):
    """The list of tensors; None where the rules say that it is refused, and it is."""
    try:
        found = adapter.tensors(soa, spec, **options)
    except BufferError:
        assert refused
        return None
    assert not refused
    return found


def inside_jit(soa, spec):
    return jax.jit(lambda soa: JAX.tensors(soa, spec))(soa)


@settings(deadline=None)
@given(st.data(), layouts(), row_counts, st.integers(0, 2**32 - 1))
def test_all_agree(data, layout, capacity, seed):
    """What one framework reads, they all read; and each aliases exactly where it can."""
    start, stop = 0, capacity
    if data.draw(st.booleans()):
        start = data.draw(st.integers(0, capacity))
        stop = data.draw(st.integers(start, capacity))
    rows = stop - start
    shift = data.draw(st.sampled_from([0, 0, 0, 16, 48]))
    readonly = data.draw(st.sampled_from([False, False, False, True]))
    memory = bytes_for(layout, capacity, seed, shift)
    base = memory.ctypes.data
    memory.flags.writeable = not readonly
    soa = layout.wrap(memory, capacity)[start:stop]
    tried = [data.draw(entries(layout)) for _ in range(10)]
    good = {}
    for number, entry in enumerate(tried):
        where = places_of(layout, capacity, start, rows, entry)
        spec = Spec({f"t{number}": entry})
        if where is ValueError:
            for adapter in (TORCH, JAX):
                with adapter.settings(), np.testing.assert_raises(ValueError):
                    adapter.tensors(soa, spec)
        else:
            good[f"t{number}"] = entry, layout.field(first_name(entry)).dtype, where
    strided = [name for name, (entry, _, _) in good.items() if has_a_view(layout, entry)]
    whole = Spec({name: entry for name, (entry, _, _) in good.items()})

    for name, (_, dtype, where) in good.items():
        one, scattered = whole.subset(name), name not in strided
        size = np.dtype(dtype).itemsize
        if scattered:
            with np.testing.assert_raises(BufferError):
                views(soa, one)
        else:
            [view] = views(soa, one)
            check_values(view.numpy(), dtype, where, memory)
            assert not where.size or view.address == base + where.flat[0]
        given_or_refused(TORCH, soa, one, scattered or readonly)
        unlike = dtype == "bfloat16" and where.size and sum(n > 1 for n in where.shape) > 1
        start_at = base + int(where.flat[0]) if where.size else 0
        dense = is_dense(where, size) and start_at % 64 == 0 and not unlike
        with JAX.settings():
            alias = given_or_refused(JAX, soa, one, scattered or not dense)
            if alias is not None:
                check_addresses(JAX, alias[0], dtype, where, base)
                check_values(np.asarray(alias[0]), dtype, where, memory)

    torch_list = given_or_refused(TORCH, soa, whole, readonly or len(strided) < len(good))
    if torch_list is not None:
        for tensor, (_, dtype, where) in zip(torch_list, good.values(), strict=True):
            check_addresses(TORCH, tensor, dtype, where, base)
    with JAX.settings():
        copied = JAX.tensors(soa, whole, copy=None)
        jitted = inside_jit(soa, whole)
    for found, to_numpy, check in (
        (TORCH.tensors(soa, whole, copy=None), TORCH.to_numpy, check_values),
        (copied, np.asarray, check_values),
        (jitted, np.asarray, check_jitted),
    ):
        for tensor, (_, dtype, where) in zip(found, good.values(), strict=True):
            check(to_numpy(tensor), dtype, where, memory)
    if seed % 50 == 0:
        jax.clear_caches()  # which hold what was compiled for every layout


def first_name(entry):
    return entry.name if isinstance(entry, Value) else entry if isinstance(entry, str) else entry[0]


def bytes_for(layout, rows, seed, shift):
    """Random memory, `shift` bytes past a multiple of 256; bools are 0 or 1."""
    starts, total = starts_of(layout, rows)
    raw = np.random.default_rng(seed).integers(0, 256, total + 512, np.uint8)
    memory = raw[-raw.ctypes.data % 256 + shift :][:total]
    for f in layout.fields:
        if f.dtype == "bool":
            offset, pitch = starts[f.name]
            memory[offset : offset + pitch * prod(f.shape)] &= 1
    return memory
