"""JAX's settings, here and now, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import jax

NARROW = {
    "int64": "int32",
    "uint64": "uint32",
    "float64": "float32",
    "complex128": "complex64",
}
"""What JAX makes of the types that it has switched off by default."""


INT32_MAX = 2**31 - 1


def x64() -> bool:
    """Whether JAX has 64-bit types switched on, here and now."""
    return jax.dtypes.canonicalize_dtype("float64").itemsize == 8


def not_compiling() -> bool:
    """Whether JAX is told to run jitted functions as they are."""
    config: Any = jax.config
    return bool(config.jax_disable_jit)


def op_by_op() -> bool:
    """Whether JAX may be running a jitted function as it is, here and now, to look for errors."""
    config: Any = jax.config
    return bool(not_compiling() or config.jax_debug_nans or config.jax_debug_infs)


def alignment_on(device: str) -> int:
    """On which addresses, in bytes, XLA takes memory as it is.

    For the CPU's client https://github.com/openxla/xla/blob/main/xla/backends/cpu/alignment.h, for
    GPUs https://github.com/openxla/xla/blob/main/xla/service/gpu/gpu_constants.h.
    """
    return 16 if device.startswith(("cuda", "rocm")) else 64


@contextmanager
def as_it_is() -> Iterator[None]:
    """While memory is only read, a NaN in it is not one that a calculation has made."""
    with jax.debug_nans(False), jax.debug_infs(False):
        yield


def is_host(device: jax.Device) -> bool:
    """Whether NumPy reads the memory of a device of JAX's."""
    return bool(device.platform == "cpu")


def host_device() -> jax.Device:
    """Where JAX puts what it imports of the host's memory."""
    return jax.local_devices(backend="cpu")[0]


def device_name(devices: Iterable[jax.Device]) -> str:
    """Devices by the names that the core gives them."""
    names = set()
    for device in devices:
        if device.platform == "gpu":
            kind = "rocm" if "rocm" in device.client.platform_version else "cuda"
            names.add(f"{kind}:{device.local_hardware_id}")
        else:
            names.add(device.platform)
    return "+".join(sorted(names)) or "cpu"


def is_array(value: object) -> TypeGuard[jax.Array]:
    """Whether this is an array of JAX's that has values, and is not traced."""
    return isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)
