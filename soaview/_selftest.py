"""The promises, tried on this machine: `python -m soaview selftest`."""

from __future__ import annotations

import gc
import importlib
import mmap
import platform
import re
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import Column, Layout, Scalar, SoA, Spec, Value, explain, views
from ._dtypes import ITEMSIZE, numpy_dtype

ROWS = (0, 1, 32, 33, 1000)
XY = Layout([Column("x", "float32"), Column("y", "float32"), Column("sum", "float32")])


@dataclass
class Way:
    """An adapter under test.

    Attributes:
        name: what the report calls it.
        package: the adapter.
        take: its tensors of an SoA and a spec, with `copy=`.
        address: of a tensor's first element.
        numpy: a tensor's values, on the host.
        made: a tensor of NumPy's values, where the SoAs are.
        there: an SoA like this one, in the memory under test.
        rows: counts to try; XLA compiles for each, where it copies on a device.
        settings: what is switched on meanwhile.
    """

    name: str
    package: Any
    take: Callable[..., list[Any]]
    address: Callable[[Any], int]
    numpy: Callable[[Any], NDArray[Any]]
    made: Callable[[NDArray[Any]], Any]
    there: Callable[[SoA], SoA]
    rows: tuple[int, ...] = ROWS
    settings: Callable[[], AbstractContextManager[Any]] = nullcontext


def layout_of(dtype: str) -> Layout:
    """Each kind of field."""
    columns = [Column("x", dtype), Column("y", dtype), Column("v", dtype, (3,))]
    columns += [Column("m", dtype, (2, 3)), Column("i", dtype, (3,), interleaved=True)]
    return Layout([*columns, Scalar("n", dtype), Scalar("a", dtype, (3,))])


SPEC = Spec(x="x", xy=["x", "y"], yx=["y", "x"], v="v", m="m", i="i", each="n", n=Value("n"))


def filled(layout: Layout, rows: int) -> SoA:
    """Other values in every place."""
    soa = layout.allocate(rows)
    for number, field in enumerate(layout.fields):
        column = soa[field.name if field.per_row else Value(field.name)]
        column[...] = (np.arange(column.size).reshape(column.shape) + 7 * number) % 97
    return soa


def dtypes() -> Iterator[str]:
    """Those that NumPy has here: bfloat16 comes with JAX."""
    for dtype in ITEMSIZE:
        try:
            numpy_dtype(dtype)
        except TypeError:
            continue
        yield dtype


def expected(soa: SoA, spec: Spec) -> list[NDArray[Any]]:
    """By NumPy, column by column."""
    found = []
    for entry in spec.values():
        if isinstance(entry, list | tuple):
            found.append(np.stack([soa[name] for name in entry], axis=1))
        else:
            found.append(np.array(soa[entry]))
    return found


def check(holds: object, what: object = "") -> None:
    """As `assert`, which Python leaves out where it is told to optimize."""
    if not holds:
        raise AssertionError(what)


def reads_every_dtype(way: Way) -> None:
    """Every dtype, kind of field and row count is read right."""
    for dtype in dtypes():
        for rows in way.rows:
            soa = filled(layout_of(dtype), rows)
            for tensor, wanted in zip(
                way.take(way.there(soa), SPEC, copy=None), expected(soa, SPEC), strict=True
            ):
                check(tuple(tensor.shape) == wanted.shape, (dtype, rows))
                check(np.array_equal(way.numpy(tensor), wanted), (dtype, rows))


def aliases(way: Way) -> None:
    """A view lies where the columns do, and sees what is written into them."""
    soa = way.there(filled(XY, 1024))
    [found] = way.take(soa, Spec(t=["x", "y"]))
    check(way.address(found) == views(soa, Spec(t=["x", "y"]))[0].address)
    way.package.write(soa, Spec(x="x"), [way.made(np.full(1024, 3, "f4"))])
    check((way.numpy(found)[:, 0] == 3).all())


def copies_nothing_in_silence(way: Way) -> None:
    """`explain` says which tensors are views, and that is what happens."""
    for dtype in ("float32", "float64", "uint8"):
        for rows in way.rows:
            soa = way.there(filled(layout_of(dtype), rows))
            told = [said for said in explain(soa, SPEC).verdicts if said.way == way.name]
            check(len(told) == len(SPEC), f"explain has {len(told)} verdicts, {len(SPEC)} tensors")
            for said in told:
                one = SPEC.subset(said.tensor)
                try:
                    [found] = way.take(soa, one)
                except BufferError:
                    check(said.gives == "copy", said)
                else:
                    check(said.gives == "view", said)
                    lies = 0 in found.shape or way.address(found) == views(soa, one)[0].address
                    check(lies, said)


