"""The command line: `python -m soaview demo`, `describe`, `header`, `layout` and `selftest`.

It and the room of the last stand above the adapters: they import whichever frameworks there are.
"""

from __future__ import annotations

import argparse
import importlib
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import Blocks, Column, Layout, Scalar, SoA, Spec, Value, views
from ._cpp import MAX_TEXT
from ._fields import no_such
from ._json import MAX_BYTES, parse_json
from ._selftest import selftest, version_of


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m soaview", description="Tensors over an SoA.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("describe", help="print the memory map of a layout")
    show.add_argument("layout", type=Path, help="a file that holds layout.to_json()")
    show.add_argument("--rows", type=int, required=True, help="the row count of the map")
    show.add_argument("--svg", type=Path, help="write a drawing of it to this file, too")
    read = commands.add_parser("layout", help="print what a C++ header declares, as a memory map")
    read.add_argument("header", type=Path, help="a file with GENERATE_SOA_LAYOUT(...)")
    read.add_argument("--name", help="which of its layouts")
    read.add_argument("--rows", type=int, help="the row count of the map")
    for what, kind, text in (
        ("types", _assignment, "dtypes of types that stand elsewhere, such as PixelId=uint32"),
        ("constants", _constant, "likewise, such as kN=71"),
    ):
        read.add_argument(
            f"--{what}", type=kind, nargs="+", default=(), metavar="NAME=VALUE", help=text
        )
    read.add_argument("--json", action="store_true", help="print layout.to_json() instead")
    write = commands.add_parser("header", help="print a layout as a C++ header")
    write.add_argument("layout", type=Path, help="a file that holds to_json() of layout or blocks")
    write.add_argument("--name", required=True, help="of the struct")
    run = commands.add_parser("demo", help="tensors of both frameworks over one buffer")
    run.add_argument("--rows", type=int, default=100_000, help="of the made-up events")
    run.add_argument("--root", type=Path, help="read the columns from this ROOT file instead")
    run.add_argument("--tree", help="the tree in it")
    run.add_argument(
        "--columns", nargs="+", help="its branches, separated by spaces; lists are flattened"
    )
    test = commands.add_parser("selftest", help="try the promises on this machine")
    test.add_argument("--device", default="cpu", help="cpu, or a device such as cuda:0")
    known = version_of("soaview") or "(not installed)"  # a checkout on Python's path
    parser.add_argument("--version", action="version", version=f"soaview {known}")
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # of names and drawings that it cannot write
    try:
        if options.command == "selftest":
            return int(selftest(options.device) > 0)
        if options.command == "describe":
            layout = read_json(options.layout, Layout.from_dict)
            print(layout.describe(options.rows))
            if options.svg:
                options.svg.write_text(layout.to_svg(options.rows), encoding="utf-8")
        elif options.command == "header":
            print(read_json(options.layout, told).to_cpp(options.name), end="")
        elif options.command == "layout":
            types, constants = dict(options.types), dict(options.constants)
            layout = read_header(options.header, options.name, types, constants)
            if options.rows is None and not options.json:
                raise ValueError("--rows N gives the memory map, --json the layout")
            print(layout.to_json() if options.json else layout.describe(options.rows))
        elif options.root and options.tree and options.columns:
            demo(*from_root(options.root, options.tree, options.columns))
        elif options.root or options.tree or options.columns:
            raise ValueError("--root FILE, --tree NAME and --columns A B ... go together")
        else:
            demo(*made_up_events(options.rows))
    except (OSError, ImportError, KeyError, TypeError, ValueError, MemoryError) as error:
        said = str(error.args[0] if len(error.args) == 1 else error)
        parser.exit(2, f"{parser.prog}: {' '.join(said.split())}\n")
    return 0


