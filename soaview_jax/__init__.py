"""JAX arrays over an SoA, without moving a byte."""

from ._arrays import arrays, write

__all__ = ["arrays", "write"]
