"""Tensors over a Structure of Arrays, without moving a byte.

This is the core: it computes layouts and strides and knows NumPy only. `soaview_torch.tensors` and
`soaview_jax.arrays` hand its views to PyTorch and JAX.
"""

from ._bind import bind
from ._blocks import Blocks, SoABlocks
from ._explain import explain
from ._fields import Column, Scalar
from ._files import open_arrow, read_parquet
from ._intake import pack
from ._layout import Layout
from ._rows import concatenate
from ._soa import SoA
from ._spec import Spec, Value
from ._views import View, views

__all__ = [
    "Blocks",
    "Column",
    "Layout",
    "Scalar",
    "SoA",
    "SoABlocks",
    "Spec",
    "Value",
    "View",
    "bind",
    "concatenate",
    "explain",
    "open_arrow",
    "pack",
    "read_parquet",
    "views",
]

for _public in __all__:  # pickles and messages name what people can import
    globals()[_public].__module__ = __name__