def read_json(path: Path, made: Callable[[Any], Any]) -> Any:
    """What is made of the JSON in a file."""
    with path.open("rb") as file:
        text = file.read(MAX_BYTES + 1)
    try:
        return made(parse_json(text, MAX_BYTES))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def told(description: Any) -> Layout | Blocks:
    """The layout, or the blocks, that are described."""
    blocks = isinstance(description, dict) and "blocks" in description
    return (Blocks if blocks else Layout).from_dict(description)


def _assignment(text: str) -> tuple[str, str]:
    """A name and what it stands for, `NAME=WHAT`."""
    name, equals, what = text.partition("=")
    if not (name and equals and what):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r:.60}")
    return name, what


def _constant(text: str) -> tuple[str, int]:
    name, value = _assignment(text)
    try:
        return name, int(value, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{name!r:.60} is no integer: {value!r:.60}") from None


def read_header(
    path: Path, name: str | None, types: dict[str, Any], constants: dict[str, int]
) -> Layout:
    """The layout of that name in a C++ header."""
    with path.open(encoding="utf-8", errors="replace") as file:  # comments may be in any
        text = file.read(MAX_TEXT + 1)
    try:
        return Layout.from_cpp(text, name=name, types=types, constants=constants)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def made_up_events(rows: int) -> tuple[SoA, Spec]:
    """Tracks as a reconstruction would leave them, and a model's inputs from them."""
    layout = Layout(
        [
            Column("pt", "float32"),
            Column("eta", "float32"),
            Column("phi", "float32"),
            Column("charge", "int8"),
            Column("state", "float32", (5,)),
            Column("covariance", "float32", (5, 5)),
            Scalar("n_tracks", "int32"),
            Scalar("field", "float32"),
        ]
    )
    soa = layout.allocate(rows)
    random = np.random.default_rng(1)
    soa["pt"][:] = random.exponential(10, rows)
    soa["eta"][:] = random.uniform(-2.5, 2.5, rows)
    soa["phi"][:] = random.uniform(-np.pi, np.pi, rows)
    soa["charge"][:] = random.choice([-1, 1], rows)
    soa["state"][:] = random.normal(size=(rows, 5))
    soa["covariance"][:] = np.eye(5) * 0.1
    soa[Value("n_tracks")][...] = rows
    soa[Value("field")][...] = 3.8
    spec = Spec(
        features=["pt", "eta", "phi"], state="state", cov="covariance", field=Value("field")
    )
    return soa, spec


def from_root(path: Path, tree: str, columns: list[str]) -> tuple[SoA, Spec]:
    """As `root_columns`, with one kind of error for whatever a damaged file raises in uproot."""
    expected = (ImportError, KeyError, MemoryError, OSError, TypeError, ValueError)
    try:
        return root_columns(path, tree, columns)
    except expected:
        raise
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def root_columns(path: Path, tree: str, columns: list[str]) -> tuple[SoA, Spec]:
    """Branches of a ROOT tree, read straight into the columns of an SoA; lists are flattened.

    A branch of arrays of one fixed size becomes a vector or matrix column.
    """
    try:
        uproot = importlib.import_module("uproot")
    except ImportError:
        raise ImportError('uproot is not installed: pip install "soaview[root]"') from None
    if len(set(columns)) < len(columns):
        raise ValueError(f"a column is named twice: {columns}")
    with uproot.open(path) as file:
        source = _named(file, "tree", tree)
        branches = {name: _named(source, "branch", name) for name in columns}
        in_place = {
            name: branch.interpretation
            for name, branch in branches.items()
            if isinstance(getattr(branch, "interpretation", None), uproot.AsDtype)
        }
        values = {n: _flattened(b) for n, b in branches.items() if n not in in_place}
        counts = {n: len(values[n]) if n in values else branches[n].num_entries for n in columns}
        if len(set(counts.values())) > 1:
            raise ValueError(f"the columns differ in length: {counts}")
        fields = [
            Column(name, values[name].dtype.newbyteorder("="), values[name].shape[1:])
            if name in values
            else Column(name, in_place[name].to_dtype.newbyteorder("="))
            for name in columns
        ]
        # Columns of one dtype become one tensor; an array in each row is one of its own.
        fields.sort(key=lambda column: (column.dtype, column.shape))
        soa = Layout(fields).allocate(counts[columns[0]])
        for field in fields:
            name = field.name
            if name in values:
                soa[name][:] = values[name]
            elif field.shape:  # whose numbers follow each other in the file, and not in the column
                soa[name][:] = branches[name].array(library="np")
            else:
                branches[name].array(in_place[name].inplace(soa[name]), library="np")
    tensors: dict[str, str | list[str]] = {f.name: f.name for f in fields if f.shape}
    for dtype in {field.dtype: None for field in fields if not field.shape}:
        named = dtype if dtype not in tensors else f"{dtype} columns"
        tensors[named] = [f.name for f in fields if f.dtype == dtype and not f.shape]
    return soa, Spec(tensors)


def _named(group: Any, what: str, name: str) -> Any:
    keys = group.keys() if hasattr(group, "keys") else []
    names = {key.partition(";")[0]: None for key in keys}
    if name not in names:
        raise KeyError(no_such(what, name, names))
    return group[name]


def _flattened(branch: Any) -> NDArray[Any]:
    """All numbers of a branch, one after another; arrays of one fixed size stay together."""
    awkward = importlib.import_module("awkward")  # uproot needs it
    array = branch.array()
    if array.fields:
        raise ValueError(f"branch {branch.name!r} holds records; name one of its members")
    fixed = isinstance(array.type.content, awkward.types.RegularType)
    numbers: NDArray[Any] = awkward.to_numpy(array if fixed else awkward.flatten(array, axis=None))
    return numbers


def demo(soa: SoA, spec: Spec) -> None:
    """Show the memory, the tensors of both frameworks over it, and what they cost."""
    print("The memory, one buffer:\n")
    print(soa.layout.describe(soa.rows))
    print(f"\nThe tensors, {spec}:")
    for framework, show in (("torch", show_torch), ("jax", show_jax)):
        try:
            importlib.import_module(framework)
        except ImportError:
            print(f'\n{framework} is not installed: pip install "soaview[{framework}]"')
        else:
            show(soa, spec)


def show_torch(soa: SoA, spec: Spec) -> None:
    """The torch half of the demo."""
    import torch

    import soaview_torch

    tensors = soaview_torch.tensors(soa, spec)
    print(f"\ntorch {torch.__version__}")
    _table(soa, spec, [t.data_ptr() for t in tensors], padded=False)
    first, target = tensors[0], views(soa, spec)[0].numpy()
    _prove("a write through the tensor is seen in the SoA", target, first, first[:1].fill_)
    weights = _weights(first.shape[1:].numel())
    w1, w2 = (torch.from_numpy(w).to(first.dtype) for w in weights)

    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x.reshape(len(x), len(w1)) @ w1) @ w2

    if first.is_floating_point():
        with torch.inference_mode():
            _agree(model(first).numpy(), _model(target, weights))
    columns = _columns(soa, spec)
    _cost(
        soa,
        lambda tensor: (tensor.data_ptr(), tensor.nbytes),
        {
            "soaview_torch.tensors": lambda: soaview_torch.tensors(soa, spec),
            "stack columns, torch.from_numpy": lambda: [
                torch.from_numpy(np.stack(c, 1)) for c in columns
            ],
        },
    )


