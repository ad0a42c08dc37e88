"""A complete adapter, by soaview's public names alone: for the array API's strict reference.

That library has the standard's names and dtypes and no others, takes memory by DLPack, and lives on
the host. docs/adapters.md explains what stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import array_api_strict as xp
import numpy as np

from soaview import SoA, Spec, View
from soaview.adapter import (
    Described,
    Gather,
    Matches,
    Target,
    Verdict,
    announce,
    check_copy,
    check_dtypes,
    check_model,
    match,
    pairs,
    parts_of,
    results,
    verdicts,
    views_or_gathers,
    work,
    writable_views,
)

Array, CPU = type(xp.empty(0)), xp.empty(0).device


def arrays(
    soa: SoA, spec: Spec, *, copy: bool | None = False, padded: bool = False, dtype: Any = None
) -> list[Any]:
    """The spec's arrays, in spec order, over the SoA's memory.

    Raises:
        BufferError: with `copy=False`, columns that no single strided view covers; memory that is
            not the host's.
        TypeError: a dtype that the standard lacks; a wrong kind of argument.
        KeyError, ValueError: no such column; columns that do not fit one array.
    """
    check_copy(copy)
    found = views_or_gathers(soa, spec, padded=padded, dtypes=check_dtypes(spec, dtype))
    _check(soa, found)
    for view in found:
        if isinstance(view, Gather) and copy is False:
            raise BufferError(f"tensor {view.name!r}: {view.why()}")
    return [_array(view, copy is True) for view in found]


def _check(soa: SoA, found: Sequence[View | Gather]) -> None:
    if soa.device != "cpu":
        raise BufferError(f"the SoA is on {soa.device}, and these arrays are the host's alone")
    for view in found:
        if not hasattr(xp, view.dtype_name):
            raise TypeError(f"tensor {view.name!r}: the standard has no {view.dtype_name}")


def _array(view: View | Gather, copied: bool) -> Any:
    if isinstance(view, Gather):
        dtype = getattr(xp, view.dtype_name)  # of parts that have another it is the user's word
        parts = [xp.astype(xp.from_dlpack(part), dtype, copy=False) for part in view.parts]
        return xp.stack(parts, axis=1) if view.stacked else parts[0]
    alias = xp.from_dlpack(view)  # read-only where the memory is: NumPy's flag comes along
    return xp.asarray(alias, copy=True) if copied else alias


def explain(soa: SoA, spec: Spec) -> list[Verdict]:
    """Of each array, whether it is a view or a copy, and why; `soaview.explain` asks."""
    return verdicts("array API", arrays, lambda x: np.from_dlpack(x).ctypes.data, soa, spec)


announce("strict_adapter", explain)


def write(soa: SoA, spec: Spec, arrays: Sequence[Any]) -> None:
    """Write arrays into the spec's columns; nothing is written unless all of them fit."""
    if not isinstance(arrays, (list, tuple)):
        raise TypeError(f"arrays must be a list in spec order, got {type(arrays).__name__}")
    _store(_matched(soa, spec, arrays))


def forward(fn: Callable[..., Any], inputs: Any, outputs: Any, *, batch_size: Any = None) -> None:
    """Run a function on the columns of SoAs, and write its results into columns of SoAs."""
    check_model(fn)
    task = work(pairs("inputs", inputs), pairs("outputs", outputs), batch_size, progress=False)
    for soa, spec in task.outputs:
        _targets(soa, spec)  # raises before the function runs
    found: Matches[Any] = []
    for number in task.batches():
        given = [x for soa, spec in task.inputs_of(number) for x in arrays(soa, spec)]
        for soa, spec, made in results(fn(*given), task.outputs_of(number)):
            found += _matched(soa, spec, made)
    _store(found)


def _targets(soa: SoA, spec: Spec) -> list[Target[Any]]:
    found = writable_views(soa, spec)
    _check(soa, [view for view, _ in found])
    return [
        Target(v.shape, getattr(xp, v.dtype_name), CPU, [xp.from_dlpack(part) for part in parts])
        for v, parts in found
    ]


def _matched(soa: SoA, spec: Spec, arrays: Sequence[Any]) -> Matches[Any]:
    found = match(soa, spec, _targets(soa, spec), arrays, fits=_fits, describe=_describe)
    # Copies: an array over the memory itself could be changed by the first write before it is read,
    # and a model may use its own memory again in the next batch.
    return [(target, xp.asarray(array, copy=True)) for target, array in found]


def _fits(target: Target[Any], array: Any) -> bool:
    if not isinstance(array, Array):
        return False
    return (array.shape, array.dtype, array.device) == target[:3]


def _describe(label: str, array: Any) -> Described:
    if not isinstance(array, Array):
        raise TypeError(f"{label}: got {type(array).__name__}, expected an array of the standard's")
    dtype = str(array.dtype).rpartition(".")[2]
    return array.shape, dtype, "cpu" if array.device == CPU else str(array.device)


def _store(found: Matches[Any]) -> None:
    for target, array in found:
        for part, piece in parts_of(target, array):
            part[...] = piece
