"""PyTorch tensors over an SoA, without moving a byte."""

from ._move import empty, to
from ._tensors import tensors, write

__all__ = ["empty", "tensors", "to", "write"]