def show_jax(soa: SoA, spec: Spec) -> None:
    """The JAX half of the demo."""
    import jax

    import soaview_jax

    with jax.enable_x64(True):
        arrays = soaview_jax.arrays(soa, spec, padded=True)
        print(f"\njax {jax.__version__}, padded rows: dense, hence zero-copy at every row count")
        _table(soa, spec, [array.unsafe_buffer_pointer() for array in arrays], padded=True)
        first, target = arrays[0], views(soa, spec)[0].numpy()
        _prove("a write into the SoA is seen in the array", target, first, target[:1].fill)
        weights = _weights(int(np.prod(first.shape[1:])))

        @jax.jit
        def model(x: jax.Array) -> jax.Array:
            w1, w2 = (jax.numpy.asarray(w, x.dtype) for w in weights)
            return jax.nn.relu(x.reshape(len(x), len(w1)) @ w1) @ w2

        if jax.numpy.issubdtype(first.dtype, jax.numpy.floating):
            _agree(np.asarray(model(first))[: soa.rows], _model(target, weights))
        columns = _columns(soa, spec)
        _cost(
            soa,
            lambda array: (array.unsafe_buffer_pointer(), array.nbytes),
            {
                "soaview_jax.arrays": lambda: soaview_jax.arrays(soa, spec, padded=True),
                "stack columns, jax.numpy.array": lambda: [
                    jax.numpy.array(np.stack(c, 1)).block_until_ready() for c in columns
                ],
            },
        )


