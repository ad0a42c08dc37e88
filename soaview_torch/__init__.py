"""PyTorch tensors over an SoA, without moving a byte."""

from ._tensors import tensors, write

__all__ = ["tensors", "write"]