def outlives(way: Way) -> None:
    """A view keeps the memory, when the SoA and its source are gone."""
    soa = way.there(filled(XY, 1000))
    [found] = way.take(soa, Spec(x="y"))
    wanted = way.numpy(found).copy()
    del soa
    gc.collect()
    other = [way.there(filled(XY, 1000)) for _ in range(8)]
    check((way.numpy(found) == wanted).all())
    del other


def runs_a_model(way: Way) -> None:
    """`forward` writes a model's results into the columns, whole and in batches."""
    for batch_size in (None, 300):
        soa = way.there(filled(XY, 1000))
        pairs = (soa, Spec(x="x", y="y")), (soa, Spec(s="sum"))
        way.package.forward(lambda x, y: x + y, *pairs, batch_size=batch_size)
        x, y, s = map(way.numpy, way.take(soa, Spec(x="x", y="y", s="sum")))
        check((s == x + y).all())
        check(s.any())


def host_memory(way: Way) -> None:
    """Arrays, bytes, mapped files and shared memory; what is read-only is never written."""
    rows, wanted = 1024, filled(XY, 1024)
    content = wanted.buffer.root.tobytes()
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        shared = SharedMemory(create=True, size=len(content))
        try:
            there: memoryview = shared.buf  # type: ignore[assignment]
            there[: len(content)] = content
            mapped = mmap.mmap(file.fileno(), len(content))
            for memory in (bytearray(content), np.frombuffer(content, "u1"), mapped, there):
                soa = XY.wrap(memory, rows)
                [found] = way.take(soa, Spec(t=["x", "y"]), copy=None)
                check(np.array_equal(way.numpy(found), expected(wanted, Spec(t=["x", "y"]))[0]))
                if soa.readonly:
                    try:
                        way.package.write(soa, Spec(x="x"), [way.made(np.zeros(rows, "f4"))])
                    except BufferError:
                        continue
                    raise AssertionError("read-only memory was written")
            del soa, found, memory, there
            for closed in (mapped.close, shared.close):
                _eventually(closed)
        finally:
            shared.unlink()


def _eventually(close: Callable[[], None]) -> None:
    """JAX lets go of memory in a thread of its own."""
    for _ in range(100):
        gc.collect()
        try:
            return close()
        except BufferError:
            time.sleep(0.05)
    close()
    return None


def inside_jit(way: Way) -> None:
    """The SoA is an argument of `jit`: its arrays are cut inside, and `update` gives another."""
    jax = importlib.import_module("jax")
    for rows in (1, 33, 1000):
        soa = filled(XY, rows)

        def changed(soa: SoA) -> SoA:
            y, x = way.package.arrays(soa, Spec(t=["y", "x"]))[0].T
            return way.package.update(soa, Spec(s="sum"), [x * y])  # type: ignore[no-any-return]

        made = jax.device_get(jax.jit(changed)(way.there(soa)))
        check(np.array_equal(made["sum"], soa["x"] * soa["y"]))
        check(not np.array_equal(soa["sum"], made["sum"]))


def one_buffer_for_both(jax_way: Way, torch_way: Way) -> None:
    """What torch has just queued is what JAX reads: over one SoA, with no copy between."""
    soa = torch_way.there(filled(XY, 1 << 20))
    for number in range(1, 6):
        [x] = torch_way.take(soa, Spec(x="x"))
        x.fill_(number)
        [same] = jax_way.take(soa, Spec(x="x"))
        check((jax_way.numpy(same) == number).all())


