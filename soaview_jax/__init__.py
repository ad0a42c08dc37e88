"""JAX arrays over an SoA, without moving a byte, and the SoA itself as a pytree."""

from ._arrays import arrays, to, update, write
from ._forward import forward
from ._rows import mask, segments

__all__ = ["arrays", "forward", "mask", "segments", "to", "update", "write"]
