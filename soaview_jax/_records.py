"""Rows of records as one leaf of a pytree: words, from which the fields are cut."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from soaview import Layout, SoA
from soaview.adapter import ITEMSIZE, Run, apart, numpy_dtype

from ._settings import NARROW, as_it_is, host_device, is_array, x64


@dataclass(frozen=True, slots=True)
class Records:
    """How records lie in words, which a jitted function is compiled for.

    Attributes:
        layout: of the fields, each a run of its own.
        nbytes: of one record.
        offsets: of each field, in bytes within it.
        size: of a word, in bytes: four at most, so that JAX never narrows it.
    """

    layout: Layout
    nbytes: int
    offsets: tuple[int, ...]
    size: int

    def run(self, rows: int) -> Run:
        """All of them as one matrix."""
        names = tuple(self.layout)
        return Run(names, f"uint{8 * self.size}", 0, (rows, self.nbytes // self.size), True, True)

    def cut(self, words: Any) -> tuple[Any, ...]:
        """A matrix of rows and components for each field, as its run has it."""
        fields = [*zip(map(_form, self.layout.fields), self.offsets, strict=True)]
        if is_array(words) and words.devices() == {host_device()}:
            words = np.asarray(words)
        if isinstance(words, np.ndarray):
            return tuple([_viewed(words, at, *form) for form, at in fields])
        now = jax.ensure_compile_time_eval() if is_array(words) else nullcontext()
        with as_it_is(), now:
            return tuple([_taken(words, at, *form) for form, at in fields])


def leaf_of_records(soa: SoA) -> tuple[tuple[Any, ...], tuple[Records, int]]:
    """The leaf of bound records, which is the memory itself, and how fields are cut from it."""
    layout: Any = soa.layout
    found: Records | None = layout.plans.get("jax records")
    if found is None:
        nbytes, offsets = layout.records
        both = [*zip(offsets, [f.itemsize for f in layout.fields], strict=True)]
        fits = [n for n in (4, 2) if not (nbytes % n or any(at % min(n, i) for at, i in both))]
        found = Records(apart(layout), nbytes, offsets, (*fits, 1)[0])
        layout.plans["jax records"] = found
    home, run = layout.first_record(), found.run(soa.rows)
    if not soa.rows:
        return (np.zeros(run.shape, run.dtype),), (found, 0)
    memory, step = soa.buffer.piece(home.allocation).root, home.strides[0]
    first = home.offset + soa.start * step
    end = first + (soa.rows - 1) * step + found.nbytes
    if not 0 <= first <= end <= memory.size:
        raise ValueError(f"records from byte {first} to {end} are not inside {memory.size} bytes")
    leaf = np.ndarray(run.shape, run.dtype, memory, first, (step, found.size))
    return (leaf,), (found, soa.rows)


def _form(field: Any) -> tuple[str, int]:
    """A field's dtype and components, as its leaf has them: 64 bits may go as pairs of 32."""
    if field.dtype in NARROW and not x64():
        return "uint32", field.components * field.itemsize // 4
    return field.dtype, field.components


def _viewed(words: Any, at: int, dtype: str, count: int) -> Any:
    """A field's values by NumPy: a copy, for they may lie anywhere."""
    part = words.view(np.uint8)[:, at : at + count * ITEMSIZE[dtype]]
    return np.ascontiguousarray(part).view(numpy_dtype(dtype)).copy()


def _taken(words: Any, at: int, dtype: str, count: int) -> Any:
    """The same of JAX's, for XLA to fuse into what reads it."""
    if dtype in _PARTS:
        parts = _taken(words, at, _PARTS[dtype], 2 * count)
        return lax.complex(parts[:, ::2], parts[:, 1::2])
    if dtype == "bool":
        return _taken(words, at, "uint8", count) != 0
    size, word = ITEMSIZE[dtype], words.dtype.itemsize
    first, end = at // word, -(-(at + count * size) // word)
    part = lax.slice_in_dim(words, first, end, axis=1)
    if size > word:
        part = part.reshape(part.shape[0], count, size // word)
    part = lax.bitcast_convert_type(part, jnp.dtype(dtype))
    if size < word:
        skip = (at - first * word) // size
        part = part.reshape(part.shape[0], (end - first) * (word // size))
        part = lax.slice_in_dim(part, skip, skip + count, axis=1)
    return part


_PARTS = {"complex64": "float32", "complex128": "float64"}
