"""From columns to one tensor, against what people use: `python benchmarks/peers.py`.

Eight float32 columns in each container become one (N, 8) tensor of torch and one JAX array, by the
container's own ways, and by `bind` with `copy=None`, which gathers what is no one tensor there. All
ways run interleaved, round by round, in one process; times are medians, each of as many calls in a
row as last ten milliseconds. `shared` says that the result lies in the container's own memory, by
address; peak is what the process's peak memory (VmHWM) rises by in one call. It says what it is at,
for it takes minutes.

The peers are in the extra `bench`; one that is not installed is left out, and said to be. The whole
run writes `benchmarks/results/peers.md` and its plot; `--most N` ends earlier and writes nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from measure import growth, medians
from numpy.lib.recfunctions import structured_to_unstructured

import soaview_jax
import soaview_torch
from soaview import Column, Layout, SoA, Spec, bind, views

NAMES = [f"x{n}" for n in range(8)]
LAYOUT = Layout([Column(name, "float32") for name in NAMES])
SPEC = Spec(x=NAMES)
RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("pandas", "polars", "pyarrow", "tensordict", "awkward", "xarray")
Ways = dict[str, tuple[Callable[[], Any], np.ndarray]]
"""By name: what makes the tensor, and the memory of the container's first column."""


def columns_of(rows: int) -> dict[str, np.ndarray]:
    return {name: np.arange(rows, dtype=np.float32) + n for n, name in enumerate(NAMES)}


def filled(rows: int) -> SoA:
    return LAYOUT.pack(columns_of(rows))


def by_numpy(arrays: dict[str, Any]) -> Callable[[], np.ndarray]:
    return lambda: np.stack([arrays[name] for name in NAMES], axis=1)


def containers(
    rows: int,
) -> Iterator[tuple[str, Callable[[], SoA], dict[str, Callable[[], Any]], np.ndarray]]:
    """What people keep columns in: bound, and its own ways to one (N, 8) array.

    That is one of NumPy, or of torch where the container has that. The last is its first column.
    """
    columns = columns_of(rows)
    tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
    yield (
        "NumPy arrays",
        lambda: bind(columns),
        {"np.stack": by_numpy(columns)},
        columns["x0"],
    )
    yield (
        "torch tensors",
        lambda: bind(tensors),
        {"torch.stack": lambda: torch.stack([tensors[name] for name in NAMES], dim=1)},
        columns["x0"],
    )
    rowwise = np.zeros(rows, [(name, np.float32) for name in NAMES])
    for name in NAMES:
        rowwise[name] = columns[name]
    yield (
        "NumPy structured array",
        lambda: bind(rowwise),
        {"to unstructured": lambda: structured_to_unstructured(rowwise)},
        rowwise["x0"],
    )
    if there("pandas"):
        import pandas

        block = pandas.DataFrame(np.stack(list(columns.values()), axis=1), columns=NAMES)
        apart = pandas.DataFrame(columns, copy=False)
        for name, frame in (("one block", block), ("column by column", apart)):
            # pandas hands out read-only arrays, and its users ignore torch's warning of them.
            yield (
                f"pandas, {name}",
                lambda frame=frame: bind(frame, readonly=False),
                {"to_numpy": frame.to_numpy},
                frame["x0"].to_numpy(),
            )
    if there("polars"):
        import polars

        frame = polars.DataFrame(columns)
        yield (
            "polars",
            lambda frame=frame: bind(frame),
            {"to_torch / to_jax": frame.to_torch},
            frame["x0"].to_numpy(allow_copy=False),
        )
    if there("pyarrow"):
        import pyarrow

        batch = pyarrow.RecordBatch.from_arrays(list(map(pyarrow.array, columns.values())), NAMES)
        file = tempfile.NamedTemporaryFile()  # noqa: SIM115 - lives as long as the way does
        with pyarrow.ipc.new_file(file.name, batch.schema) as writer:
            writer.write(batch)
        reader = pyarrow.ipc.open_file(pyarrow.memory_map(file.name))
        for name, read in (
            ("pyarrow", lambda: batch),
            ("pyarrow, mapped IPC file", lambda file=file: reader.get_batch(0)),
        ):
            yield (
                name,
                lambda read=read: bind(read()),
                {"to_tensor": lambda read=read: read().to_tensor().to_numpy()},
                read().column(0).to_numpy(),
            )
    if there("tensordict"):
        from tensordict import TensorDict

        keyed = TensorDict(tensors, batch_size=[rows])

        def consolidated() -> torch.Tensor:
            whole = keyed.consolidate()
            first, second = whole["x0"], whole["x1"]
            step = (second.data_ptr() - first.data_ptr()) // 4
            return torch.as_strided(first, (rows, 8), (1, step))

        yield (
            "tensordict",
            lambda: bind(keyed),
            {
                "torch.stack": lambda: torch.stack([keyed[name] for name in NAMES], dim=1),
                "consolidate": consolidated,
            },
            columns["x0"],
        )
    if there("awkward"):
        import awkward

        records = awkward.zip(columns)
        yield (
            "awkward",
            lambda: bind(records),
            {
                "np.stack of fields": lambda: np.stack(
                    [records[name].to_numpy() for name in NAMES], axis=1
                )
            },
            records["x0"].to_numpy(),
        )
    if there("xarray"):
        import xarray

        dataset = xarray.Dataset({name: ("row", column) for name, column in columns.items()})
        yield (
            "xarray",
            lambda: bind(dataset),
            {"to_dataarray": lambda: dataset.to_dataarray().to_numpy().T},
            columns["x0"],
        )


