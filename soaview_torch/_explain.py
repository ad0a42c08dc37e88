"""What is a view in torch, and what is not."""

from __future__ import annotations

import torch

from soaview import SoA, Spec
from soaview.adapter import Verdict, announce, verdicts

from ._tensors import tensors


def explain(soa: SoA, spec: Spec) -> list[Verdict]:
    """Of each tensor, whether torch has a view of it or a copy, and why; `soaview.explain` asks.

    Args:
        soa: the memory.
        spec: the tensors.

    Raises:
        TypeError, KeyError, ValueError: as `tensors` does.

    >>> from soaview import Column, Layout, Spec
    >>> soa = Layout([Column("pt", "float32"), Column("eta", "float32")]).allocate(33)
    >>> [verdict.gives for verdict in explain(soa, Spec(x=["pt", "eta"], y=["eta", "pt"]))]
    ['view', 'copy']
    """
    return verdicts("torch", tensors, torch.Tensor.data_ptr, soa, spec)


announce("soaview_torch", explain)
