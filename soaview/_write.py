"""What may be written where: the checks of `write`, of `forward` and of item assignment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from ._bound import Allocations, BoundFields
from ._gather import Gather, views_or_gathers
from ._host import ArrayInterface
from ._layout import Layout
from ._soa import SoA
from ._spec import Entry, Spec, Value, columns_of
from ._views import View

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_writable(soa: SoA, entries: Iterable[Entry]) -> None:
    """Raise where the memory of a spec's entries is read-only."""
    layout: Any = soa.layout
    if isinstance(layout, BoundFields):
        for name in (name for entry in entries for name in columns_of(entry)):
            if soa.buffer.piece(layout.home(name).allocation).readonly:
                raise BufferError(
                    f"column {name!r:.80} is read-only, and cannot be written to; bind an array "
                    f"that can, say readonly=False where its owner's memory can be, or write into "
                    f"soa.pack()"
                )
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


def check_apart(parts: Iterable[tuple[str, NDArray[Any]]]) -> None:
    """Raise where bound columns share bytes.

    Args:
        parts: what would be written, by name.

    Raises:
        ValueError: naming two of them.
    """
    for (name, one), (other_name, other) in combinations(parts, 2):
        if np.shares_memory(one, other):
            raise ValueError(
                f"{name!r:.80} and {other_name!r:.80} share bytes, and would be written twice; "
                f"name every column once"
            )


def are_bound_apart(outputs: Sequence[tuple[SoA, Spec]]) -> bool:
    """Whether columns of specs are bound ones; these must be apart, by `check_apart`.

    Raises:
        BufferError: a column that is not aligned.
    """
    if not any(isinstance(soa.buffer, Allocations) for soa, _ in outputs):
        return False
    found = [view for soa, spec in outputs for view in views_or_gathers(soa, spec)]
    parts = [p for view in found for p in (view.parts if isinstance(view, Gather) else [view])]
    check_apart([(part.name, _addressed(part)) for part in parts])
    return True


def _addressed(view: View) -> NDArray[Any]:
    """An array at the view's addresses, on whatever device: NumPy compares them, and reads none."""
    buffer = view.buffer
    memory = np.asarray(ArrayInterface(buffer.address, buffer.nbytes, True, buffer))
    strides = [stride * view.itemsize for stride in view.strides]
    return np.ndarray(view.shape, f"V{view.itemsize}", memory, view.byte_offset, strides)


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
