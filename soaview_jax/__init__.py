"""JAX arrays over an SoA, without moving a byte, and the SoA itself as a pytree."""

from ._arrays import arrays, mask, update, write

__all__ = ["arrays", "mask", "update", "write"]
