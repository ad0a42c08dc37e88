"""A complete adapter, by soaview's public names alone: for the array API's strict reference.

That library has the standard's names and dtypes and no others, takes memory by DLPack, and lives on
the host. docs/adapters.md explains what stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import array_api_strict as xp

from soaview import SoA, Spec, View
from soaview.adapter import (
    Described,
    Gather,
    Matches,
    Target,
    check_copy,
    check_model,
    match,
    pairs,
    parts_of,
    results,
    views_or_gathers,
    work,
    writable_views,
)

Array = type(xp.empty(0))


def arrays(soa: SoA, spec: Spec, *, copy: bool | None = False, padded: bool = False) -> list[Any]:
    """The spec's arrays, in spec order, over the SoA's memory.

    Raises:
        BufferError: with `copy=False`, columns that no single strided view covers.
        TypeError: a dtype that the standard lacks; a wrong kind of argument.
        KeyError, ValueError: no such column; columns that do not fit one array.
    """
    check_copy(copy)
    found = views_or_gathers(soa, spec, padded=padded)
    for view in found:
        if not hasattr(xp, view.dtype_name):
            raise TypeError(f"tensor {view.name!r}: the standard has no {view.dtype_name}")
        if isinstance(view, Gather) and copy is False:
            raise BufferError(f"tensor {view.name!r}: {view.why()}")
    return [_array(view, copy is True) for view in found]


def _array(view: View | Gather, copied: bool) -> Any:
    if isinstance(view, Gather):
        return xp.stack([xp.from_dlpack(part) for part in view.parts], axis=1)
    alias = xp.from_dlpack(view)  # read-only where the memory is: NumPy's flag comes along
    return xp.asarray(alias, copy=True) if copied else alias


def write(soa: SoA, spec: Spec, arrays: Sequence[Any]) -> None:
    """Write arrays into the spec's columns; nothing is written unless all of them fit."""
    _store(match(soa, spec, _targets(soa, spec), arrays, fits=_fits, describe=_describe))


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
            targets = _targets(soa, spec)
            found += match(soa, spec, targets, made, fits=_fits, describe=_describe)
    _store(found)


def _targets(soa: SoA, spec: Spec) -> list[Target[Any]]:
    found = []
    for view, parts in writable_views(soa, spec):
        if not hasattr(xp, view.dtype_name):
            raise TypeError(f"tensor {view.name!r}: the standard has no {view.dtype_name}")
        memory = [xp.from_dlpack(part) for part in parts]
        found.append(Target(view.shape, getattr(xp, view.dtype_name), soa.device, memory))
    return found


def _fits(target: Target[Any], array: Any) -> bool:
    return isinstance(array, Array) and array.shape == target.shape and array.dtype == target.dtype


def _describe(label: str, array: Any) -> Described:
    if not isinstance(array, Array):
        raise TypeError(f"{label}: got {type(array).__name__}, expected an array of the standard's")
    return array.shape, str(array.dtype).rpartition(".")[2], "cpu"


def _store(found: Matches[Any]) -> None:
    # An array over the memory itself could be changed by the first write before it is read.
    values = [xp.asarray(array, copy=True) for _, array in found]
    for (target, _), value in zip(found, values, strict=True):
        for part, piece in parts_of(target, value):
            part[...] = piece
