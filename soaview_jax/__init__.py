"""JAX arrays over an SoA, without moving a byte, and the SoA itself as a pytree."""

from ._arrays import arrays
from ._explain import explain
from ._forward import forward
from ._loader import loader
from ._move import to
from ._prepare import prepare
from ._rows import mask, segments
from ._take import concatenate, take
from ._update import update
from ._write import write

__all__ = [
    "arrays",
    "concatenate",
    "explain",
    "forward",
    "loader",
    "mask",
    "prepare",
    "segments",
    "take",
    "to",
    "update",
    "write",
]
