"""Bound columns of every kind, for tests of those who read them."""

from __future__ import annotations

import numpy as np
import places
from hypothesis import strategies as st

from soaview import Column, Layout, Spec, Value, bind, views

NUMBERS = ["bool", "int8", "uint16", "int32", "int64", "float16", "float32", "float64", "complex64"]


def values_of(shape, dtype, start=0):
    """Numbers that tell each element, as far as the dtype can."""
    count = int(np.prod(shape, dtype=int))
    return ((np.arange(count) + start) % 120).reshape(shape).astype(dtype)


def fields_of(soa):
    """Copies of all fields, by name."""
    layout = soa.layout
    return {f.name: np.array(soa[f.name if f.per_row else Value(f.name)]) for f in layout.fields}


class Shown:
    """Memory that is only pointed at: it vouches for itself, and for no more."""

    def __init__(self, memory, first, count, dtype="<f4", strides=None):
        self.memory = memory
        address = memory.ctypes.data + first
        shape = count if isinstance(count, tuple) else (count,)
        data = {"data": (address, False), "shape": shape, "strides": strides}
        self.__array_interface__ = {**data, "typestr": dtype, "version": 3}


@st.composite
def bound_columns(draw):
    """Arrays of one row count: on their own, in blocks, in records, with steps; and one number."""
    rows, data = draw(st.integers(0, 7)), {}
    for number in range(draw(st.integers(1, 4))):
        dtype = draw(st.sampled_from(NUMBERS))
        shape = draw(st.sampled_from([(), (), (3,), (1,), (2, 3)]))
        kind = draw(st.sampled_from(["own", "block", "records", "steps", "turned", "scalar"]))
        name, start = f"c{number}", 10 * number
        if kind == "own":
            data[name] = values_of((rows, *shape), dtype, start)
        elif kind == "block":
            block = values_of((3, rows, *shape), dtype, start)
            data |= {f"{name}.{i}": block[i] for i in range(3)}
        elif kind == "records":
            fields = [("i", "i1"), ("a", dtype, shape), ("b", dtype, shape), ("j", "i4")]
            records = np.zeros(rows, np.dtype(fields, align=draw(st.booleans())))
            for i, (field, *_) in enumerate(fields):
                records[field] = values_of(records[field].shape, records[field].dtype, start + i)
            data |= {f"{name}.{field}": records[field] for field, *_ in fields}
        elif kind == "steps":
            step, first = draw(st.integers(1, 3)), draw(st.integers(0, 2))
            data[name] = values_of((rows * step + first, *shape), dtype, start)[first::step][:rows]
        elif kind == "turned":
            turned = values_of((*shape[::-1], rows), dtype, start)
            data[name] = turned.T
        else:
            data[name] = values_of((), dtype, start + 1)
    return rows, data


def specs(draw, arrays):
    """A spec of some of them: alone, with others alike, and scalars both ways."""
    kinds, spec = {}, {}
    for name, array in arrays.items():
        kinds.setdefault((array.dtype, array.shape), []).append(name)
    for number in range(draw(st.integers(1, 3))):
        alike = draw(st.sampled_from(sorted(kinds.values())))
        first = arrays[alike[0]]
        if not first.ndim:
            spec[f"t{number}"] = draw(st.sampled_from([Value(alike[0]), alike[0]]))
        elif draw(st.booleans()):
            spec[f"t{number}"] = draw(st.sampled_from(alike))
        else:
            spec[f"t{number}"] = draw(st.lists(st.sampled_from(alike), min_size=1, max_size=3))
    return spec


def wanted(arrays, rows, entry):
    """What NumPy makes of an entry."""
    if isinstance(entry, Value):
        return arrays[entry.name]
    if isinstance(entry, str):
        array = arrays[entry]
        return array if array.ndim else np.broadcast_to(array, (rows,))
    return np.stack([arrays[name] for name in entry], axis=1)


def of_a_device(rows):
    """Bound columns of two blocks of memory, by the way that a device's goes; and the blocks."""
    layout = Layout([Column("x", "float32"), Column("v", "float32", (3,), interleaved=True)])
    blocks = []
    for start in (0, 50):
        memory = places.aligned(np.zeros(layout.nbytes(rows), np.uint8))
        host = layout.wrap(memory, rows)
        host["x"][:], host["v"][:] = values_of(rows, "f4", start), values_of((rows, 3), "f4", start)
        blocks.append((host, places.PretendedMemory().wrap(layout, memory, rows)))
    (one, a), (other, b) = blocks
    first, second = bind(a), bind(b)
    data = {"x": first, "v": first, "y": second, "w": second}
    taken = {
        name: view_of(soa, {"x": "x", "v": "v", "y": "x", "w": "v"}[name])
        for name, soa in data.items()
    }
    return bind(taken), one, other


def view_of(soa, name):
    """One column's view."""
    [view] = views(soa, Spec({name: name}))
    return view
