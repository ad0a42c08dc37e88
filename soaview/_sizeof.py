"""What an SoA takes in memory, for Dask's schedulers, which find this module by its entry point."""

from __future__ import annotations

from typing import Any

from . import SoA, SoABlocks


def register(sizeof: Any) -> None:
    """Tell `dask.sizeof` of SoAs and blocks."""
    sizeof.register(SoA, _nbytes)
    sizeof.register(SoABlocks, _nbytes)


def _nbytes(soa: Any) -> int:
    """The bytes of its rows, which is what is sent."""
    found: int = soa.layout.nbytes(soa.rows)
    return found
