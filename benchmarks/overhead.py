"""What a call costs over the framework's own: `python benchmarks/overhead.py`.

Both sides of a ratio run interleaved, round by round, in one process; the ratio is that of the
medians. The spec has five tensors, as the CMS experiment's own test has: vectors `a`, `b`; a matrix
`c`; columns `x`, `y`, `z`; column `x`; a scalar.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import count

import jax
import numpy as np
import torch
from measure import LAYOUT, SPEC, TENSORS, growth, medians

import soaview_jax
import soaview_torch
from soaview import SoA, Spec, Value, views

VALUE_SPEC = Spec(TENSORS, type=Value("type"))


def ratio(ours: Callable[[], object], theirs: Callable[[], object], rounds: int, calls: int) -> str:
    """Median time of `ours` over that of `theirs`, interleaved."""
    mine, other = medians({"ours": ours, "theirs": theirs}, rounds, calls).values()
    return f"{mine / other:6.2f} x   ({mine * 1e6:8.2f} us against {other * 1e6:8.2f} us)"


def as_strided_arguments(soa: SoA) -> list[tuple[object, ...]]:
    """What somebody would write by hand, worked out beforehand."""
    memory = torch.from_numpy(soa.buffer.root)
    flat = {name: memory.view(getattr(torch, name)) for name in ("float32", "float64")}
    return [(flat[v.dtype_name], v.shape, v.strides, v.offset) for v in views(soa, SPEC)]


def same_soa() -> str:
    soa = LAYOUT.allocate(1000)
    ab, c, xyz, x, scalar = as_strided_arguments(soa)
    view = torch.as_strided
    return ratio(
        lambda: soaview_torch.tensors(soa, SPEC),
        lambda: [view(*ab), view(*c), view(*xyz), view(*x), view(*scalar)],
        rounds=200,
        calls=200,
    )


def by_hand(buffer: np.ndarray, rows: int) -> list[torch.Tensor]:
    """What somebody would write who knows this one layout, of new memory: nothing is checked."""
    view, wide, narrow = torch.as_strided, -(-rows * 8 // 128) * 16, -(-rows * 4 // 128) * 32
    doubles = torch.from_numpy(buffer.view(np.float64))
    floats = doubles.view(torch.float32)
    x = 6 * wide + 2 * narrow
    return [
        view(doubles, (rows, 2, 3), (1, 3 * wide, wide)),
        view(floats, (rows, 2, 2), (1, narrow, 2 * narrow), 12 * wide),
        view(doubles, (rows, 3), (1, wide), x),
        view(doubles, (rows,), (1,), x),
        view(floats, (rows,), (0,), 2 * (x + 3 * wide)),
    ]


def new_memory() -> str:
    events = [(np.zeros(LAYOUT.nbytes(rows), np.uint8), rows) for rows in range(500, 2500)]
    for one, other in zip(
        soaview_torch.tensors(LAYOUT.wrap(*events[7]), SPEC), by_hand(*events[7]), strict=True
    ):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
        assert one.data_ptr() == other.data_ptr()

    def ours() -> None:
        for buffer, rows in events:
            soaview_torch.tensors(LAYOUT.wrap(buffer, rows), SPEC)

    def theirs() -> None:
        for buffer, rows in events:
            by_hand(buffer, rows)

    return ratio(ours, theirs, rounds=60, calls=1)


def event_loop() -> str:
    view, wrap, tensors = torch.as_strided, LAYOUT.wrap, soaview_torch.tensors
    events = [(np.zeros(LAYOUT.nbytes(rows), np.uint8), rows) for rows in range(500, 2500)]
    by_hand = [as_strided_arguments(wrap(buffer, rows)) for buffer, rows in events]

    def ours() -> None:
        for buffer, rows in events:
            tensors(wrap(buffer, rows), SPEC)

    def theirs() -> None:
        for ab, c, xyz, x, scalar in by_hand:
            [view(*ab), view(*c), view(*xyz), view(*x), view(*scalar)]

    return ratio(ours, theirs, rounds=60, calls=1)


def jax_arrays() -> str:
    soa = LAYOUT.allocate(LAYOUT.dense_rows(1000))
    sources = [view.numpy() for view in views(soa, VALUE_SPEC)]
    return ratio(
        lambda: soaview_jax.arrays(soa, VALUE_SPEC),
        lambda: [jax.dlpack.from_dlpack(source) for source in sources],
        rounds=100,
        calls=20,
    )


def other_specs(call: Callable[[SoA, Spec], object], spec: Spec) -> tuple[str, str]:
    """Two specs by turns, and equal ones made anew, against the same one again."""
    soa, calls = LAYOUT.allocate(LAYOUT.dense_rows(1000)), 200
    turns = [spec, Spec({f"{name}2": entry for name, entry in spec.items()})] * (calls // 2)
    equal = [Spec(dict(spec)) for _ in range(calls)]

    def each(specs: list[Spec]) -> Callable[[], None]:
        def run() -> None:
            for one in specs:
                call(soa, one)

        return run

    same = each([spec] * calls)
    return ratio(each(turns), same, 60, 1), ratio(each(equal), same, 60, 1)


def one_column() -> str:
    soa = LAYOUT.allocate(1000)
    memory, at = soa.buffer.root, LAYOUT.offset("x", 1000)
    dtype = np.dtype("float64")
    return ratio(lambda: soa["x"], lambda: np.ndarray((1000,), dtype, memory, at, (8,)), 100, 1000)


def new_row_counts() -> str:
    """`forward` of JAX's where no row count comes twice: compiled for capacities, or for each."""
    fn, counts = jax.jit(lambda x: x * 2), count(300)

    def call(row_wise: bool) -> Callable[[], None]:
        def run() -> None:
            pair = LAYOUT.allocate(next(counts)), Spec(x="x")
            soaview_jax.forward(fn, pair, pair, row_wise=row_wise)

        return run

    return ratio(call(True), call(False), rounds=15, calls=1)


