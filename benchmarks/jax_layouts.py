"""Which form of an SoA's columns XLA takes best: `python benchmarks/jax_layouts.py`.

Prints the table of `jax_layouts.md`: time relative to the same model on a row-major array that is
in JAX already, interleaved, ratios of medians. 16 float32 columns; `P` is the padded row count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from measure import medians

from soaview import Column, Layout, Spec
from soaview_jax import arrays

K = 16
NAMES = [f"x{i}" for i in range(K)]
LAYOUT = Layout([Column(name, "float32") for name in NAMES])

MODELS: dict[str, Callable[[Any], Any]] = {
    "matrix product": lambda x: jax.nn.relu(x @ jnp.ones((x.shape[1], 64))),
    "element-wise": lambda x: jnp.tanh(x) * 2 + x,
    "standardise": lambda x: (x - x.mean(0)) / x.std(0),
    "sum of each row": lambda x: (x * 2 + 1).sum(1),
    "sum of each column": lambda x: (x * x).sum(0),
}


def candidates(matrix: np.ndarray, rows: int) -> dict[str, tuple[Any, Callable[[Any], Any]]]:
    """By name: the argument of the jitted function, and how it is cut there."""
    width = matrix.shape[1]
    soa = LAYOUT.wrap(matrix, width)
    [column_major] = arrays(soa, Spec(x=NAMES))
    return {
        "flat buffer": (matrix.reshape(-1), lambda a: a.reshape(K, width)[:, :rows].T),
        "matrix (k, P)": (matrix, lambda a: a[:, :rows].T),
        "(k, P), then a barrier": (matrix, lambda a: lax.optimization_barrier(a[:, :rows].T)),
        "(k, P) kept in JAX": (jax.device_put(matrix), lambda a: a[:, :rows].T),
        "column-major (P, k) kept": (column_major, lambda a: a[:rows]),
        "one leaf per column": (list(matrix), lambda a: jnp.stack(a, axis=1)[:rows]),
    }


def memory(width: int, columns: int = K) -> np.ndarray:
    """Columns of that many rows, aligned as an SoA's are."""
    layout = Layout([Column(f"x{i}", "float32") for i in range(columns)])
    matrix = layout.allocate(width).buffer.root.view("float32").reshape(columns, width)
    matrix[:] = np.random.default_rng(0).normal(size=matrix.shape)
    return matrix


def time_of(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    waited = {name: lambda call=call: jax.block_until_ready(call()) for name, call in calls.items()}
    for call in waited.values():
        call()
    begin = time.perf_counter()
    for call in waited.values():
        call()
    once = time.perf_counter() - begin
    return medians(waited, rounds=int(min(max(2 / once, 12), 300)), repeat=1)


def compare(model: Callable[[Any], Any], rows: int) -> dict[str, float]:
    matrix = memory(LAYOUT.dense_rows(rows))
    ready, function = jnp.array(matrix[:, :rows].T), jax.jit(model)
    calls: dict[str, Callable[[], Any]] = {"ready": lambda: function(ready)}
    for name, (argument, cut) in candidates(matrix, rows).items():
        jitted = jax.jit(lambda a, cut=cut: model(cut(a)))
        calls[name] = lambda jitted=jitted, argument=argument: jitted(argument)
    found = time_of(calls)
    return {name: found[name] / found["ready"] for name in found if name != "ready"}


def pitches(model: Callable[[Any], Any], pitch: int) -> float:
    """Time with 32 columns at this pitch, in elements, relative to one of 32 more."""
    rows = pitch - 32
    function = jax.jit(lambda a: model(a[:, :rows].T))
    matrices = [memory(pitch, 32), memory(pitch + 32, 32)]
    calls = {str(i): lambda m=m: function(m) for i, m in enumerate(matrices)}
    even, apart = time_of(calls).values()
    return even / apart


def main() -> None:
    print(f"jax {jax.__version__}, numpy {np.__version__}, {jax.devices()[0].device_kind}\n")
    names = list(candidates(memory(32), 32))
    print(f"| first operation | rows | {' | '.join(names)} |")
    print("|---" * (len(names) + 2) + "|")
    for title, model in MODELS.items():
        for rows in (10**2, 10**3, 10**5, 10**6):
            found = compare(model, rows)
            cells = " | ".join(f"{found[name]:.2f}" for name in names)
            print(f"| {title} | {rows} | {cells} |", flush=True)
    powers = (17, 20)
    print(f"\n| first operation | {' | '.join(f'2^{n} / 2^{n} + 32' for n in powers)} |")
    print("|---" * (len(powers) + 1) + "|")
    for title, model in {"copy to rows": lambda x: x + 0, **MODELS}.items():
        cells = " | ".join(f"{pitches(model, 2**n):.2f}" for n in powers)
        print(f"| {title} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
