"""How XLA is told to compile what reads an SoA's columns."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax

from ._settings import not_compiling

MOST = 4096
"""For how many row counts what was compiled is kept: as many as JAX keeps of a function."""


@cache
def _options() -> dict[str, Any] | None:
    """What makes functions along the rows 10 to 40 times faster, where XLA knows of it.

    On a CPU it hands reductions to a library that reads columns as if they lay row by row. What
    does not reduce is better off with it (`python benchmarks/jax_jit.py`).
    """
    found: dict[str, Any] = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        if jax.default_backend() == "cpu":
            jax.jit(lambda x: x + 1, compiler_options=found).lower(1.0).compile()
            return found
    except Exception:  # another XLA has other options
        pass
    return None


def jitted(fn: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """`jax.jit(fn)`, compiled as is best for what it does with these arguments."""
    plain = jax.jit(fn, **options)
    reducing = _options()
    if reducing is None or not _reduces(plain.trace(*given).jaxpr):
        return plain
    return jax.jit(fn, compiler_options=reducing, **options)


def by_first(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`jitted`, chosen for each first argument, which is static."""
    known: dict[Any, Any] = {}

    def run(first: Any, *given: Any) -> Any:
        if not_compiling():
            return fn(first, *given)
        found = known.get(first)
        if found is None:
            if len(known) >= MOST:
                known.clear()
            found = known.setdefault(first, jitted(fn, first, *given, static_argnums=0))
        return found(first, *given)

    return run


def _reduces(jaxpr: Any) -> bool:
    """Whether a reduction is in it: a sum, a largest value, and what is made of these."""
    if isinstance(jaxpr, (tuple, list)):
        return any(map(_reduces, jaxpr))
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return any(
        eqn.primitive.name.startswith(("reduce_", "arg")) or any(map(_reduces, eqn.params.values()))
        for eqn in getattr(jaxpr, "eqns", ())
    )
