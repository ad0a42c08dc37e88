"""PyTorch tensors over an SoA, without moving a byte."""

from ._explain import explain
from ._forward import forward
from ._jagged import jagged, segments
from ._loader import Rows, loader
from ._move import empty, to
from ._prepare import prepare
from ._rows import concatenate, take
from ._tensors import tensors
from ._write import write

__all__ = [
    "Rows",
    "concatenate",
    "empty",
    "explain",
    "forward",
    "jagged",
    "loader",
    "prepare",
    "segments",
    "take",
    "tensors",
    "to",
    "write",
]
