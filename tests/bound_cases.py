"""Bound columns of every kind, and where each element lies: in random memory of many owners.

Columns lie in blocks, in records, in steps and on each other; nothing here asks soaview where.
"""

from __future__ import annotations

import ctypes
import mmap
from math import prod
from typing import Any, NamedTuple

import numpy as np
import places
import torch as torch_itself
from bound import Shown
from cases import DTYPES
from test_differential import SHAPES, bytes_for, steps_of

from soaview import Scalar, Spec, Value, views

ROWS = [0, 1, 2, 3, 7, 15, 16, 17, 32, 33, 64, 100]
SIZE = {name: np.dtype(name).itemsize for name in DTYPES}


class Lies(NamedTuple):
    """A column where it lies: its first element's address, and bytes from row to row and within.

    `first` and `end` are what its owner vouches for, `array` is what is bound.
    """

    dtype: str
    shape: tuple[int, ...]
    per_row: bool
    address: int
    strides: tuple[int, ...]
    first: int
    end: int
    writable: bool
    array: Any

    def addresses(self, rows):
        """Of all elements; a scalar's, too, in as many rows."""
        inner = self.strides[self.per_row :]
        found = np.full((len(rows), *self.shape), self.address)
        steps = [(0, rows, self.strides[0])] if self.per_row else []
        steps += [
            (i + 1, range(n), s) for i, (n, s) in enumerate(zip(self.shape, inner, strict=True))
        ]
        for axis, numbers, stride in steps:
            shape = [len(numbers) if a == axis else 1 for a in range(found.ndim)]
            found += np.asarray(numbers, int).reshape(shape) * stride
        return found


class Case(NamedTuple):
    """What is bound, where it lies, and the memory: pairs of address and live bytes."""

    data: Any
    columns: dict[str, Lies]
    capacity: int
    memory: list[tuple[int, np.ndarray]]
    pack: bool = True


# Who owns memory


def random_bytes(rng, count):
    return np.frombuffer(rng.randbytes(count), np.uint8).copy()


def strided(memory, first=0):
    """Arrays over what NumPy is pointed at, from a byte of it on."""
    return lambda dtype, shape, at, steps: np.ndarray(shape, dtype, memory, first + at, steps)


