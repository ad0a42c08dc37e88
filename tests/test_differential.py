"""The whole library against one oracle that lists the bytes of every element.

Random layouts, specs, row counts, slices and addresses: torch's list, JAX's eager list, its jitted
list, and NumPy's views have the oracle's shape, dtype and bytes, and lie where it says or are
refused where the rules say. What counts as a case is one tensor; an example has about ten.
"""

from __future__ import annotations

import copy
import functools
import itertools
import operator
from math import prod
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from adapters import Jax32Adapter, JaxAdapter, JitAdapter, TorchAdapter
from cases import DTYPES, first_name
from hypothesis import given, settings
from hypothesis import strategies as st

from soaview import Blocks, Column, Layout, Scalar, Spec, Value, views

NEEDS = ["torch", "jax"]

TORCH, JAX, JAX32, JIT = TorchAdapter(), JaxAdapter(), Jax32Adapter(), JitAdapter()
SHAPES = [(), (), (), (1,), (3,), (2, 2), (1, 3), (3, 1)]


@st.composite
def layouts(draw):
    dtypes = draw(st.lists(st.sampled_from(sorted(DTYPES)), min_size=1, max_size=3))
    fields = []
    for number in range(draw(st.integers(1, 8))):
        dtype = draw(st.sampled_from(dtypes))
        shape = draw(st.sampled_from(SHAPES))
        if draw(st.integers(0, 4)):
            order, adjacent = draw(st.sampled_from("FFC")), draw(st.integers(0, 2)) == 0
            adjacent = adjacent and shape != ()
            fields.append(Column(f"f{number}", dtype, shape, order, interleaved=adjacent))
        else:
            fields.append(Scalar(f"f{number}", dtype, shape))
    largest = max(f.itemsize for f in fields)
    return Layout(fields, alignment=largest * draw(st.sampled_from([1, 2, 4, 8, 16, 32])))


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
    """Byte at which each field starts, its pitch, and where it ends."""
    found, offset = {}, 0
    for f in layout.fields:
        used = f.itemsize * (rows if f.per_row else 1) * adjacent(f)
        pitch = (used + layout.alignment - 1) // layout.alignment * layout.alignment
        end = offset + pitch * prod(f.shape) // adjacent(f)
        found[f.name] = offset, pitch, end
        offset = end
    return found, offset


def adjacent(f):
    """How many of a value's numbers follow each other in memory."""
    return prod(f.shape) if isinstance(f, Scalar) or f.interleaved else 1


def places_of(layout, capacity, start, rows, padded, entry):
    """The byte at which each element of a tensor lies, or the error that there is none."""
    columns = [entry] if isinstance(entry, str) else entry
    if isinstance(entry, Value):
        columns = [entry.name]
    fields = [layout[name] for name in columns]
    if isinstance(entry, Value) and fields[0].per_row:
        return ValueError
    if len({(f.dtype, f.shape) for f in fields}) > 1:
        return ValueError
    starts, _ = starts_of(layout, capacity)
    if padded and not any(f.per_row and f.interleaved for f in fields):
        size = fields[0].itemsize
        rows = (rows * size + layout.alignment - 1) // layout.alignment * layout.alignment // size
    parts = []
    for f in fields:
        offset, pitch, _ = starts[f.name]
        order = f.order if isinstance(f, Column) else "C"
        step = pitch if adjacent(f) == 1 else f.itemsize
        where = np.arange(prod(f.shape)).reshape(f.shape, order=order) * step + offset
        if isinstance(entry, Value):
            return where
        row = np.arange(start, start + rows) if f.per_row else np.zeros(rows, int)
        width = f.itemsize * adjacent(f)
        parts.append(where + row.reshape(-1, *(1 for _ in f.shape)) * width)
    return parts[0] if isinstance(entry, str) else np.stack(parts, axis=1)


