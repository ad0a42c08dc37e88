"""JAX arrays over an SoA, without moving a byte, and the SoA itself as a pytree."""

from ._arrays import arrays, mask, to, update, write

__all__ = ["arrays", "mask", "to", "update", "write"]
