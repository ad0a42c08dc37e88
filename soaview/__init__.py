"""Tensors over a Structure of Arrays, without moving a byte.

This is the core: it computes layouts and strides and knows NumPy only. `soaview_torch.tensors` and
`soaview_jax.arrays` hand its views to PyTorch and JAX.
"""

from ._fields import Column, Scalar
from ._layout import Layout
from ._soa import SoA
from ._spec import Spec, Value
from ._views import View, views

__all__ = ["Column", "Layout", "Scalar", "SoA", "Spec", "Value", "View", "views"]
