"""What an SoA costs as an argument of `jax.jit`: `python benchmarks/jax_jit.py`.

Against arrays that are in JAX already, row-major, as if the conversion were free; against
`np.stack` of the columns, then `jit`; against eager `arrays`, then `jit`. Bound columns and records
against the same in one buffer (`python benchmarks/jax_jit.py bound` alone). All run interleaved,
round by round, in one process; a ratio is that of the medians. Every call is waited for.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measure import LAYOUT, SPEC, growth, keep_freed_memory, medians

from soaview import Column, Layout, SoA, Spec, Value, bind
from soaview_jax import arrays

NAMES = [f"x{i}" for i in range(16)]
COLUMNS = Layout([Column(name, "float32") for name in NAMES])


def five(ab: Any, c: Any, xyz: Any, x: Any, kind: Any) -> Any:
    """A formula of two vectors, a matrix, a triple of columns, a column and a scalar."""
    a, b = ab[:, 0], ab[:, 1]
    area = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    determinant = c[:, 0, 0] * c[:, 1, 1] - c[:, 0, 1] * c[:, 1, 0]
    angle = jnp.arctan2(area, jnp.hypot(xyz[:, 0], xyz[:, 1]))
    return jnp.exp(-x * x) * angle + kind * determinant


def mlp(sizes: tuple[int, ...] = (16, 32, 32, 1)) -> Callable[[Any], Any]:
    """16 columns -> 32 -> 32 -> 1."""
    random = np.random.default_rng(0)
    weights = [
        jnp.asarray(random.normal(size=shape).astype("float32")) for shape in pairwise(sizes)
    ]

    def model(x: Any) -> Any:
        for weight in weights[:-1]:
            x = jax.nn.relu(x @ weight)
        return x @ weights[-1]

    return model


def filled(layout: Layout, rows: int) -> SoA:
    soa, random = layout.allocate(rows), np.random.default_rng(0)
    for field in layout.fields:
        target = soa[field.name if field.per_row else Value(field.name)]
        target[...] = random.normal(size=target.shape).astype(target.dtype)
    return soa


def compare(name: str, layout: Layout, spec: Spec, model: Callable[..., Any], rows: int) -> None:
    soa = filled(layout, rows)
    ready = [jnp.array(array) for array in arrays(soa, spec, copy=True)]
    columns = [
        [soa[column] for column in entry] if isinstance(entry, tuple) else soa[entry]
        for entry in spec.values()
    ]
    function, of_soa = jax.jit(model), jax.jit(lambda soa: model(*arrays(soa, spec)))
    put = jax.device_put(soa)  # aliases the memory, too
    ways = {
        "ready": lambda: function(*ready),
        "soa": lambda: of_soa(soa),
        "put": lambda: of_soa(put),
        "new": lambda: of_soa(layout.wrap(soa.buffer.root, rows)),
        "stack": lambda: function(
            *[np.stack(c, axis=1) if isinstance(c, list) else c for c in columns]
        ),
        "eager": lambda: function(*arrays(soa, spec, copy=None)),
    }
    calls = {way: lambda call=call: jax.block_until_ready(call()) for way, call in ways.items()}
    found = medians(calls, rounds=300, repeat=10 if rows < 10**4 else 1)
    own, limit = found["soa"], found["ready"]
    print(f"{name}, {rows} rows: jit(f)(soa) {own * 1e6:.0f} us", end="")
    print(f", of arrays that are in JAX already {limit * 1e6:.0f} us")
    for way, ratio in {
        "jit(f)(soa)                     / ready arrays": own / limit,
        "jit(f)(jax.device_put(soa) kept) / ready arrays": found["put"] / limit,
        "jit(f)(layout.wrap(...))        / ready arrays": found["new"] / limit,
        "np.stack, then jit(f)           / jit(f)(soa)": found["stack"] / own,
        "np.stack, then jit(f)           / ready arrays": found["stack"] / limit,
        "eager arrays, then jit(f)       / jit(f)(soa)": found["eager"] / own,
    }.items():
        print(f"    {way:48s} {ratio:5.2f}", flush=True)


def along_rows(rows: int) -> None:
    """What an option of XLA's compilation makes of functions along the rows."""
    soa, spec = filled(COLUMNS, rows), Spec(x=NAMES)
    ready = jax.block_until_ready(jnp.array(np.stack([soa[name] for name in NAMES], axis=1)))
    for name, function in ALONG_ROWS.items():

        def of_soa(soa: SoA, function: Callable[..., Any] = function) -> Any:
            return function(*arrays(soa, spec))

        calls = {
            "ready": (jax.jit(function), ready),
            "default": (jax.jit(of_soa), soa),
            "options": (jax.jit(of_soa, compiler_options=OPTIONS), soa),
        }
        found = medians(
            {way: lambda f=f, x=x: jax.block_until_ready(f(x)) for way, (f, x) in calls.items()}, 21
        )
        limit = found["ready"]
        print(
            f"{name}, {rows} rows: jit(f)(soa) / ready arrays {found['default'] / limit:.2f}, with "
            f"compiler_options={OPTIONS} {found['options'] / limit:.2f}",
            flush=True,
        )


OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}
ALONG_ROWS = {
    "sum of each row": lambda x: x.sum(1),
    "largest of each row": lambda x: x.max(1),
    "softmax": lambda x: jax.nn.softmax(x, 1),
    "layer norm": lambda x: (x - x.mean(1, keepdims=True)) / jnp.sqrt(x.var(1, keepdims=True) + 1),
    "mean of each column": lambda x: x.mean(0),
    "dense layer": lambda x: jax.nn.relu(x @ jnp.ones((16, 32), "float32")),
}


def element_wise(soa: SoA) -> Any:
    """A number for each row, of eight columns."""
    total, *others = arrays(soa, Spec({name: name for name in EIGHT}))
    for x in others:
        total = total * 0.5 + x
    return total


EIGHT = NAMES[:8]


def past_64(past: int, rows: int, dtype: Any) -> Any:
    """An array that starts so many bytes past a multiple of 64; malloc's are at 16."""
    size = rows * np.dtype(dtype).itemsize
    whole = np.zeros(size + 128, np.uint8)
    first = -whole.ctypes.data % 64 + past
    return whole[first : first + size].view(dtype)


def bound(rows: int) -> None:
    """What it costs that columns lie apart, or in records, and are copied on the way in."""
    laid = filled(Layout([COLUMNS[name] for name in EIGHT]), rows)
    kind = np.dtype([(name, "f4") for name in EIGHT])
    ways = {"laid": laid}
    for past, where in ((16, "from malloc"), (0, "on 64 bytes")):
        ways[f"columns {where}"] = bind({name: past_64(past, rows, "f4") for name in EIGHT})
        ways[f"records {where}"] = bind(past_64(past, rows, kind))
    function = jax.jit(element_wise)
    for soa in ways.values():
        for name in EIGHT:
            soa[name][:] = laid[name]
        assert (function(soa) == function(laid)).all()
    calls = {way: lambda soa=soa: jax.block_until_ready(function(soa)) for way, soa in ways.items()}
    found = medians(calls, 101 if rows < 10**6 else 41, clock=time.process_time)
    limit = found.pop("laid")
    print(f"eight columns, element-wise, {rows} rows: jit(f)(laid) {limit * 1e6:.0f} us")
    for way, seconds in found.items():
        print(f"    jit(f)(bound) / jit(f)(laid), {way:25s} {seconds / limit:5.2f}", flush=True)


def memory(way: str, rows: int) -> None:
    """Print the growth during the first run of the compiled model, in a process of its own."""
    soa, spec = COLUMNS.allocate(rows), Spec(x=NAMES)
    soa.buffer.root[:] = 1
    model = mlp()
    if way == "soa":
        function = jax.jit(lambda soa: model(*arrays(soa, spec))).lower(soa).compile()
        found = growth(lambda: jax.block_until_ready(function(soa)))
    else:
        x = jnp.ones((rows, 16), "float32")
        function = jax.jit(model).lower(x).compile()
        found = growth(lambda: jax.block_until_ready(function(x)))
    print(f"{found:.0f}")


def main(most: int = 10**7) -> None:
    all_bound(most)
    for rows in [r for r in (10**3, 10**5) if r <= most]:
        with jax.enable_x64(True):
            compare("five tensors", LAYOUT, SPEC, five, rows)
        compare("MLP", COLUMNS, Spec(x=NAMES), mlp(), rows)
        along_rows(rows)
    for rows in (min(most, 10**7), min(most, 10**7) - 1):
        grown = [
            subprocess.run(
                [sys.executable, __file__, way, str(rows)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
            for way in ("soa", "ready")
        ]
        size = COLUMNS.nbytes(rows) / 2**20
        print(
            f"MLP, {rows} rows, {size:.0f} MB: peak memory grows by {grown[0]} MB with an SoA, by "
            f"{grown[1]} MB with a ready array",
            flush=True,
        )


def all_bound(most: int = 10**7) -> None:
    print(f"jax {jax.__version__}, numpy {np.__version__}, {jax.devices()[0].device_kind}")
    keep_freed_memory()
    for rows in [r for r in (10**2, 10**4, 10**6) if r <= most]:
        bound(rows)


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case ["bound"]:
            all_bound()
        case ["--most", rows]:
            main(int(rows))
        case [way, rows]:
            memory(way, int(rows))
