"""What an SoA takes in memory, for Dask's schedulers, which find this module by its entry point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import SoA, SoABlocks


def register(sizeof: Any) -> None:
    """Tell `dask.sizeof` of SoAs and blocks: the bytes of their rows, which is what is sent."""
    nbytes: Callable[[Any], int] = lambda soa: int(soa.layout.nbytes(soa.rows))  # noqa: E731
    sizeof.register(SoA, nbytes)
    sizeof.register(SoABlocks, nbytes)