def speed(way: Way) -> str:
    """Of a view, against a stack of its columns: the ratio of medians, interleaved."""
    soa = way.there(filled(XY, 1 << 20))
    spec = Spec(t=["x", "y"])
    columns = [way.numpy(t).copy() for t in way.take(soa, Spec(x="x", y="y"))]
    calls: dict[str, Callable[[], Any]] = {
        "view": lambda: way.take(soa, spec),
        "stack": lambda: way.made(np.stack(columns, axis=1)),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(9):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
    ratio = statistics.median(times["stack"]) / statistics.median(times["view"])
    return f"A view of two columns of {1 << 20:,} rows is {ratio:,.0f} times as fast as np.stack."


def torch_way(device: str) -> Way:
    """Torch's adapter."""
    torch, package = map(importlib.import_module, ("torch", "soaview_torch"))
    there = torch.zeros(1, device=device).device  # raises where there is none
    wide = {torch.bfloat16: torch.float32}

    def numpy(tensor: Any) -> NDArray[Any]:
        return tensor.to(wide.get(tensor.dtype, tensor.dtype)).cpu().numpy()  # type: ignore[no-any-return]

    return Way(
        "torch",
        package,
        package.tensors,
        torch.Tensor.data_ptr,
        numpy,
        lambda array: torch.from_numpy(array).to(there),
        lambda soa: soa if device == "cpu" else package.to(soa, there),
    )


def jax_way(device: str) -> Way:
    """JAX's adapter, over torch's memory where there is a device."""
    jax, package = map(importlib.import_module, ("jax", "soaview_jax"))
    where = jax.devices(None if device == "cpu" else "gpu")[0]

    def there(soa: SoA) -> SoA:
        if device == "cpu":
            return soa
        return torch_way(device).there(soa)

    @contextmanager
    def settings() -> Iterator[None]:  # where JAX runs functions as they are, what copies differs
        plain = jax.disable_jit(False), jax.debug_nans(False), jax.debug_infs(False)
        with jax.enable_x64(True), plain[0], plain[1], plain[2]:
            yield

    return Way(
        "JAX",
        package,
        package.arrays,
        lambda array: array.unsafe_buffer_pointer(),
        np.asarray,
        lambda array: jax.device_put(array, where),
        there,
        ROWS if device == "cpu" else (33,),
        settings,
    )


def numpy_way() -> Way:
    """NumPy over the views themselves, which is on the host alone."""

    def take(soa: SoA, spec: Spec, copy: bool | None = False) -> list[Any]:
        if copy is None:
            return expected(soa, spec)
        return [view.numpy() for view in views(soa, spec)]

    address = np.ndarray.__array_interface__.__get__
    return Way(
        "NumPy", None, take, lambda array: address(array)["data"][0], np.asarray, np.array, _same
    )


def _same(soa: SoA) -> SoA:
    return soa


EVERYWHERE = [reads_every_dtype, copies_nothing_in_silence, outlives]
WITH_AN_ADAPTER = [*EVERYWHERE, aliases, runs_a_model, speed]


def ways(device: str) -> tuple[list[Way], list[str]]:
    """What can be tried there, and in words what cannot.

    Raises:
        ValueError: a device that torch, whose memory is looked at there, does not see.
    """
    if re.fullmatch(r"cpu|(cuda|rocm)(:\d+)?", device) is None:
        raise ValueError(f"--device is cpu, or one such as cuda:0, got {device!r:.60}")
    found, notes = [numpy_way()] if device == "cpu" else [], []
    for framework, make in (("torch", torch_way), ("jax", jax_way)):
        if version_of(framework) is None:
            hint = f'pip install "soaview[{framework}]"'
            notes.append(f"{framework} is not installed, and not tried: {hint}")
            continue
        try:
            found.append(make(device))
        except (AssertionError, RuntimeError) as error:  # as torch and JAX say it
            if framework == "torch":
                raise ValueError(f"--device {device}: {error}") from None
            notes.append(f"{framework} has no such device, and is not tried: {error}")
    if device != "cpu" and not any(way.name == "torch" for way in found):
        raise ValueError(f"--device {device} needs torch, whose memory is looked at there")
    return found, notes


def claims(way: Way, device: str) -> list[Callable[[Way], str | None]]:
    """What is tried of it. The first line of each docstring is the promise."""
    if way.package is None:
        return [*EVERYWHERE]
    more = [host_memory] if device == "cpu" else []
    return [*WITH_AN_ADAPTER, *more, *([inside_jit] if way.name == "JAX" else [])]


def version_of(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def selftest(device: str = "cpu") -> int:
    """Try everything, print a line for each promise, and return how many are broken."""
    found, notes = ways(device)
    names = ("soaview", "numpy", "torch", "jax", "jaxlib", "ml_dtypes", "cupy")
    there = ", ".join(f"{name} {known}" for name in names if (known := version_of(name)))
    print(f"{there}\nPython {platform.python_version()}, {platform.platform()}")
    if device != "cpu":
        torch = importlib.import_module("torch")
        print(f"{device}: {torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}")
    print(*notes, "Whoever reports a fault pastes all of this.\n", sep="\n", flush=True)
    held = [_holds(way, claim) for way in found for claim in claims(way, device)]
    both = [way for way in found if way.package is not None]
    if len(both) == 2:
        held.append(_holds(both[1], one_buffer_for_both, both[0]))
    broken = held.count(False)
    print(f"\n{broken} of {len(held)} promises are broken." if broken else "\nAll promises hold.")
    return broken


def _holds(way: Way, claim: Callable[..., str | None], *others: Way) -> bool:
    text = (claim.__doc__ or "").partition("\n")[0]
    try:
        with way.settings():
            text = claim(way, *others) or text
    except Exception as error:  # whatever it is, the promise does not hold
        frame = traceback.extract_tb(error.__traceback__)[-1]
        what = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        print(f"BROKEN  {way.name}: {text}\n        {what} ({frame.name}, line {frame.lineno})")
        return False
    print(f"HOLDS   {way.name}: {text}", flush=True)
    return True
