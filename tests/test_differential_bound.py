"""Bound columns against the same oracle: it knows each element's address, and who vouches for it.

What counts as a case is one tensor; an example has `TENSORS` of them.
"""

from __future__ import annotations

import ctypes
import itertools
import random

import numpy as np
import pytest
from bound import Shown
from bound_cases import ROWS, SIZE, Case, Lies, apart, in_records, mixed, of_layouts, random_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from test_differential import JAX, JIT, TORCH, WRONG, Found, Memory, compare_all, layouts

from soaview import SoA, Spec, Value, _bind, bind, views

NEEDS = ["torch", "jax"]

TENSORS = 25


# What is asked, and what the oracle says


def spec_entries(rng, columns):
    """As many entries as there are cases in an example."""
    names, kinds = sorted(columns), {}
    for name in names:
        column = columns[name]
        kinds.setdefault((column.dtype, column.shape, column.per_row), []).append(name)
    for _ in range(TENSORS):
        name = rng.choice(names)
        column = columns[name]
        alike = kinds[column.dtype, column.shape, column.per_row]
        kind = rng.randint(0, 9)
        if kind <= 1:
            yield name
        elif kind == 2:
            yield Value(name)
        elif kind == 3:
            yield rng.choices(names, k=rng.randint(1, 3))
        elif kind <= 6:
            yield rng.choices(alike, k=rng.randint(1, 4))
        else:  # as they lie, every so many
            in_memory = sorted(alike, key=lambda name: columns[name].address)
            yield in_memory[rng.randrange(len(alike)) :: rng.randint(1, 2)]


def allocations(columns):
    """Of each column the number of its allocation: those that are vouched for and overlap."""
    numbers = {name: i for i, name in enumerate(columns)}
    for one, other in itertools.combinations(columns, 2):
        a, b = columns[one], columns[other]
        if a.first < b.end and b.first < a.end and numbers[one] != numbers[other]:
            old, new = numbers[other], numbers[one]
            numbers = {name: new if n == old else n for name, n in numbers.items()}
    return numbers


def taken_steps(column):
    """Its strides, but within a row where nobody takes a step."""
    inner = zip(column.shape, column.strides[column.per_row :], strict=True)
    return column.strides[: column.per_row], tuple([s if n > 1 else 0 for n, s in inner])


def is_aligned(column):
    size = SIZE[column.dtype]
    rows, inner = taken_steps(column)
    return not any(n % size for n in (column.address, *rows, *inner))


def has_a_view(case, entry):
    """Whether one stride leads through the columns, in one allocation."""
    names = [entry] if isinstance(entry, str) else entry
    names = [entry.name] if isinstance(entry, Value) else names
    columns = [case.columns[name] for name in names]
    if not case.capacity and all(c.per_row for c in columns):
        return len(set(names)) == len(names)
    if not all(map(is_aligned, columns)):
        return False
    numbers = allocations(case.columns)
    if len({(numbers[name], taken_steps(case.columns[name])) for name in names}) > 1:
        return False
    size = SIZE[columns[0].dtype]
    steps = {b.address - a.address for a, b in itertools.pairwise(columns)} or {size}
    return len(steps) == 1 and min(steps) > 0 and min(steps) % size == 0


def frozen_in(case):
    """Of which allocations a column may not be written, and so none."""
    numbers = allocations(case.columns)
    return {numbers[name] for name, column in case.columns.items() if not column.writable}


def what_is_right(case, asked, rows, padded):
    """The oracle's word on every entry."""
    numbers, frozen = allocations(case.columns), frozen_in(case)
    memory = Memory([(address, live.copy()) for address, live in case.memory])
    found = Found({}, set(), set(), [], memory, padded)
    for number, entry in enumerate(asked):
        value = isinstance(entry, Value)
        names = [entry] if isinstance(entry, str) else [entry.name] if value else entry
        columns = [case.columns[name] for name in names]
        kinds = {(c.dtype, c.shape) for c in columns}
        if len(kinds) > 1 or (value and columns[0].per_row):
            found.bad.append(entry)
            continue
        parts = [column.addresses(range(1) if value else rows) for column in columns]
        where = np.stack(parts, 1) if isinstance(entry, list) else parts[0]
        name = f"t{number}"
        found.places[name] = entry, columns[0].dtype, where[0] if value else where
        if has_a_view(case, entry):
            found.strided.add(name)
        if numbers[names[0]] in frozen:  # of several where there are no rows
            found.readonly.add(name)
    return found


