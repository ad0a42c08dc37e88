"""SoAs on other devices."""

from __future__ import annotations

import zlib
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from soaview import SoA, SoABlocks, Value
from soaview.adapter import Allocations, check_soa, runs

from ._extract import shards
from ._pytree import from_leaves, leaves

_joined: Any = jax.make_array_from_process_local_data

Movable = TypeVar("Movable", SoA, SoABlocks)


def to(soa: Movable, device: jax.Device | NamedSharding, *, local: bool = False) -> Movable:
    """The SoA on another device, or split over those of a mesh, for the inside of `jit`.

    One transfer for each device and leaf, which is a run of neighbouring fields of one dtype;
    scalars go to all devices. Memory of another framework's that is on a device is copied, also to
    that device, so that the result is JAX's own, and can be donated. From the host to JAX's CPU a
    part may be the memory itself, so leave that alone while the result is in use.

    Args:
        soa: any, or blocks of them.
        device: one of `jax.devices()`; or a sharding of the row axis alone:
            `NamedSharding(mesh, PartitionSpec("rows"))`.
        local: of a mesh over the devices of several processes: every process gives rows of its own,
            as many as the others, and gets the SoA of all of them, in the mesh's order. Without it
            each must give all rows, the same values. All processes call this together.

    Raises:
        TypeError, ValueError: another kind of device or sharding; padded rows that the devices do
            not divide; processes whose layouts, row counts or scalars differ, or, without
            `local=True`, their rows.

    >>> from jax.sharding import NamedSharding, PartitionSpec
    >>> from soaview import Column, Layout
    >>> mesh = jax.make_mesh((1,), ("rows",))
    >>> soa = Layout([Column("x", "float32")]).pack({"x": [1.0, 2.0]})
    >>> to(soa, NamedSharding(mesh, PartitionSpec("rows")))
    SoA(2 rows, 128 bytes on cpu, read-only: x float32)
    """
    if isinstance(soa, SoABlocks):
        moved = {name: to(block, device, local=local) for name, block in soa.items()}
        return SoABlocks.of(soa.layout, moved, {name: block.rows for name, block in moved.items()})
    return _to(soa, device, local)


def _to(soa: SoA, device: jax.Device | NamedSharding, local: bool) -> SoA:
    check_soa(soa)
    if local is not True and local is not False:
        raise TypeError(f"local must be True or False, got {local!r:.60}")
    if isinstance(soa.buffer, Allocations):
        soa = soa.pack()
    if isinstance(device, jax.Device):
        if local:
            raise TypeError("local=True is for the devices of several processes: pass a sharding")
        # Memory of another framework's on a device is copied, for it may be donated here.
        foreign = not (soa.buffer.on_host or soa.buffer.piecewise)
        made = jax.device_put(leaves(soa), device, may_alias=False if foreign else None)
        return from_leaves(soa.layout, soa.rows, made)
    sharding = device
    if (
        not isinstance(sharding, NamedSharding)
        or len(sharding.spec) > 1
        or PartitionSpec.UNCONSTRAINED in sharding.spec
    ):
        raise TypeError(
            f"device must be a jax.Device or a NamedSharding of one axis, that of the rows, such "
            f"as NamedSharding(mesh, PartitionSpec('rows')), got {sharding!r:.200}"
        )
    columns, scalars = sharding.update(spec=(None, *sharding.spec)), sharding.update(spec=())
    by_rows = sharding.update(spec=(*sharding.spec, *[None] * (2 - len(sharding.spec))))
    parts = shards(sharding, 0)
    here = _parts_here(sharding, parts) if local else parts
    given = list(leaves(soa))
    if not sharding.is_fully_addressable:  # first, so that what follows is the same for all
        _check_processes(soa, given, local, by_rows, scalars)
    even = soa.layout.dense_rows(1) * here
    shardings = []
    for run in runs(soa.layout, soa.rows):
        whole = columns if not run.interleaved else by_rows
        shardings.append(whole if run.per_row else scalars)
        rows = run.shape[not run.interleaved]
        if run.per_row and rows % here:
            kind = "" if run.interleaved else "padded "
            raise ValueError(
                f"{here} devices do not divide the {rows} {kind}rows of "
                f"{run.names[0]!r}; lay the SoA out for {-(-soa.rows // even) * even} rows, and "
                f"use soaview_jax.mask"
            )
        if run.per_row and here < parts and rows != soa.rows:
            raise ValueError(
                f"padding would lie between the rows of two processes: {run.names[0]!r} has "
                f"{rows} padded rows for {soa.rows}; lay the SoA out for "
                f"{-(-soa.rows // even) * even} rows, and use soaview_jax.mask"
            )
    if not local:
        return from_leaves(soa.layout, soa.rows, jax.device_put(given, shardings))
    found = []
    for run, leaf, its in zip(runs(soa.layout, soa.rows), given, shardings, strict=True):
        shape = list(leaf.shape)
        if run.per_row:
            shape[not run.interleaved] *= parts // here
        found.append(_joined(its, np.asarray(leaf), tuple(shape)))
    return from_leaves(soa.layout, soa.rows * parts // here, found)


def _parts_here(sharding: NamedSharding, parts: int) -> int:
    """How many of the parts that the rows are cut into are this process's, and of no other."""
    devices: set[Any] = sharding.device_set
    processes = len({device.process_index for device in devices})
    here = {str(at) for at in sharding.addressable_devices_indices_map((parts,)).values()}
    if len(here) * processes != parts:
        raise ValueError(
            f"local=True is for processes that have rows of their own, as many as the others: the "
            f"mesh cuts the rows into {parts} parts for {processes} processes, and {len(here)} of "
            f"them are here"
        )
    return len(here)


def _check_processes(
    soa: SoA, given: list[Any], local: bool, by_rows: NamedSharding, replicated: NamedSharding
) -> None:
    """Raise in all processes unless what must be the same in all of them is."""
    scalars = [soa[Value(f.name)] for f in soa.layout.fields if not f.per_row]
    alike = {
        "layouts": [repr(soa.layout.to_dict()).encode()],
        "row counts": [repr(soa.rows).encode()],
        "scalars": [scalar.tobytes() for scalar in scalars],
        "rows": [] if local else [np.ascontiguousarray(leaf).tobytes() for leaf in given],
    }
    mine = np.array([[zlib.crc32(b"".join(bytes_of)) for bytes_of in alike.values()]], np.uint32)
    parts = shards(by_rows, 0)
    here = len({str(at) for at in by_rows.addressable_devices_indices_map((parts, 1)).values()})
    each = mine.repeat(here, axis=0)
    found = _joined(by_rows, each, (parts, len(alike)))
    differ = (np.ptp(np.asarray(jax.device_put(found, replicated)), axis=0) > 0).tolist()
    if any(differ):
        what = ", ".join(name for name, apart in zip(alike, differ, strict=True) if apart)
        way = "" if local else "; pass local=True where each process gives rows of its own"
        raise ValueError(
            f"the SoAs that the processes give differ in their {what}, which must be the same in "
            f"all of them{way}"
        )