def rows_do_not_matter(call: Callable[[SoA], object], most: int) -> str:
    few, many = (LAYOUT.allocate(LAYOUT.dense_rows(rows)) for rows in (10**3, most))
    return ratio(lambda: call(many), lambda: call(few), rounds=100, calls=20)


def memory_growth(call: Callable[[SoA], object], rows: int) -> str:
    soa = LAYOUT.allocate(LAYOUT.dense_rows(rows))
    soa.buffer.root[:] = 1
    call(soa)
    return f"{growth(lambda: call(soa)):.1f} MB of {soa.buffer.nbytes / 2**20:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--most", type=int, default=10**7, help="rows at most")
    most = parser.parse_args().most
    jax.config.update("jax_enable_x64", True)
    print(f"torch {torch.__version__}, jax {jax.__version__}, numpy {np.__version__}")
    print(f"tensors, same SoA            / as_strided by hand   {same_soa()}")
    print(f"wrap + tensors, event loop   / as_strided by hand   {event_loop()}")
    print(f"wrap + tensors, event loop   / new memory by hand   {new_memory()}")
    print(f"arrays, dense rows           / from_dlpack          {jax_arrays()}")
    for name, call, spec in (
        ("tensors", soaview_torch.tensors, SPEC),
        ("arrays", soaview_jax.arrays, VALUE_SPEC),
    ):
        turns, equal = other_specs(call, spec)
        print(f"{name:7s} of two specs by turns / of one                {turns}")
        print(f"{name:7s} of equal specs        / of the same one       {equal}")
    print(f'soa["x"]                     / np.ndarray by hand   {one_column()}')
    print(f"forward of new row counts, row_wise / compiled for each {new_row_counts()}")
    for name, call in {
        "tensors": lambda soa: soaview_torch.tensors(soa, SPEC),
        "wrap + tensors": lambda soa: soaview_torch.tensors(
            LAYOUT.wrap(soa.buffer.root, soa.rows), SPEC
        ),
        "arrays": lambda soa: soaview_jax.arrays(soa, VALUE_SPEC),
    }.items():
        print(f"{name:14s} at {most} rows / at 1000            {rows_do_not_matter(call, most)}")
        growth = [memory_growth(call, rows) for rows in (10**3, most)]
        print(f"{name:14s} memory at 1000 and {most} rows         {' and '.join(growth)}")


if __name__ == "__main__":
    main()