def _table(soa: SoA, spec: Spec, addresses: list[int], padded: bool) -> None:
    base = soa.buffer.address
    print(f"  the buffer is at {base:#x}")
    for view, address in zip(views(soa, spec, padded=padded), addresses, strict=True):
        same = "the SoA's own memory" if address == view.address else "A COPY"
        print(
            f"  {view.name:12s} {view.dtype_name:8s} address {address:#x} shape {view.shape} "
            f"strides {view.strides}: {'empty' if 0 in view.shape else same}"
        )


def _prove(claim: str, target: NDArray[Any], tensor: Any, write: Callable[[int], Any]) -> None:
    if not target.size:
        return
    before = target[:1].copy()
    write(0 if before.any() else 1)
    same = bool((target[:1] != before).any()) and bool((np.asarray(tensor[:1]) == target[:1]).all())
    target[:1] = before
    print(f"  {claim}: {'yes' if same else 'NO'}")


def _weights(inputs: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    random = np.random.default_rng(2)
    return (
        random.normal(size=(inputs, 16), scale=0.1).astype(np.float32),
        random.normal(size=(16, 1), scale=0.1).astype(np.float32),
    )


def _model(x: NDArray[Any], weights: tuple[NDArray[Any], NDArray[Any]]) -> NDArray[Any]:
    w1, w2 = weights
    result: NDArray[Any] = np.maximum(x.reshape(len(x), len(w1)).astype(float) @ w1, 0) @ w2
    return result


def _agree(got: NDArray[Any], expected: NDArray[Any]) -> None:
    scale = max(float(np.abs(expected).max(initial=0)), 1.0)
    error = float(np.abs(got - expected).max(initial=0)) / scale
    print(f"  a small model on the first tensor: relative difference to NumPy {error:.1e}")


def _columns(soa: SoA, spec: Spec) -> list[list[NDArray[Any]]]:
    """Each tensor's columns as the separate arrays that somebody would stack."""
    tables = [soa[entry] for entry in spec.values() if not isinstance(entry, Value)]
    tables = [table.reshape(len(table), int(np.prod(table.shape[1:]))) for table in tables]
    return [[*np.ascontiguousarray(table.T)] for table in tables]


def _cost(
    soa: SoA,
    where: Callable[[Any], tuple[int, int]],
    ways: dict[str, Callable[[], list[Any]]],
) -> None:
    """Time the ways, one after another in every round, and count what lies outside the SoA."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    copied = dict.fromkeys(ways, 0)
    memory = range(soa.buffer.address, soa.buffer.address + soa.buffer.nbytes)
    for _ in range(11):
        for name, way in ways.items():
            begin = time.perf_counter()
            made = way()
            times[name].append(time.perf_counter() - begin)
            places = [where(tensor) for tensor in made]
            copied[name] = sum(n for address, n in places if address not in memory)
    for name in ways:
        median = statistics.median(times[name]) * 1e6
        print(f"  {name:32s} {median:10.1f} us   {copied[name]:12,d} bytes copied")


if __name__ == "__main__":
    sys.exit(main())