def check_arrays(soa, case, oracle):
    """What NumPy reads by name, also where no framework does, and of a packed copy."""
    for name, (entry, dtype, where) in oracle.places.items():
        single = not isinstance(entry, list)
        if not (single or name in oracle.strided):
            with pytest.raises(BufferError):
                soa[entry]
            continue
        array = soa[entry]
        assert (array.shape, array.dtype.name) == (where.shape, dtype)
        if where.size:
            assert array.ctypes.data == where.flat[0]
        wanted = oracle.memory[where[..., None] + np.arange(SIZE[dtype])]
        assert array.tobytes() == wanted.tobytes()
    packed = soa.pack()
    for name in soa:
        key = name if soa.layout[name].per_row else Value(name)
        assert packed[key].tobytes() == soa[key].tobytes()
        assert packed.layout[name].shape == soa.layout[name].shape


def check_batches(soa, oracle, size):
    """Batches have their own rows, where they lie."""
    for name in sorted(oracle.strided)[:3]:
        entry, _, where = oracle.places[name]
        for number, batch in enumerate(soa.batches(size)):
            [view] = views(batch, Spec({name: entry}))
            part = where if isinstance(entry, Value) else where[number * size :][:size]
            assert view.shape == part.shape
            assert not view.size or view.address == part.flat[0]


def check_writes(soa, case, oracle, rng, adapter, make):
    """Exactly what is named is written; or nothing, and an error says why."""
    live = Memory(case.memory)
    names = rng.sample(sorted(oracle.places), min(len(oracle.places), rng.randint(1, 2)))
    chosen = [oracle.places[name] for name in names]
    spec = Spec({name: entry for name, (entry, _, _) in zip(names, chosen, strict=True)})
    columns, fine = [], True
    for entry, _, _ in chosen:
        some = [entry] if isinstance(entry, str) else entry
        columns += [entry.name] if isinstance(entry, Value) else some
        if not isinstance(entry, Value):
            fine = fine and all(case.columns[name].per_row for name in some)
    fine = fine and len(set(columns)) == len(columns)
    fine = fine and not frozen_in(case) & {allocations(case.columns)[name] for name in columns}
    if case.capacity:
        fine = fine and all(is_aligned(case.columns[name]) for name in columns)
    bytes_of = [where[..., None] + np.arange(SIZE[dtype]) for _, dtype, where in chosen]
    together = np.concatenate([at.reshape(-1) for at in bytes_of])
    fine = fine and len(np.unique(together)) == len(together)
    values = []
    for (_, dtype, where), at in zip(chosen, bytes_of, strict=True):
        content = random_bytes(rng, at.size) & (1 if dtype in ("bool", "bfloat16") else 255)
        values.append(content.view(dtype).reshape(where.shape))
    with adapter.settings():
        given = [make(value) for value in values]
        before = live.content.copy()
        if fine:
            adapter.write(soa, spec, given)
        else:
            with pytest.raises((BufferError, ValueError)):
                adapter.write(soa, spec, given)
    for at, value in zip(bytes_of, values, strict=True) if fine else ():
        before[live.places(at.reshape(-1))] = value.reshape(-1).view(np.uint8)
    np.testing.assert_array_equal(Memory(case.memory).content, before)


def compare(case, rng, torch=TORCH, jax=JAX, jit=JIT):
    """All ways to take and to write what is bound."""
    for column in case.columns.values():
        if column.dtype == "bool":
            at = column.addresses(range(case.capacity if column.per_row else 1)).reshape(-1)
            for base, live in case.memory:
                within = at[(at >= base) & (at < base + len(live))] - base
                writable(live)[within] &= 1
    soa = bind(case.data, rows=case.capacity)
    assert list(soa) == list(case.columns)
    start, stop, padded = 0, case.capacity, rng.randint(0, 3) == 0
    if not padded and rng.randint(0, 1):
        start, stop = sorted((rng.randint(0, stop), rng.randint(0, stop)))
    part = soa[start:stop]
    oracle = what_is_right(case, spec_entries(rng, case.columns), range(start, stop), padded)
    compare_all(part, oracle, torch, jax, jit)
    if case.pack:
        check_arrays(part, case, oracle)
    check_batches(part, oracle, rng.randint(1, 40))
    for adapter in (torch, jax):
        if oracle.places:
            make = JAX.jax.device_put if adapter is jax else adapter.from_numpy  # not compiled
            check_writes(part, case, oracle, rng, adapter, make)


