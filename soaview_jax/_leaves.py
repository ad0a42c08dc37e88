"""Memory of an SoA that JAX made: an array for each run of equal fields."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from soaview import Layout
from soaview.adapter import ITEMSIZE, Buffer, HostBuffer, Run, Strided, numpy_dtype, runs

from ._records import Records
from ._settings import (
    INT32_MAX,
    NARROW,
    as_it_is,
    device_name,
    host_device,
    is_array,
    is_host,
    x64,
)


@final
class Leaves(Buffer):
    """Memory of an SoA that JAX made: immutable, and for each run an array of its own.

    Attributes:
        layout, rows: what the leaves were made for.
        given: whatever JAX put there, arrays, tracers, shapes alone: per run, in order; or the
            words of records.
        records: how the fields are cut from these; None of runs.
    """

    __slots__ = ("_cut", "given", "layout", "records", "rows")

    piecewise = True
    readonly = True

    def __init__(
        self, layout: Layout, rows: int, given: tuple[Any, ...], records: Records | None = None
    ) -> None:
        self.layout = layout
        self.rows = rows
        self.owner = self.given = given
        self.records = records
        self.nbytes = layout.nbytes(rows)
        self.imports = {}
        self._cut: dict[bool, tuple[Any, ...]] = {}
        if records is not None and self.traced and records.run(rows).shape == given[0].shape:
            self._cut[x64()] = records.cut(given[0])  # in the trace that it belongs to

    @property
    def leaves(self) -> tuple[Any, ...]:
        """Per run, in order."""
        if self.records is None:
            return self.given
        found = self._cut.get(x64())
        if found is None:
            words = self._checked(self.records.run(self.rows), self.given[0])
            found = self._cut[x64()] = self.records.cut(words)
        return found

    @property
    def root(self) -> NDArray[np.uint8]:
        """There is none."""
        raise BufferError(
            "JAX made this SoA: its columns are XLA's, read-only, and not in one buffer. Ways out: "
            "soa[name] reads a column where it lies, copy=None of an adapter copies, and "
            "soaview_jax.write puts its arrays into an SoA of yours"
        )

    words = unguarded = root

    @property
    def device(self) -> str:
        """Where the leaves are."""
        if self.traced:
            return "no device: it is traced"
        arrays = [leaf for leaf in self.given if isinstance(leaf, jax.Array)]
        if any(map(_is_deleted, arrays)):
            return "no device: it was donated"
        return device_name(device for leaf in arrays for device in leaf.devices())

    @property
    def address(self) -> int:
        """There is none."""
        raise BufferError(
            "JAX made this SoA: its columns are not in one buffer, and have addresses of their own"
        )

    @property
    def elsewhere(self) -> bool:
        """Whether leaves are on another device than that which JAX imports the host's memory to."""
        arrays = [leaf for leaf in self.given if isinstance(leaf, jax.Array)]
        devices = {d for leaf in arrays if not _is_deleted(leaf) for d in leaf.devices()}
        return not devices <= {host_device()}

    @property
    def traced(self) -> bool:
        """Whether this is the inside of a transformation, where arrays have no values yet."""
        return any(isinstance(leaf, jax.core.Tracer) for leaf in self.given)

    def find(self, at: Strided) -> tuple[int, Run]:
        """The run in which elements lie: the last that starts at or before them."""
        found = runs(self.layout, self.rows)
        number = bisect_right(found, at.byte_offset, key=lambda run: run.offset) - 1
        return number, found[number]

    def leaf(self, number: int) -> Any:
        """A run's leaf, which must be what the layout says."""
        return self._checked(runs(self.layout, self.rows)[number], self.leaves[number])

    def _checked(self, run: Run, found: Any) -> Any:
        shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
        where = f"the leaf of {name_of(run)!r}"
        if shape is None:
            raise TypeError(f"{where} is {type(found).__name__}, and no array: it has no columns")
        if dtype == jax.dtypes.float0:
            has_64_bits = run.dtype in ("float64", "complex128")
            off = ", as 64-bit types were switched off" if has_64_bits else ""
            if self.records is not None:
                off = "; records that are bound whole are words: bind their fields one by one"
            raise TypeError(f"{where} is a gradient, and {run.dtype} has none{off}")
        if _is_deleted(found):
            raise RuntimeError(
                f"{where} is deleted: the SoA was donated to a jitted function; use the one that "
                f"it returned"
            )
        forms = [
            (run.shape, numpy_dtype(run.dtype)),
            *([bits_of(run)] if run.dtype in NARROW else []),
        ]
        if (shape, dtype) in forms:
            return found
        if (shape[-2:], dtype) in forms:
            raise ValueError(
                f"{where} has the leading axes {shape[:-2]}: these are SoAs stacked; jax.vmap, "
                f"lax.map or lax.scan take them one by one, and "
                f"jax.tree.map(lambda leaf: leaf[0], soas) takes out the first"
            )
        if (shape, dtype) in [(form[1:], kind) for form, kind in forms]:
            axis = "rows" if run.interleaved else "components"
            raise ValueError(
                f"{where} has lost its axis of {axis}, for a single SoA has no axis to map "
                f"over; stack SoAs, jax.tree.map(lambda *x: jnp.stack(x), *soas), or map over what "
                f"arrays gives"
            )
        raise TypeError(
            f"{where} is {dtype} of shape {shape}, but the layout has {run.dtype} of shape "
            f"{run.shape} there; take arrays from the SoA first, and convert, cut or distribute "
            f"these"
        )

    def copies(self) -> list[Any]:
        """The leaves in memory of their own, without padding, finished."""
        found: list[Any] = []
        _, native = self.native()
        with jax.ensure_compile_time_eval(), jax.enable_x64(True), as_it_is():
            for number, leaf in enumerate(native):
                if getattr(leaf, "dtype", None) != jax.dtypes.float0:
                    self.leaf(number)
                    leaf = self.without_padding(number, jnp.array(leaf)).block_until_ready()
                found.append(leaf)
        return found

    def native(self) -> tuple[bool | None, list[Any]]:
        """The leaves; those of NumPy with 64 bits as JAX takes them, by what it has switched on.

        Before them, whether 64-bit types are switched on; None where that does not matter.
        """
        mode, found = None, []
        for run, leaf in zip(runs(self.layout, self.rows), self.leaves, strict=True):
            if run.dtype in NARROW:
                mode = x64()
                forms = (run.shape, numpy_dtype(run.dtype)), bits_of(run)
                if isinstance(leaf, np.ndarray) and (leaf.shape, leaf.dtype) in forms:
                    leaf = np.ascontiguousarray(leaf).view(forms[not mode][1])
            found.append(leaf)
        return mode, found

    def without_padding(self, number: int, leaf: Any) -> Any:
        """A leaf of this run, with zeros where it has no rows, whatever was there."""
        run = runs(self.layout, self.rows)[number]
        if run.interleaved:
            return leaf
        width = leaf.shape[1]
        words = width // max(run.shape[1], 1)  # two where 64 bits go as pairs of 32
        valid = words * (self.rows if run.per_row else 1)
        if valid >= width:
            return leaf
        if valid > INT32_MAX and not x64():
            raise ValueError(
                f"JAX does not count to row {valid} while 64-bit types are switched off; switch "
                f"them on"
            )
        if jax.typeof(leaf).sharding.mesh.size > 1:  # where JAX is strict about what is cut
            with jax.disable_jit(False):  # one operation, which takes its mesh from the leaf
                return jnp.where(jnp.arange(width) < valid, leaf, jnp.zeros((), leaf.dtype))
        zeros = lax.slice_in_dim(jnp.zeros_like(leaf), valid, width, axis=1)
        return lax.dynamic_update_slice(leaf, zeros, (0, valid))

    def locate(self, at: Strided) -> tuple[HostBuffer, Strided]:
        """The leaf in which the elements lie, where that is an array on the host."""
        number, run = self.find(at)
        found = self.leaf(number)
        if isinstance(found, jax.core.Tracer):
            raise TypeError(
                f"tensor {at.name!r}: a traced SoA has no values yet; inside jit, take its "
                f"arrays with soaview_jax.arrays(soa, spec)"
            )
        if isinstance(found, jax.Array):
            devices = found.devices()
            if len(devices) > 1 or not all(map(is_host, devices)):
                raise BufferError(
                    f"tensor {at.name!r}: the SoA is on {', '.join(sorted(map(str, devices)))}; "
                    f"give it to a jitted function as an argument, or bring it to the host with "
                    f"jax.device_get(soa)"
                )
        elif not isinstance(found, np.ndarray):
            raise TypeError(
                f"tensor {at.name!r}: the SoA has a {type(found).__name__} where its columns "
                f"should be, and no memory"
            )
        # A copy where the leaf has another order in memory, of which JAX, too, only shows copies.
        host = np.ascontiguousarray(found).view()
        host.flags.writeable = False
        first = at.offset - run.offset // at.itemsize
        return HostBuffer(host, host.nbytes, at.itemsize), at._replace(offset=first)

    def array(self, at: Strided) -> NDArray[Any]:
        """The NumPy view of these elements, read-only."""
        buffer, there = self.locate(at)
        return buffer.array(there)

    def value(self, at: Strided) -> Any:
        """The value that lies there, also where the leaf is on a device."""
        number, run = self.find(at)
        leaf = self.leaf(number)
        if not is_array(leaf):
            return super().value(at)
        # Of 64 bits it may be pairs of words.
        flat = np.ascontiguousarray(leaf).reshape(-1).view(at.dtype)
        return flat[at.offset - run.offset // at.itemsize].item()


def _is_deleted(leaf: Any) -> bool:
    return is_array(leaf) and leaf.is_deleted()


def name_of(run: Run) -> str:
    """A leaf's name in JAX's messages: its field, or its first and last."""
    return run.names[0] if len(run.names) == 1 else f"{run.names[0]}:{run.names[-1]}"


def bits_of(run: Run) -> tuple[tuple[int, int], np.dtype[Any]]:
    """Shape and dtype that carry a run's bits past a JAX that would narrow it."""
    components, width = run.shape
    return (components, width * ITEMSIZE[run.dtype] // 4), np.dtype("uint32")
