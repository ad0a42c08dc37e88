"""What may be written where: the checks of `write`, of `forward` and of item assignment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ._bound import Allocations, BoundFields
from ._layout import Layout
from ._soa import SoA
from ._spec import Entry, Spec, Value, columns_of
from ._views import Gather, View, views_or_gathers


def check_writable(soa: SoA, entries: Iterable[Entry]) -> None:
    """Raise where a spec's entries are in read-only memory, or bound columns of it overlap."""
    if isinstance(soa.buffer, Allocations):
        _check_bound(soa, [name for entry in entries for name in columns_of(entry)])
        return
    if soa.readonly and soa.buffer.piecewise:
        raise BufferError(
            "JAX made this SoA: its columns are XLA's, read-only, and cannot be written to; "
            "copy.deepcopy(soa) is one that can, and soaview_jax.update gives one with other "
            "columns"
        )
    if soa.readonly:
        raise BufferError(
            "the SoA's memory is read-only and cannot be written to; wrap memory that can: "
            'a file with numpy.memmap(mode="r+"), or a copy in layout.allocate(rows).buffer.root'
        )


def _check_bound(soa: SoA, names: list[str]) -> None:
    """Raise unless each of these bound columns can be written, and none is part of another."""
    layout: Any = soa.layout
    assert isinstance(layout, BoundFields)
    taken: list[tuple[int, int, int, str]] = []
    for name in names:
        home, field = layout.home(name), layout[name]
        if soa.buffer.piece(home.allocation).readonly:
            raise BufferError(
                f"column {name!r:.80} is read-only, and cannot be written to; bind an array that "
                f"can, say readonly=False where its owner's memory can be, or write into soa.pack()"
            )
        shape = (soa.rows, *field.shape) if field.per_row else field.shape
        if 0 not in shape:
            last = sum((n - 1) * s for n, s in zip(shape, home.strides, strict=True))
            first = home.offset + (soa.start * home.strides[0] if field.per_row else 0)
            taken.append((home.allocation, first, first + last + field.itemsize, name))
    taken.sort()
    for (one, _, end, name), (other, first, _, second) in combinations(taken, 2):
        if one == other and first < end and _share(soa, name, second):
            raise ValueError(
                f"columns {name!r:.80} and {second!r:.80} share bytes, and would be written twice"
            )


def _share(soa: SoA, one: str, other: str) -> bool:
    """Whether two bound columns have a byte in common."""
    layout: Any = soa.layout
    fields = [(layout[name], layout.home(name)) for name in (one, other)]
    if not soa.buffer.on_host:
        return True
    keys = [f.name if f.per_row else Value(f.name) for f, _ in fields]
    return bool(np.shares_memory(soa[keys[0]], soa[keys[1]]))


def check_bound_once(outputs: list[tuple[SoA, Spec]]) -> None:
    """The same of bound columns: exactly on the host, elsewhere by where they begin and end."""
    for soa, spec in outputs:
        check_writable(soa, spec.values())
    found = [(number, part) for number, pair in enumerate(outputs) for part in _parts_of(*pair)]
    for (one, part), (other, second) in combinations(found, 2):
        if one != other and part.shares(second):
            raise ValueError(
                f"outputs: the same memory would be written twice, by pairs {one}: {part.name!r} "
                f"and {other}: {second.name!r}; name every column once"
            )


def _parts_of(soa: SoA, spec: Spec) -> list[View]:
    """The views of all columns of a spec."""
    found = views_or_gathers(soa, spec)
    return [p for view in found for p in (view.parts if isinstance(view, Gather) else [view])]


def tensor_labels(spec: Spec, given: Sequence[Any]) -> list[str]:
    """What messages call tensors that are given for a spec: by name, if there are as many."""
    if len(given) != len(spec):
        return [f"tensor number {number}" for number in range(len(given))]
    return [f"tensor {name!r}" for name in spec]


def check_count(what: str, given: Sequence[Any], spec: Spec) -> None:
    """Raise unless there is one for each of the spec's tensors."""
    if len(given) != len(spec):
        raise ValueError(f"got {len(given)} {what}, but the spec has {len(spec)}: {list(spec)}")


def check_given(
    soa: SoA,
    spec: Spec,
    found: list[View | Gather],
    given: list[tuple[tuple[int, ...], str, str]],
) -> None:
    """Whether tensors of these (shape, dtype, device) fit the places found for them.

    Raises:
        ValueError: a wrong number of tensors, a wrong shape or device, or memory that would be
            written twice.
        TypeError: a wrong dtype.
    """
    check_count("tensors", given, spec)
    check_count("views", found, spec)
    check_columns(soa.layout, spec)
    for (name, _), view, (shape, dtype, device) in zip(spec.items(), found, given, strict=True):
        if device != soa.device:
            raise ValueError(
                f"tensor {name!r}: got device {device}, the SoA is on {soa.device}; "
                f"move the tensor there first"
            )
        if dtype != view.dtype_name:
            raise TypeError(
                f"tensor {name!r}: got dtype {dtype}, expected {view.dtype_name}; convert it first"
            )
        if shape != view.shape:
            padded = views_or_gathers(soa, spec.subset(name), padded=soa.rows == soa.capacity)
            if shape == padded[0].shape:
                raise ValueError(
                    f"tensor {name!r}: got {shape[0]} padded rows, expected {soa.rows}; "
                    f"write the valid ones, [:soa.rows]"
                )
            per_row = not isinstance(spec[name], Value)
            raise ValueError(wrong_shape(f"tensor {name!r}", shape, view.shape, per_row=per_row))


def check_columns(layout: Layout, spec: Spec) -> None:
    """Raise where the spec's tensors cannot all be written."""
    key = "written", spec.key
    if key in layout.plans:
        return
    written: dict[str, str] = {}
    for name, entry in spec.items():
        for column in columns_of(entry):
            if column in written:
                raise ValueError(
                    f"tensor {name!r}: {column!r} would be written twice (also by tensor "
                    f"{written[column]!r}); name every column once"
                )
            written[column] = name
            if not isinstance(entry, Value) and not layout[column].per_row:
                raise ValueError(
                    f"tensor {name!r}: scalar {column!r} has one value, not one per row; "
                    f"write Value({column!r})"
                )
    layout.plans[key] = True


def wrong_shape(
    where: str, got: tuple[int, ...], expected: tuple[int, ...], *, per_row: bool
) -> str:
    """What another shape than expected is refused with."""
    hint = ""
    if per_row and len(got) == 2 and got[::-1] == expected:
        hint = "; rows come first: pass its transpose"
    elif not expected:
        hint = "; a scalar has no axes: pass its one value, such as soa[Value(name)]"
    elif not per_row:
        hint = "; a scalar has no rows: pass its one array, such as soa[Value(name)]"
    elif got == (*expected, 1):
        hint = "; drop the last axis"
        if where.startswith("tensor"):
            hint += ", or name the column in a list of one"
    elif got and got[1:] == expected[1:]:
        hint = "; it needs one row for each of the SoA's"
    return f"{where}: got shape {got}, expected {expected}{hint}"