def writable(live):
    """The same bytes, whatever their flag says: they are this test's own."""
    address = live.ctypes.data
    return np.ctypeslib.as_array((ctypes.c_uint8 * len(live)).from_address(address))


FEWER = settings(deadline=None, max_examples=settings().max_examples * 2 // 5)
"""An example takes as long as it takes XLA to compile it, whatever the number of its tensors."""


@pytest.mark.slow
@FEWER
@given(
    st.data(),
    st.sampled_from(["mixed"] * 5 + ["apart", "records", "host", "device"]),
    st.sampled_from(ROWS),
    st.integers(0, 2**32 - 1),
)
def test_all_agree(data, kind, rows, seed):
    """Whatever is bound, however it lies."""
    rng = random.Random(seed)
    if kind in ("host", "device"):
        chosen = [data.draw(layouts()) for _ in range(rng.randint(1, 2))]
        case = of_layouts(rng, rows, chosen, kind == "device")
    else:
        case = {"mixed": mixed, "apart": apart, "records": in_records}[kind](rng, rows)
    # XLA takes most of the time, and compiles what others have read.
    compare(case, rng, jit=None if seed % 3 else JIT)
    if seed % 50 == 0:
        JIT.jitted.clear()
        JAX.jax.clear_caches()  # which hold what was compiled for every case


def a_block():
    """Three columns at one distance."""
    live = np.zeros(3 * 128 + 64, np.uint8)
    base = live.ctypes.data
    arrays = [np.ndarray((32,), "f4", live, -base % 64 + 128 * number) for number in range(3)]
    where = {name: (array.ctypes.data, (4,)) for name, array in zip("xyz", arrays, strict=True)}
    columns = {
        name: Lies("float32", (), True, at, steps, base, base + len(live), True, array)
        for (name, (at, steps)), array in zip(where.items(), arrays, strict=True)
    }
    live[:] = np.arange(len(live)) % 251
    return Case(dict(zip("xyz", arrays, strict=True)), columns, 32, [(base, live)])


def read(case, soa, **adapters):
    asked = ["x", ["x", "y"], ["y", "x"]]
    compare_all(soa, what_is_right(case, asked, range(32), False), **adapters)


@pytest.mark.slow_but_every(4)
@pytest.mark.parametrize(
    ("name", "way"), [*itertools.product(["torch", "jax"], WRONG), ("jit", "values")]
)
def test_what_is_wrong_is_seen(name, way):
    """The comparison fails for an adapter that is wrong in one way, and passes for a right one."""
    case = a_block()
    read(case, bind(case.data))
    wrong = WRONG[way]({"torch": TORCH, "jax": JAX, "jit": JIT}[name])
    with pytest.raises(AssertionError):
        read(case, bind(case.data), **{name: wrong})


@pytest.mark.parametrize("change", [{"offset": 4}, {"strides": (8,)}], ids=str)
def test_a_wrong_home_is_seen(change):
    """So is a column that is looked for elsewhere than it lies."""
    case = a_block()
    soa = bind(case.data)
    homes = tuple([home._replace(**change) for home in soa.layout.homes])
    wrong = SoA(type(soa.layout)(soa.layout.fields, homes), soa.buffer, 32, 0, 16)
    with pytest.raises(AssertionError):
        compare_all(wrong, what_is_right(case, ["x"], range(16), False))


def test_one_allocation_of_several_owners_is_seen(monkeypatch):
    """So is a view through what nobody vouches for."""
    case = a_block()
    apart = {n: c._replace(first=c.address, end=c.address + 128) for n, c in case.columns.items()}
    case = case._replace(columns=apart)
    [(base, live)] = case.memory
    data = {n: Shown(live, c.address - base, 32) for n, c in apart.items()}
    read(case, bind(data))
    monkeypatch.setattr(_bind, "overlapping", lambda extents: [[*extents.items()]])
    with pytest.raises(AssertionError):
        read(case, bind(data))
