"""An epoch in batches, against what people use: `python benchmarks/loaders.py`.

Eight float32 columns of 10^6 rows come in batches of 1000, in order and shuffled, and each batch is
summed. All ways of a table run interleaved, round by round, in one process; times are medians. What
is made once beforehand, such as a row-major copy, is in a table of its own. tensordict, of the
extra `bench`, is left out where it is not installed. It takes minutes, most of them in the
`DataLoader`s that fetch row by row. The whole run writes `benchmarks/results/loaders.md`; `--most
N` takes N rows and writes nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
import torch
from measure import medians
from peers import LAYOUT, NAMES, RESULTS, SPEC, by_numpy, columns_of, filled, there
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

import soaview_jax
import soaview_torch
from soaview import SoA

Ways = dict[str, Callable[[], object]]


class RowByRow(Dataset[torch.Tensor]):
    """What a dataset of rows looks like: item i is row i of every column."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self.columns = list(columns.values())

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.tensor([column[row] for column in self.columns])


def total(batches: Iterable[Any]) -> float:
    return sum(float((b[0] if isinstance(b, (list, tuple)) else b).sum()) for b in batches)


def viewed(soa: SoA) -> torch.Tensor:
    return soaview_torch.tensors(soa, SPEC)[0]


def by_torch(rows: int, size: int) -> dict[str, Ways]:
    """By title, the ways of an epoch."""
    soa, columns = filled(rows), columns_of(rows)
    row_major = torch.from_numpy(by_numpy(columns)())
    whole = TensorDataset(row_major)
    in_order_loader = soaview_torch.loader(soa, SPEC, size)
    shuffled_loader = soaview_torch.loader(soa, SPEC, size, shuffle=True)
    dataset = soaview_torch.Rows(soa, SPEC)

    def parts() -> tuple[torch.Tensor, ...]:
        return torch.randperm(rows).split(size)

    def sampled() -> DataLoader[Any]:
        sampler = BatchSampler(RandomSampler(dataset), size, drop_last=False)
        return DataLoader(dataset, sampler=sampler, batch_size=None)

    in_order: Ways = {
        "`loader`": lambda: total(in_order_loader),
        "`tensors` of each of `soa.batches`": lambda: total(map(viewed, soa.batches(size))),
        "a row-major copy, `split`": lambda: total(row_major.split(size)),
    }
    shuffled: Ways = {
        "`loader(shuffle=True)`": lambda: total(shuffled_loader),
        "`tensors` once, indexed": lambda: total(viewed(soa).index_select(0, p) for p in parts()),
        "a row-major copy, indexed": lambda: total(row_major.index_select(0, p) for p in parts()),
        "`DataLoader` of `Rows`, a sampler of lists": lambda: total(sampled()),
    }
    if there("tensordict"):
        from tensordict import TensorDict

        keyed = TensorDict({"x": row_major}, batch_size=[rows])
        shuffled["a tensordict of that copy, indexed"] = lambda: total(
            keyed[p]["x"] for p in parts()
        )
    row_by_row: Ways = {
        "`loader(shuffle=True)`": lambda: total(shuffled_loader),
        "`DataLoader` of `Rows`": lambda: total(DataLoader(dataset, size, shuffle=True)),
        "`DataLoader` of a `TensorDataset`": lambda: total(DataLoader(whole, size, shuffle=True)),
        "`DataLoader` of a dataset of rows": lambda: total(
            DataLoader(RowByRow(columns), size, shuffle=True)
        ),
    }
    memory = soa.buffer.root
    once: Ways = {
        "memory that is laid out: `wrap`, `tensors`": lambda: viewed(LAYOUT.wrap(memory, rows)),
        "other columns: `pack`, `tensors`": lambda: viewed(LAYOUT.pack(columns)),
        "other columns: `np.stack`, a row-major copy": by_numpy(columns),
        "memory that is laid out: a row-major copy": lambda: viewed(soa).contiguous(),
    }
    title = f"{rows} rows in batches of {size}, torch, "
    return {
        title + "in order": in_order,
        title + "shuffled": shuffled,
        title + "shuffled, row by row": row_by_row,
        f"once, before that: {rows} rows": once,
    }


def by_jax(rows: int, size: int) -> dict[str, Ways]:
    soa, row_major = filled(rows), by_numpy(columns_of(rows))()
    random = np.random.default_rng(0)
    batches = soaview_jax.loader(soa, SPEC, size, shuffle=True, drop_last=True)

    def parts() -> list[np.ndarray]:
        return np.split(random.permutation(rows), range(size, rows, size))

    def stacked(part: np.ndarray) -> jax.Array:
        return jax.device_put(np.stack([soa[name][part] for name in NAMES], axis=1))

    shuffled: Ways = {
        "`loader(shuffle=True)`": lambda: total(batches),
        "the columns indexed, `np.stack`": lambda: total(map(stacked, parts())),
        "a row-major copy, indexed": lambda: total(jax.device_put(row_major[p]) for p in parts()),
    }
    return {f"{rows} rows in batches of {size}, JAX, shuffled": shuffled}


def table_of(title: str, times: dict[str, float]) -> str:
    """Markdown: a row for each way, against the first."""
    first = next(iter(times.values()))
    rows = (f"| {way} | {t * 1e3:,.3f} | {t / first:,.2f} |" for way, t in times.items())
    return "\n".join([f"\n| {title} | ms | / the first |", "|---|---|---|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--most", type=int, default=10**6, help="rows")
    rows = parser.parse_args().most
    libraries = ["numpy", "torch", "jax", *filter(there, ["tensordict"])]
    said = ", ".join(f"{library} {version(library)}" for library in libraries)
    told = [f"# Epochs in batches\n\n`python benchmarks/loaders.py`, on a CPU: {said}."]
    for ways in (by_torch(rows, 1000), by_jax(rows, 1000)):
        for title, calls in ways.items():
            once, slow = title.startswith("once"), title.endswith("row by row")
            how = {"rounds": 15} if once else {"rounds": 1 if slow else 7, "repeat": 1}
            told.append(table_of(title, medians(calls, **how)))
            print(told[-1], flush=True)
    if rows == 10**6:
        (RESULTS / "loaders.md").write_text("\n".join(told) + "\n")


if __name__ == "__main__":
    main()
