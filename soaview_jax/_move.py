"""SoAs on other devices."""

from __future__ import annotations

from typing import TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

from soaview import SoA, SoABlocks
from soaview.adapter import Allocations, check_soa, runs

from ._extract import shards
from ._pytree import from_leaves, leaves

Movable = TypeVar("Movable", SoA, SoABlocks)


def to(soa: Movable, device: jax.Device | NamedSharding) -> Movable:
    """The SoA on another device, or split over those of a mesh, for the inside of `jit`.

    One transfer for each device and leaf, which is a run of neighbouring fields of one dtype;
    scalars go to all devices. Memory of another framework's that is on a device is copied, also to
    that device, so that the result is JAX's own, and can be donated. From the host to JAX's CPU a
    part may be the memory itself, so leave that alone while the result is in use.

    Args:
        soa: any, or blocks of them.
        device: one of `jax.devices()`; or a sharding of the row axis alone:
            `NamedSharding(mesh, PartitionSpec("rows"))`.

    Raises:
        TypeError, ValueError: another kind of device or sharding; padded rows that the devices do
            not divide.

    >>> from jax.sharding import NamedSharding, PartitionSpec
    >>> from soaview import Column, Layout
    >>> mesh = jax.make_mesh((1,), ("rows",))
    >>> soa = Layout([Column("x", "float32")]).pack({"x": [1.0, 2.0]})
    >>> to(soa, NamedSharding(mesh, PartitionSpec("rows")))
    SoA(2 rows, 128 bytes on cpu, read-only: x float32)
    """
    if isinstance(soa, SoABlocks):
        moved = {name: to(block, device) for name, block in soa.items()}
        return SoABlocks.of(soa.layout, moved, soa.rows)
    return _to(soa, device)


def _to(soa: SoA, device: jax.Device | NamedSharding) -> SoA:
    check_soa(soa)
    if isinstance(soa.buffer, Allocations):
        soa = soa.pack()
    if isinstance(device, jax.Device):
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
    even = soa.layout.dense_rows(1) * parts
    shardings = []
    for run in runs(soa.layout, soa.rows):
        whole = columns if not run.interleaved else by_rows
        shardings.append(whole if run.per_row else scalars)
        rows = run.shape[not run.interleaved]
        if run.per_row and rows % parts:
            kind = "" if run.interleaved else "padded "
            raise ValueError(
                f"{parts} devices do not divide the {rows} {kind}rows of "
                f"{run.names[0]!r}; lay the SoA out for {-(-soa.rows // even) * even} rows, and "
                f"use soaview_jax.mask"
            )
    return from_leaves(soa.layout, soa.rows, jax.device_put(list(leaves(soa)), shardings))
