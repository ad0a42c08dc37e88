"""The few verbs that the conformance suite needs of an adapter.

To run the suite on one of your own, write such a class and name it:
`python -m pytest tests/test_conformance.py --adapter your_module:YourAdapter`.
`test_third_party.py` has an example.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import places
from cases import ROWS, list_of

from soaview import SoA, Spec, View, views
from soaview.adapter import Target, check_copy, match, parts_of, writable_views


@dataclass(frozen=True)
class Divergence:
    """Something that a framework cannot do: exactly where `when` holds, `error` is raised.

    Its message matches the regular expression `match`, and names one of the tensors, unless it is
    about read-only memory.
    """

    reason: str
    when: Callable[[View], bool]
    error: type[Exception]
    match: str
    copy: tuple[bool | None, ...] = (False,)  # where copying does not help: (False, None, True)


class NumPyAdapter:
    """The reference: NumPy over soaview's public views; it runs everywhere."""

    way = "NumPy"  # as `soaview.explain` calls it
    aliases = True  # a tensor is the SoA's own memory, and not its values at the time of the call
    rows: tuple[int, ...] = ROWS  # the row counts to run the cases at
    copies = (False, None, True)  # the values of copy= that differ in what they give
    writable = True  # a write into a tensor is a write into the SoA
    divergences: tuple[Divergence, ...] = ()

    @contextmanager
    def settings(self) -> Iterator[None]:
        """What must be switched on in the framework meanwhile."""
        yield

    def tensors(
        self, soa: SoA, spec: Spec, *, copy: bool | None = False, padded: bool = False
    ) -> Sequence[Any]:
        """Under test."""
        check_copy(copy)
        if copy is False or not isinstance(spec, Spec):
            return [view.numpy() for view in views(soa, spec, padded=padded)]
        found = [self._one(soa, spec.subset(name), padded) for name in spec]
        return [array.copy() for array in found] if copy else found

    def _one(self, soa: SoA, spec: Spec, padded: bool) -> np.ndarray:
        try:
            return views(soa, spec, padded=padded)[0].numpy()
        except BufferError:
            ((name, entry),) = spec.items()
            if isinstance(entry, str):  # which is not aligned, and NumPy reads it all the same
                return soa[entry].copy()
            columns = [Spec({name: column}) for column in entry]
            return np.stack([self._one(soa, s, padded) for s in columns], axis=1)

    def write(self, soa: SoA, spec: Spec, tensors: Sequence[Any]) -> None:
        """Under test."""
        tensors = [np.array(tensor) for tensor in tensors]
        targets = [
            Target(view.shape, view.dtype_name, "cpu", [part.numpy() for part in parts])
            for view, parts in writable_views(soa, spec)
        ]
        matched = match(soa, spec, targets, tensors, fits=_fits, describe=_describe)
        for target, tensor in matched:
            for part, piece in parts_of(target, tensor):
                part[...] = piece

    def forward(self, fn: Any, inputs: Any, outputs: Any, *, batch_size: int | None = None) -> None:
        """Under test, if the adapter has one: here of a single pair, by `tensors` and `write`."""
        (soa, spec), (out, to) = inputs, outputs
        size = batch_size or max(len(soa), 1)
        results = [fn(*self.tensors(part, spec, copy=True)) for part in soa.batches(size)]
        for part, result in zip(out.batches(size), results, strict=True):
            self.write(part, to, result)

    def to_numpy(self, tensor: Any) -> np.ndarray:
        """Its values now; bfloat16 as ml_dtypes has it."""
        return tensor

    def from_numpy(self, array: np.ndarray) -> Any:
        """A tensor of the framework with these values and this dtype."""
        return array

    def dtype(self, tensor: Any) -> str:
        """The dtype's name as soaview spells it, such as `"float32"`."""
        return tensor.dtype.name

    def address(self, tensor: Any) -> int:
        """Of the first element."""
        return tensor.__array_interface__["data"][0]

    def strides(self, tensor: Any) -> tuple[int | None, ...]:
        """In elements; None for an axis of which the framework does not tell."""
        return tuple(stride // tensor.itemsize for stride in tensor.strides)


def _fits(target: Target[np.ndarray], array: np.ndarray) -> bool:
    return array.shape == target.shape and array.dtype.name == target.dtype


def _describe(where: str, array: np.ndarray) -> tuple[tuple[int, ...], str, str]:
    return array.shape, array.dtype.name, "cpu"


class TorchAdapter(NumPyAdapter):
    """soaview_torch."""

    way = "torch"
    divergences = (
        Divergence(
            "torch cannot express read-only, and a write would change or crash the memory",
            lambda view: view.buffer.readonly,
            BufferError,
            "read-only",
        ),
    )

    def __init__(self) -> None:
        import torch

        import soaview_torch

        self.torch, self.adapter = torch, soaview_torch

    def tensors(self, soa, spec, **options):
        return self.adapter.tensors(soa, spec, **options)

    def write(self, soa, spec, tensors):
        self.adapter.write(soa, spec, tensors)

    def forward(self, fn, inputs, outputs, *, batch_size=None):
        self.adapter.forward(fn, inputs, outputs, batch_size=batch_size)

    def to_numpy(self, tensor):
        tensor = tensor.cpu()
        if tensor.dtype == self.torch.bfloat16:
            return tensor.view(self.torch.int16).numpy().view("bfloat16")
        return tensor.numpy()

    def from_numpy(self, array):
        array, device = np.array(array), places.under_test.device
        if array.dtype.name == "bfloat16":
            return self.from_numpy(array.view("int16")).view(self.torch.bfloat16)
        return self.torch.from_numpy(array).to(device)

    def dtype(self, tensor):
        return str(tensor.dtype).removeprefix("torch.")

    def address(self, tensor):
        return tensor.data_ptr()

    def strides(self, tensor):
        return tuple(tensor.stride())


def is_dense(view: View) -> bool:
    """Whether the elements fill one stretch of memory, found by listing where each one is."""
    where = np.zeros(view.shape, np.int64)
    for axis, (count, stride) in enumerate(zip(view.shape, view.strides, strict=True)):
        steps = np.arange(count) * stride
        where += steps.reshape([-1 if a == axis else 1 for a in range(len(view.shape))])
    return not where.size or len(np.unique(where)) == where.size == where.max() + 1


def is_row_major(view: View) -> bool:
    """Whether no axis takes a shorter step than one after it."""
    steps = [step for n, step in zip(view.shape, view.strides, strict=True) if n > 1]
    return steps == sorted(steps, reverse=True)


class JaxAdapter(NumPyAdapter):
    """soaview_jax, with 64-bit types switched on."""

    way = "JAX"
    writable = False
    divergences = (
        Divergence(
            "XLA imports dense memory only",
            lambda view: not is_dense(view),
            BufferError,
            "dense|bfloat16",
        ),
        Divergence(
            "XLA imports only what starts on a multiple of 64 bytes, and on a GPU of 16",
            lambda view: bool(
                0 not in view.shape and view.address % (64 if view.device == "cpu" else 16)
            ),
            BufferError,
            "multiple of (64|16)|bfloat16",
        ),
        Divergence(
            "NumPy does not export bfloat16, and what JAX takes instead is row-major",
            lambda view: (
                view.buffer.on_host
                and view.dtype == "bfloat16"
                and 0 not in view.shape
                and not is_row_major(view)
            ),
            BufferError,
            "bfloat16|dense",
        ),
    )
    x64 = True

    def __init__(self) -> None:
        import jax

        import soaview_jax

        self.jax, self.adapter = jax, soaview_jax

    @contextmanager
    def settings(self):
        with self.jax.enable_x64(self.x64):
            yield

    def tensors(self, soa, spec, **options):
        return self._there(self.adapter.arrays(soa, spec, **options))

    def _there(self, arrays):
        """These, which must be on the device of the memory under test."""
        for array in arrays:
            assert array.devices() == {self.jax.local_devices()[places.under_test.number]}
        return arrays

    def write(self, soa, spec, tensors):
        self.adapter.write(soa, spec, tensors)

    forward = TorchAdapter.forward

    def to_numpy(self, tensor):
        # Through a copy, because an array keeps the NumPy value that it once gave; by a transfer,
        # because `jnp.array` is compiled for every shape.
        (device,) = tensor.devices()
        return np.asarray(self.jax.device_put(tensor, device, may_alias=False))

    def from_numpy(self, array):
        there = self.jax.local_devices()[places.under_test.number]
        return self.jax.device_put(self.jax.numpy.array(array), there)

    def dtype(self, tensor):
        return tensor.dtype.name

    def address(self, tensor):
        return tensor.unsafe_buffer_pointer()

    def strides(self, tensor):
        """From the order of the axes in memory, which is dense; axes of length 1 have none."""
        steps, step = {}, 1
        for axis in reversed(tensor.format.layout.major_to_minor):
            steps[axis] = step if tensor.shape[axis] > 1 else None
            step *= tensor.shape[axis]
        return tuple(steps[axis] for axis in range(tensor.ndim))


NARROWED = Divergence(
    "JAX narrows 64-bit types in silence while they are switched off",
    lambda view: view.dtype in ("int64", "uint64", "float64", "complex128"),
    TypeError,
    "jax_enable_x64",
    copy=(False, None, True),
)


class Jax32Adapter(JaxAdapter):
    """soaview_jax with 64-bit types switched off, as JAX comes."""

    rows = (0, 33)
    x64 = False
    divergences = (NARROWED, *JaxAdapter.divergences)


class JitAdapter(JaxAdapter):
    """soaview_jax on the SoA as an argument of jitted functions: it can cut everything."""

    way = "JAX inside jit"
    aliases = False
    rows = (0, 33)  # each of them is compiled for
    copies = (False,)
    divergences = ()

    def __init__(self):
        super().__init__()
        self.jitted = {}

    def tensors(self, soa, spec, copy=False, padded=False):
        arrays = self._jitted(self.adapter.arrays, spec=spec, copy=copy, padded=padded)
        # The caller may write the memory next, and it is read until the results are there.
        made = self.jax.block_until_ready(arrays(soa))
        self._there([array for array in made if array.size])  # XLA makes the others of nothing
        return made

    def write(self, soa, spec, tensors):
        updated = self._jitted(self._updated, spec=spec)(soa, tensors=tensors)
        self.adapter.write(soa, spec, self.tensors(updated, spec))

    def _updated(self, soa, spec, tensors):
        return self.adapter.update(soa, spec, tensors)

    def _jitted(self, function, **options):
        """One for all calls of these options, which XLA compiles for each layout and row count."""
        key = repr((function.__name__, options))
        if key not in self.jitted:
            self.jitted[key] = self.jax.jit(functools.partial(function, **options))
        return self.jitted[key]


class Jit32Adapter(JitAdapter):
    """The same with 64-bit types switched off."""

    rows = (33,)
    x64 = False
    divergences = (NARROWED,)


ADAPTERS = {
    "numpy": NumPyAdapter,
    "torch": TorchAdapter,
    "jax": JaxAdapter,
    "jax-x64-off": Jax32Adapter,
    "jit": JitAdapter,
    "jit-x64-off": Jit32Adapter,
}


def load(name: str) -> Any:
    """The adapter of that name, or of `module:Class`. One that cannot be imported is an error."""
    if name in ADAPTERS:
        return ADAPTERS[name]()
    module, _, cls = name.partition(":")
    if not cls:
        raise ImportError(f"expected one of {', '.join(ADAPTERS)} or module:Class")
    return getattr(importlib.import_module(module), cls)()


def spec_of(entry: Any) -> Spec:
    return Spec({"t": list_of(entry)})