def there(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def to_torch(made: Any) -> torch.Tensor:
    return made if isinstance(made, torch.Tensor) else torch.from_numpy(made)


def to_jax(made: Any) -> jax.Array:
    if isinstance(made, torch.Tensor):
        return jax.dlpack.from_dlpack(made.contiguous())
    return jnp.asarray(made)


def ways_to(framework: str, rows: int) -> Ways:
    """soaview, the limit that it cannot pass, and the peers."""
    soa = filled(rows)
    memory, own = soa["x0"], dict(soa_views(soa))
    padded = views(soa, SPEC, padded=True)[0].numpy()
    found: Ways = {}
    if framework == "torch":
        flat = torch.from_numpy(soa.buffer.root).view(torch.float32)
        step = LAYOUT.pitch("x0", rows) // 4
        found["soaview"] = lambda: soaview_torch.tensors(soa, SPEC)[0], memory
        found["strides by hand"] = lambda: torch.as_strided(flat, (rows, 8), (1, step)), memory
    else:
        found["soaview"] = (lambda: soaview_jax.arrays(soa, SPEC, padded=True)[0], memory)
        found["from_dlpack by hand"] = lambda: jax.dlpack.from_dlpack(padded), memory
    convert = to_torch if framework == "torch" else to_jax
    found["the SoA's columns, np.stack"] = lambda: convert(by_numpy(own)()), memory
    arrays_of = soaview_torch.tensors if framework == "torch" else soaview_jax.arrays
    for kept, bound, ways, source in containers(rows):
        found[f"{kept}, bind"] = (
            lambda bound=bound: arrays_of(bound(), SPEC, copy=None)[0],
            source,
        )
        for how, make in ways.items():
            if kept == "polars" and framework == "jax":
                found[f"{kept}, {how}"] = make.__self__.to_jax, source
            else:
                found[f"{kept}, {how}"] = lambda make=make: convert(make()), source
    return found


def soa_views(soa: SoA) -> Iterator[tuple[str, np.ndarray]]:
    return ((name, soa[name]) for name in NAMES)


def finished(call: Callable[[], Any]) -> Callable[[], Any]:
    """JAX computes asynchronously: wait for it."""
    return lambda: jax.block_until_ready(call())


def compare(framework: str, rows: int) -> list[dict[str, Any]]:
    """A line for each way: seconds, megabytes, whether shared."""
    print(f"{rows} rows to {framework} ...", file=sys.stderr)
    ways = ways_to(framework, rows)
    wait = finished if framework == "jax" else lambda call: call
    calls = {name: wait(call) for name, (call, _) in ways.items()}
    expected = np.stack(list(columns_of(rows).values()), axis=1)
    lines = []
    for name, (_, source) in ways.items():
        kept: list[Any] = []
        grown = growth(lambda call=calls[name], kept=kept: kept.append(call()))
        [made] = kept
        assert np.array_equal(np.asarray(made)[:rows], expected), name
        torch_made = isinstance(made, torch.Tensor)
        address = made.data_ptr() if torch_made else made.unsafe_buffer_pointer()
        shared = address == source.ctypes.data
        lines.append({"way": name, "rows": rows, "by": framework, "shared": shared, "grown": grown})
        del made, kept
    times = medians(calls, rounds=30 if rows < 10**6 else 15)
    for line in lines:
        line["seconds"] = times[line["way"]]
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: a row for each way, a pair of columns for each N."""
    counts = sorted({line["rows"] for line in lines})
    out = []
    for framework, title in (("torch", "torch tensor"), ("jax", "JAX array")):
        heads = [f"{n:,} rows, us" for n in counts]
        out.append(f"| to one {title} | memory | {' | '.join(heads)} | / soaview | peak, MB |")
        out.append(f"|---|---|{'---|' * (len(counts) + 2)}")
        mine = [line for line in lines if line["by"] == framework]
        ours = next(x for x in mine if x["way"] == "soaview" and x["rows"] == counts[-1])
        for name in dict.fromkeys(line["way"] for line in mine):
            found = {line["rows"]: line for line in mine if line["way"] == name}
            times = [f"{found[n]['seconds'] * 1e6:,.1f}" for n in counts]
            last = found[counts[-1]]
            kind = "shared" if last["shared"] else "copied"
            ratio = f"{last['seconds'] / ours['seconds']:,.2f}"
            out.append(f"| {name} | {kind} | {' | '.join(times)} | {ratio} | {last['grown']:.0f} |")
        out.append("")
    return "\n".join(out)


def summary(lines: list[dict[str, Any]]) -> str:
    """The ratios that count."""
    out = []
    for framework in ("torch", "jax"):
        for rows in sorted({line["rows"] for line in lines}):
            mine = [x for x in lines if x["by"] == framework and x["rows"] == rows]
            ours, limit = mine[0], mine[1]
            best = min(
                (x for x in mine if not x["shared"] and not x["way"].endswith(", bind")),
                key=lambda x: x["seconds"],
            )
            out.append(
                f"{framework}, {rows} rows: soaview / {limit['way']} "
                f"{ours['seconds'] / limit['seconds']:.2f}; the fastest that copies, "
                f"{best['way']}, takes {best['seconds'] / ours['seconds']:,.1f} times as long"
            )
    return "\n".join(out)


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """What is constant, and what grows."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    for axes, framework, title in zip(
        panels, ("torch", "jax"), ("one torch tensor", "one JAX array"), strict=True
    ):
        mine = [line for line in lines if line["by"] == framework]
        for name in reversed(dict.fromkeys(line["way"] for line in mine)):
            found = [line for line in mine if line["way"] == name]
            style: dict[str, Any] = {"color": "0.72", "lw": 1.2, "marker": "."}
            if found[-1]["shared"]:
                style = {"color": "tab:orange", "lw": 1.4, "marker": ".", "ls": "--"}
            if name == "soaview":
                style = {"color": "tab:blue", "lw": 3, "marker": "o"}
            times = [line["seconds"] for line in found]
            axes.plot([line["rows"] for line in found], times, **style)
        axes.set(xscale="log", yscale="log", xlabel="rows", title=f"8 float32 columns to {title}")
        axes.grid(which="major", color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("seconds")
    for color, style, width, label in (
        ("tab:blue", "-", 3, "soaview"),
        ("tab:orange", "--", 1.4, "others that share the memory"),
        ("0.72", "-", 1.2, "what copies it"),
    ):
        panels[0].plot([], [], color=color, ls=style, lw=width, label=label)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--most", type=int, default=10**7, help="rows at most")
    most = parser.parse_args().most
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # its own keeps what is freed
    # pandas and Arrow give read-only arrays, and torch warns of them.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    libraries = ["numpy", "torch", "jax", *filter(there, LIBRARIES)]
    said = ", ".join(f"{library} {version(library)}" for library in libraries)
    if absent := [library for library in LIBRARIES if not there(library)]:
        said += f"; not installed, hence left out: {', '.join(absent)}"
    # 4 000 rows are 128 KB: thereabouts copying into JAX begins to cost more than an import.
    counts = [rows for rows in (10**3, 4 * 10**3, 10**5, 10**7) if rows <= most] or [most]
    lines = [x for rows in counts for by in ("torch", "jax") for x in compare(by, rows)]
    told = [
        f"# Columns to tensors\n\n`python benchmarks/peers.py`, on a CPU: {said}.\n",
        table(lines),
        "`/ soaview` and the peak, in one call, are those of the most rows. soaview's JAX array, "
        "and that by hand, have the padded rows: 1,024 of 1,000, else no more.\n",
        summary(lines).replace("\n", "\n\n"),
    ]
    text = "\n".join(told) + "\n"
    print(text)
    if most == 10**7 and not absent:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "peers.md").write_text(text)
        plot(lines, RESULTS / "peers.png")
        print(f"written: {RESULTS}", file=sys.stderr)


if __name__ == "__main__":
    main()