def of_torch(raw):
    """Tensors where torch has them, which is on multiples of their size; else NumPy's arrays."""
    whole = torch_itself.from_numpy(raw)

    def made(dtype, shape, at, steps):
        size = SIZE[dtype]
        if any(n % size for n in (at, *steps)):
            return np.ndarray(shape, dtype, whole.numpy(), at, steps)
        items = whole.view(getattr(torch_itself, dtype))
        return items.as_strided(shape, [step // size for step in steps], at // size)

    return made


def own_span(raw):
    """Each vouches for its own bytes alone."""

    def made(dtype, shape, at, steps):
        last = sum((n - 1) * s for n, s in zip(shape, steps, strict=True)) + SIZE[dtype]
        if dtype == "bfloat16":  # which has no letter of its own
            shown = np.asarray(Shown(raw, at, last if 0 not in shape else 0, "|u1"))
            return np.ndarray(shape, dtype, shown, 0, steps)
        return Shown(raw, at, shape, np.dtype(dtype).str, steps)

    return made


OWNERS = ["array", "array", "frozen", "view", "bytearray", "bytes", "mmap", "ctypes", "torch",
          "torch", "capsule", "span", "span", "touching"]  # fmt: skip


def owned(rng, kind, count):
    """Memory of so many bytes: live ones, and what makes arrays over it."""
    content = random_bytes(rng, count)
    if kind == "bytearray":
        memory = bytearray(content.tobytes())
    elif kind == "bytes":
        memory = content.tobytes()
    elif kind == "mmap":
        memory = mmap.mmap(-1, count)
        memory[:] = content.tobytes()
    elif kind == "ctypes":
        memory = (ctypes.c_uint8 * count).from_buffer_copy(content.tobytes())
    else:
        memory = content
    live = np.frombuffer(memory, np.uint8)
    if kind == "frozen":
        content.flags.writeable = False
    if kind == "torch":
        return live, of_torch(content)
    if kind in ("span", "touching"):
        return live, own_span(content)
    if kind == "capsule":
        memory = np.from_dlpack(content)
    elif kind == "view":
        memory = np.asarray(memoryview(content))
    return live, strided(memory)


# Where columns lie in it


def groups(rng, rows, dtypes, shapes, first):
    """Columns one after another, from a byte on: dtype, shape, per row, offset, strides.

    In blocks at one distance, in records, or by themselves in steps; and scalars.
    """
    found, at = [], first
    for _ in range(rng.randint(1, 3)):
        dtype, shape = rng.choice(dtypes), rng.choice(shapes)
        size, count = SIZE[dtype], prod(shape)
        kind = rng.choice(["block", "block", "records", "records", "scalars"])
        if kind != "records":
            at += -at % size if rng.randint(0, 9) else 0
        if kind == "block":  # each column in rows, by components, or turned; with or without gaps
            gap = rng.choice([0, 0, 0, size, 64, 3])
            order = rng.choice(["rows", "components", "turned"])
            per_row = size * count if order == "rows" else size
            pitch = rows * size + rng.choice([0, 0, size, 5])
            inner, step = [], size if order == "rows" else pitch
            for length in shape[::-1] if order != "turned" else shape:
                inner.append(step)
                step *= length
            inner = inner[::-1] if order != "turned" else inner
            used = rows * per_row if order == "rows" else pitch * count
            for _ in range(rng.randint(1, 4)):
                found.append((dtype, shape, True, at, (per_row, *inner)))
                at += used + gap
        elif kind == "records":
            start, packed, fields = at, rng.randint(0, 2) == 0, []
            for _ in range(rng.randint(1, 4)):
                dtype = rng.choice([dtype, dtype, *dtypes])
                size = SIZE[dtype]
                at += 0 if packed else -at % size
                inner = tuple(np.zeros(shape, dtype).strides)
                fields.append((dtype, shape, at, inner))
                at += size * count
            width = at - start + rng.choice([0, 0, 4, 1])
            width += 0 if packed else -width % max(SIZE[f[0]] for f in fields)
            found += [(d, s, True, o, (width, *inner)) for d, s, o, inner in fields]
            at = start + rows * width
        else:
            for _ in range(rng.randint(1, 3)):
                found.append((dtype, (), False, at, ()))
                at += size * rng.choice([1, 1, 2])
    return found, at


def mixed(rng, rows):
    """Columns in several allocations, in any order, some of them twice."""
    dtypes = rng.sample(sorted(DTYPES), rng.randint(1, 3))
    shapes = rng.sample(SHAPES, rng.randint(1, 2))
    memory, found = [], []
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(OWNERS)
        where, end = groups(rng, rows, dtypes, shapes, rng.choice([0, 0, 0, 16, 4, 1]))
        live, make = owned(rng, kind, (end + 256) // 16 * 16)
        base = live.ctypes.data
        shift = -base % 64  # within the allocation, whose first byte may be anywhere
        memory.append((base, live))
        again = [rng.choice(where)] if rng.randint(0, 3) == 0 else []
        for dtype, shape, per_row, at, strides in where + again:
            whole = (rows, *shape) if per_row else shape
            array = make(dtype, whole, shift + at, strides)
            address = base + shift + at
            first, end = base, base + len(live)
            if kind in ("span", "touching"):
                reach = sum((n - 1) * s for n, s in zip(whole, strides, strict=True)) + SIZE[dtype]
                first, end = address, address + (0 if 0 in whole else reach)
            readonly = kind in ("frozen", "bytes")
            found.append(
                Lies(dtype, shape, per_row, address, strides, first, end, not readonly, array)
            )
    rng.shuffle(found)
    columns = {f"c{i}": column for i, column in enumerate(found)}
    if rng.randint(0, 3) == 0:  # one that is read-only makes its allocation so
        name = rng.choice(sorted(columns))
        if isinstance(columns[name].array, np.ndarray):
            columns[name].array.flags.writeable = False
            columns[name] = columns[name]._replace(writable=False)
    return Case({n: c.array for n, c in columns.items()}, columns, rows, memory)


def of_its_own(array, writable=True):
    """An array that is an allocation itself."""
    address = array.ctypes.data
    return Lies(array.dtype.name, array.shape[1:], True, address, array.strides,
                address, address + array.nbytes, writable, array)  # fmt: skip


def apart(rng, rows):
    """Arrays that own their memory, as an event loop makes them."""
    columns, memory = {}, []
    dtypes = rng.sample(sorted(DTYPES), 2)
    for number in range(rng.randint(1, 5)):
        array = np.zeros((rows, *rng.choice(SHAPES)), rng.choice(dtypes))
        live = array.reshape(-1).view(np.uint8)
        live[:] = random_bytes(rng, array.nbytes)
        columns[f"c{number}"] = of_its_own(array)
        memory.append((live.ctypes.data, live))
    return Case({n: c.array for n, c in columns.items()}, columns, rows, memory)


def in_records(rng, rows):
    """An array of records, as it is."""
    dtypes, shape = rng.sample(sorted(DTYPES), 2), rng.choice(SHAPES)
    fields = [(f"c{i}", rng.choice(dtypes), shape) for i in range(rng.randint(1, 5))]
    records = np.zeros(rows, np.dtype(fields, align=rng.randint(0, 1) == 1))
    live = records.view(np.uint8).reshape(-1)
    live[:] = random_bytes(rng, records.nbytes)
    end = live.ctypes.data + records.nbytes
    columns = {}
    for name, dtype, _ in fields:
        at = live.ctypes.data + records.dtype.fields[name][1]
        steps = (records.dtype.itemsize, *np.zeros(shape, dtype).strides)
        columns[name] = Lies(dtype, shape, True, at, steps, live.ctypes.data, end, True, None)
    return Case(records, columns, rows, [(live.ctypes.data, live)])


def of_layouts(rng, rows, chosen, device):
    """Columns of SoAs in buffers of their own: another SoA, or views of several."""
    columns, memory, data = {}, [], {}
    for number, layout in enumerate(chosen):
        live = places.aligned(bytes_for(layout, rows, rng.getrandbits(32), 0))
        wrap = places.PretendedMemory().wrap if device else layout.wrap
        soa = wrap(layout, live, rows) if device else wrap(live, rows)
        base, at = live.ctypes.data, 0
        for f in layout.fields:
            adjacent = prod(f.shape) if isinstance(f, Scalar) or f.interleaved else 1
            used = f.itemsize * (rows if f.per_row else 1) * adjacent
            pitch = -(-used // layout.alignment) * layout.alignment
            step = pitch if adjacent == 1 and f.per_row else f.itemsize
            inner = (1,) * len(f.shape) if len(f.shape) < 2 else steps_of(f)
            strides = (*[f.itemsize * adjacent] * f.per_row, *(n * step for n in inner))
            if isinstance(f, Scalar) and len(f.shape) == 2:
                strides = (f.shape[1] * f.itemsize, f.itemsize)
            name = f.name if len(chosen) == 1 else f"{f.name}.{number}"
            where = base + at, strides, base, base + len(live)
            columns[name] = Lies(f.dtype, f.shape, f.per_row, *where, True, None)
            at += pitch * prod(f.shape) // adjacent
            if f.per_row or not f.shape:
                entry = f.name if f.per_row else Value(f.name)
                [data[name]] = views(soa, Spec({name: entry}))
        memory.append((base, live))
    if not data and len(chosen) > 1:  # of arrays for all rows there are no views to be named
        return of_layouts(rng, rows, chosen[:1], device)
    if len(chosen) == 1:
        return Case(soa, columns, rows, memory, not device)
    return Case(data, {name: columns[name] for name in data}, rows, memory, not device)