def has_a_view(layout, entry):
    """Whether one stride leads through the columns, at every row count."""
    if not isinstance(entry, list) or len(entry) == 1:
        return True
    fields = [layout[name] for name in entry]
    if len({(f.per_row, f.per_row and f.interleaved) for f in fields}) > 1:
        return False
    if len({steps_of(f) for f in fields}) > 1:
        return False
    # A distance is a sum of pitches, one for each item size, and of scalars: two that are equal at
    # these row counts, where a pitch grows by turns for each size alone, always are.
    for rows in (0, 1, *(layout.alignment // n for n in (8, 4, 2, 1)), 12_345):
        starts, _ = starts_of(layout, rows)
        steps = {starts[b][0] - starts[a][0] for a, b in itertools.pairwise(entry)}
        if len(steps) > 1 or min(steps) < 0 or (rows and 0 in steps):
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


def check_addresses(adapter, tensor, where):
    """Every element of a tensor lies at its address."""
    assert tuple(tensor.shape) == where.shape
    if not where.size:
        return
    got = np.full(where.shape, adapter.address(tensor))
    for axis, (count, step) in enumerate(zip(where.shape, adapter.strides(tensor), strict=True)):
        if count > 1:
            steps = np.arange(count) * step * tensor.dtype.itemsize
            got += steps.reshape(-1, *(1 for _ in where.shape[axis + 1 :]))
    np.testing.assert_array_equal(got, where)


def is_dense(where, itemsize):
    flat = np.sort(where.reshape(-1))
    return bool((np.diff(flat) == itemsize).all())


class Case(NamedTuple):
    """What is compared: the tensors of some rows of an SoA."""

    layout: Layout
    entries: list[Any]
    capacity: int
    start: int = 0
    stop: int | None = None
    padded: bool = False
    shift: int = 0  # bytes past a multiple of 256
    readonly: bool = False
    seed: int = 0


def compare(case, torch=TORCH, jax=JAX, jit=JIT):
    """What one framework reads, they all read; and each aliases exactly where it can."""
    memory = bytes_for(case.layout, case.capacity, case.seed, case.shift)
    memory.flags.writeable = not case.readonly
    soa = case.layout.wrap(memory, case.capacity)[case.start : case.stop]
    compare_all(soa, what_is_right(case, memory, 0), torch, jax, jit)


def what_is_right(case, memory, first):
    """The oracle's word on every entry, of an SoA whose bytes start at this one."""
    layout, capacity, start, padded = case.layout, case.capacity, case.start, case.padded
    stop = capacity if case.stop is None else case.stop
    base = memory.ctypes.data
    found = Found({}, set(), set(), [], Memory([(base, memory)]), padded)
    for number, entry in enumerate(case.entries):
        where = places_of(layout, capacity, start, stop - start, padded, entry)
        if where is ValueError:
            found.bad.append(entry)
            continue
        name = f"t{number}"
        found.places[name] = entry, layout[first_name(entry)].dtype, where + base + first
        if has_a_view(layout, entry):
            found.strided.add(name)
        if case.readonly:
            found.readonly.add(name)
    return found


class Memory:
    """The bytes of allocations, by their addresses."""

    def __init__(self, allocations):
        self.allocations = sorted(allocations, key=lambda pair: pair[0])
        self.starts = np.array([start for start, _ in self.allocations])
        self.sizes = np.array([len(content) for _, content in self.allocations])
        self.content = np.concatenate([content for _, content in self.allocations])
        self.shifts = np.cumsum(self.sizes) - self.sizes - self.starts

    def __getitem__(self, addresses):
        return self.content[self.places(addresses)]

    def places(self, addresses):
        """Where these bytes stand in `content`."""
        return addresses + self.shifts[np.searchsorted(self.starts, addresses, "right") - 1]

    def __contains__(self, address):
        return any(start <= address < start + len(content) for start, content in self.allocations)


class Found(NamedTuple):
    """What the oracle says: of each tensor its entry, dtype, and the address of each element.

    And which have a view, which are read-only, which entries fit no tensor, and what memory holds.
    """

    places: dict[str, tuple[Any, str, Any]]
    strided: set[str]
    readonly: set[str]
    bad: list[Any]
    memory: Memory
    padded: bool = False


def compare_all(soa, oracle, torch=TORCH, jax=JAX, jit=JIT):
    """Every way to take the tensors against what the oracle says of them."""
    places, strided, padded = oracle.places, oracle.strided, oracle.padded
    for entry in oracle.bad:
        for adapter in (torch, jax, *([jit] if jit else [])):
            with adapter.settings(), np.testing.assert_raises(ValueError):
                adapter.tensors(soa, Spec(bad=entry), padded=padded)
    whole = Spec({name: entry for name, (entry, _, _) in places.items()})

    def check(found, names=places, adapter=jax, same=check_values):
        # Of an array of JAX's without the copy that `to_numpy` makes, compiled for every shape.
        to_numpy = torch.to_numpy if adapter is torch else np.asarray
        for tensor, name in zip(found, names, strict=True):
            same(to_numpy(tensor), *places[name][1:], oracle.memory)

    def can_alias(adapter, name):
        _, dtype, where = places[name]
        if adapter is torch or name not in strided:
            return name in strided and name not in oracle.readonly
        if dtype == "bfloat16" and soa.buffer.on_host and (np.diff(where.reshape(-1)) < 0).any():
            return False
        aligned = not where.size or where.flat[0] % 64 == 0
        return aligned and is_dense(where, np.dtype(dtype).itemsize)

    for name in whole:
        if name not in strided:
            with np.testing.assert_raises(BufferError):
                views(soa, whole.subset(name), padded=padded)
            continue
        [view] = views(soa, whole.subset(name), padded=padded)
        assert not view.size or view.address == places[name][2].flat[0]
        if soa.buffer.on_host:
            check([view.numpy()], [name])
            shared = view.strides[:1] == (0,)
            assert view.numpy().flags.writeable == (name not in oracle.readonly and not shared)

    for adapter in (torch, jax):
        with adapter.settings():
            able = [name for name in whole if can_alias(adapter, name)]
            found = adapter.tensors(soa, whole.subset(*able), padded=padded) if able else []
            for tensor, name in zip(found, able, strict=True):
                check_addresses(adapter, tensor, places[name][2])
            check(found, able, adapter)
            for name in set(whole) - set(able):
                with np.testing.assert_raises(BufferError):
                    adapter.tensors(soa, whole.subset(name), padded=padded)
            if len(able) < len(whole):
                with np.testing.assert_raises(BufferError):
                    adapter.tensors(soa, whole, padded=padded)
            for how in (None, True):
                found = adapter.tensors(soa, whole, copy=how, padded=padded)
                # Of memory that NumPy does not read, XLA makes JAX's copies.
                by_xla = adapter is jax and not soa.buffer.on_host
                check(found, adapter=adapter, same=check_jitted if by_xla else check_values)
                for tensor, (name, (_, _, where)) in zip(found, places.items(), strict=True):
                    if how is None and name in able:
                        check_addresses(adapter, tensor, where)
                    elif where.size:
                        assert adapter.address(tensor) not in oracle.memory
    with JAX32.settings():
        for name in able:
            if places[name][1] in ("int64", "uint64", "float64", "complex128"):
                with np.testing.assert_raises(TypeError):
                    JAX32.tensors(soa, whole.subset(name), padded=padded)
            else:
                found = JAX32.tensors(soa, whole.subset(name), padded=padded)
                check_addresses(JAX32, found[0], places[name][2])
                check(found, [name])
    if jit is not None:
        with jit.settings():
            check(jit.tensors(soa, whole, padded=padded), same=check_jitted)


@pytest.mark.slow
@settings(deadline=None)
@given(st.data(), layouts(), row_counts, st.integers(0, 2**32 - 1))
def test_all_agree(data, layout, capacity, seed):
    """Whatever is asked of whatever layout."""
    start, stop, padded = 0, capacity, data.draw(st.booleans())
    if not padded and data.draw(st.booleans()):
        start = data.draw(st.integers(0, capacity))
        stop = data.draw(st.integers(start, capacity))
    shift = data.draw(st.sampled_from([0, 0, 0, 16, 48]))
    readonly = data.draw(st.sampled_from([False, False, False, True]))
    tried = [data.draw(entries(layout)) for _ in range(10)]
    compare(Case(layout, tried, capacity, start, stop, padded, shift, readonly, seed))
    if seed % 50 == 0:
        JIT.jitted.clear()
        jax.clear_caches()  # which hold what was compiled for every layout


@st.composite
def trees(draw, deep=2):
    """Blocks in blocks: by name, each a mapping or what a layout and its rows are."""
    found = {}
    for number in range(draw(st.integers(1, 3))):
        nested = deep and draw(st.integers(0, 2)) == 0
        found[f"b{number}"] = draw(trees(deep - 1) if nested else st.tuples(layouts(), row_counts))
    return found


def leaves_of(tree, path=()):
    for name, part in tree.items():
        if isinstance(part, dict):
            yield from leaves_of(part, (*path, name))
        else:
            yield (*path, name), *part


@pytest.mark.slow
@settings(deadline=None, max_examples=settings().max_examples // 10)
@given(st.data(), trees(), st.integers(0, 2**32 - 1))
def test_blocks_agree(data, tree, seed):
    """Each layout of blocks in blocks starts where those before it end."""
    alignment = max(layout.alignment for _, layout, _ in leaves_of(tree))

    def built(part):
        if isinstance(part, dict):
            return Blocks({name: built(inner) for name, inner in part.items()})
        return Layout(part[0].fields, alignment=alignment)

    def counts(part):
        return {n: counts(p) for n, p in part.items()} if isinstance(part, dict) else part[1]

    places, contents = [], []
    for number, (path, layout, count) in enumerate(leaves_of(tree)):
        layout = Layout(layout.fields, alignment=alignment)
        places.append((path, layout, count, sum(map(len, contents))))
        contents.append(bytes_for(layout, count, seed + number, 0))
    whole = np.concatenate(contents)
    memory = np.zeros(len(whole) + 512, np.uint8)
    memory = memory[-memory.ctypes.data % 256 :][: len(whole)]
    memory[:] = whole
    path, layout, count, first = data.draw(st.sampled_from(places))
    soa = functools.reduce(operator.getitem, path, built(tree).wrap(memory, counts(tree)))
    case = Case(layout, [data.draw(entries(layout)) for _ in range(10)], count)
    compare_all(soa, what_is_right(case, memory, first))


def changed(right, change, when):
    """An adapter that is right but for what it gives in one of the ways to ask."""

    def tensors(soa, spec, copy=False, padded=False):
        found = right.tensors(soa, spec, copy=copy, padded=padded)
        return [change(tensor) for tensor in found] if copy is when else found

    wrong = copy.copy(right)
    wrong.tensors = tensors
    return wrong


def never_refusing(right):
    def tensors(soa, spec, copy=False, padded=False):
        try:
            return right.tensors(soa, spec, copy=copy, padded=padded)
        except BufferError:
            return right.tensors(soa, spec, copy=None, padded=padded)

    wrong = copy.copy(right)
    wrong.tensors = tensors
    return wrong


def by_numpy(right, change):
    return lambda tensor: right.from_numpy(change(right.to_numpy(tensor)))


WRONG = {
    "shorter": lambda right: changed(right, lambda t: t[:-1] if t.ndim else t, False),
    "shorter copies": lambda right: changed(right, lambda t: t[:-1] if t.ndim else t, True),
    "copies": lambda right: changed(right, by_numpy(right, np.array), False),
    "copies where none is needed": lambda right: changed(right, by_numpy(right, np.array), None),
    "another type": lambda right: changed(right, by_numpy(right, lambda a: a.view("i4")), True),
    "values": lambda right: changed(right, by_numpy(right, lambda a: -a), right is not JIT),
    "never refusing": never_refusing,
}


@pytest.mark.slow_but_every(4)
@pytest.mark.parametrize(
    ("name", "way"), [*itertools.product(["torch", "jax"], WRONG), ("jit", "values")]
)
def test_what_is_wrong_is_seen(name, way):
    """The comparison fails for an adapter that is wrong in one way, and passes for a right one."""
    columns = [Column(name, "float32") for name in "xyz"]
    case = Case(Layout([*columns, Scalar("n", "float32")]), ["x", ["x", "y"], ["y", "x"]], 32)
    compare(case)
    wrong = WRONG[way]({"torch": TORCH, "jax": JAX, "jit": JIT}[name])
    with pytest.raises(AssertionError):
        compare(case, **{name: wrong})


def bytes_for(layout, rows, seed, shift):
    """Random memory, `shift` bytes past a multiple of 256; bools are 0 or 1."""
    starts, total = starts_of(layout, rows)
    raw = np.random.default_rng(seed).integers(0, 256, total + 512, np.uint8)
    memory = raw[-raw.ctypes.data % 256 + shift :][:total]
    for f in layout.fields:
        if f.dtype == "bool":
            offset, _, end = starts[f.name]
            memory[offset:end] &= 1
    return memory
