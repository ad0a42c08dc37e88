"""PyTorch tensors over an SoA, without moving a byte."""

from ._explain import explain
from ._forward import forward
from ._jagged import jagged, segments
from ._move import empty, to
from ._prepare import prepare
from ._tensors import tensors
from ._write import write

__all__ = ["empty", "explain", "forward", "jagged", "prepare", "segments", "tensors", "to", "write"]
