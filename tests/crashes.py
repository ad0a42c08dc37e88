"""What could end a process without a word, each for a process of its own.

`python crashes.py NAME ADAPTER` runs one, guarded as users are, and prints `end` last. With
`unguarded` as a third argument soaview's guard is taken out before: then the process is expected to
die of what the guard is for, or at least not to come to its end. `python crashes.py serve ADAPTER`
runs those that its standard input names, each in a process forked for it, and tells how it ended.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import importlib
import json
import mmap
import os
import signal
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from multiprocessing import shared_memory
from typing import Any

import adapters
import numpy as np
import places

import soaview._buffer
import soaview._host
import soaview._soa
import soaview._views
from soaview import Column, Layout, Scalar, SoA, Spec, Value, View

LAYOUT = Layout([Column("x", "float32"), Column("y", "float32"), Scalar("n", "int32")])
ROWS = 1 << 20  # so many that the C library gives freed memory back at once
NBYTES = LAYOUT.nbytes(ROWS)
SPEC = Spec(x="x")

SCENARIOS: dict[str, tuple[Callable[[Any], None], tuple[str, ...], Callable[[], None] | None]] = {}
"""By name: the scenario, its adapters, and what takes the guard out, if one of ours is in it."""


def scenario(
    *names: str, unguarded: Callable[[], None] | None = None
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    def add(run: Callable[[Any], None]) -> Callable[[Any], None]:
        SCENARIOS[run.__name__] = run, names, unguarded
        return run

    return add


@contextmanager
def refused(error: type[Exception], word: str) -> Any:
    """The guard must say no, by this error; where it does not, what comes next shows why."""
    try:
        yield
    except error as found:
        if word not in str(found):
            raise


def read(tensor: Any) -> float:
    """Follow the addresses of all elements, and allocate nothing where they may have been."""
    return float(tensor.sum() if hasattr(tensor, "untyped_storage") else np.asarray(tensor).sum())


def mapped(access: int = mmap.ACCESS_WRITE) -> mmap.mmap:
    """A file of zeros."""
    with tempfile.TemporaryFile() as file:
        file.truncate(NBYTES)
        return mmap.mmap(file.fileno(), NBYTES, access=access)


# Memory that goes away


def only_point() -> None:
    """Let NumPy point at a buffer and not hold its export, as `np.ndarray(buffer=...)` does."""

    def pointed(owner: Any, asked: Any) -> Any:
        return np.ndarray(memoryview(owner).nbytes, np.uint8, owner)

    soaview._host._exported = pointed
    soaview._buffer.holding_the_export = lambda root: root


def use_after(adapter: Any, owner: Any, end: Callable[[], object]) -> None:
    [x] = adapter.tensors(LAYOUT.wrap(owner, ROWS), SPEC)
    gc.collect()
    with refused(BufferError, "export"):
        end()
    assert read(x) == 0
    del x
    assert places.soon(lambda: places.unheld(end))


@scenario("numpy", "torch", "jax", unguarded=only_point)
def closed_mapping(adapter: Any) -> None:
    """An mmap that is closed under its views."""
    memory = mapped()
    use_after(adapter, memory, memory.close)


@scenario("numpy", "torch", "jax", unguarded=only_point)
def shrunk_mapping(adapter: Any) -> None:
    """An mmap that is resized under its views."""
    memory = mapped()
    use_after(adapter, memory, lambda: memory.resize(mmap.PAGESIZE))


@scenario("numpy", "torch", "jax", unguarded=only_point)
def emptied_bytearray(adapter: Any) -> None:
    """A bytearray that gives its memory back under its views, wrapped or pointed at by NumPy."""
    memory = bytearray(NBYTES + 64)
    if adapter.writable:
        return use_after(adapter, memory, memory.clear)
    start = -np.frombuffer(memory, np.uint8).ctypes.data % 64
    pointed = np.ndarray(NBYTES, np.uint8, memory, start)
    return use_after(adapter, pointed, memory.clear)


@scenario("numpy", "torch", "jax", unguarded=only_point)
def closed_shared_memory(adapter: Any) -> None:
    """Shared memory that is closed under its views."""
    memory = shared_memory.SharedMemory(create=True, size=NBYTES)
    memory.unlink()
    use_after(adapter, memory, memory.close)


def hold_nothing() -> None:
    """Let what a pointer points at go."""
    right = Layout.from_pointer

    def pointed(self: Layout, *numbers: Any, owner: object, **options: Any) -> Any:
        return right(self, *numbers, **options)

    Layout.from_pointer = pointed


@scenario("numpy", "torch", "jax", unguarded=hold_nothing)
def freed_owner(adapter: Any) -> None:
    """The last name of a pointer's owner goes, and the views stay."""
    memory = mmap.mmap(-1, NBYTES)
    array = np.frombuffer(memory, np.uint8)
    address = array.ctypes.data
    [x] = adapter.tensors(LAYOUT.from_pointer(address, ROWS, device="cpu", owner=array), SPEC)
    del memory, array
    gc.collect()
    assert read(x) == 0


# Memory that may not be written


def read_only() -> Any:
    return LAYOUT.wrap(mapped(mmap.ACCESS_READ), ROWS)


def call_it_writable() -> None:
    soaview._buffer.HostBuffer.readonly = False  # type: ignore[assignment, method-assign]


@scenario("torch", unguarded=call_it_writable)
def tensors_of_a_read_only_mapping(adapter: Any) -> None:
    """A tensor of read-only memory that is written."""
    soa = read_only()
    with refused(BufferError, "read-only"):
        adapter.tensors(soa, SPEC)[0].fill_(1)
    for copy in (None, True):
        adapter.tensors(soa, SPEC, copy=copy)[0].fill_(1)
    assert not soa["x"].any()


@scenario("numpy", "torch", "jax", unguarded=call_it_writable)
def written_read_only_mapping(adapter: Any) -> None:
    """`write` into read-only memory."""
    soa = read_only()
    given = adapter.from_numpy(np.ones(ROWS, np.float32))
    with refused(BufferError, "read-only"):
        adapter.write(soa, SPEC, [given])
    assert not soa["x"].any()


def import_by_copy_true() -> None:
    """JAX's own importer says `copy=True`, and gives an alias that XLA takes for its own."""
    import jax

    right = jax.dlpack.from_dlpack
    jax.dlpack.from_dlpack = lambda array, copy: right(array, copy=True)


@scenario("jax", unguarded=import_by_copy_true)
def donated_read_only_mapping(adapter: Any) -> None:
    """An array of read-only memory is donated, for XLA to write its result there."""
    add = adapter.jax.jit(lambda x: x + 1, donate_argnums=0)
    soa = read_only()
    for copy in (False, None, True):
        for spec in (SPEC, Spec(xy=["x", "y"])):
            add(adapter.tensors(soa, spec, copy=copy)[0]).block_until_ready()
    for given in (soa, adapter.jax.device_put(soa), soa[:512]):
        for _ in range(3):
            given = adapter.jax.block_until_ready(
                adapter.jax.jit(
                    lambda s: adapter.adapter.update(s, SPEC, [s_x(adapter, s) + 1]),
                    donate_argnums=0,
                )(given)
            )
        assert given["x"][0] == 3
    assert not soa["x"].any()


def s_x(adapter: Any, soa: Any) -> Any:
    return adapter.adapter.arrays(soa, SPEC)[0]


# Views that reach too far


def open_the_gate() -> None:
    soaview._views.check_bounds = lambda views, nbytes: None


@scenario("numpy", "torch", "jax", unguarded=open_the_gate)
def beyond_the_buffer(adapter: Any) -> None:
    """A layout whose arithmetic were wrong, at a row count that the memory does not have."""
    soa = LAYOUT.allocate(ROWS)
    soa = SoA(LAYOUT, soa.buffer, 1 << 40, 0, 1 << 40)
    with refused(ValueError, "do not lie inside the buffer"):
        read(adapter.tensors(soa, SPEC)[0])
        raise AssertionError("a view beyond the buffer")


@scenario("numpy", "torch", unguarded=open_the_gate)
def strides_that_wrap(adapter: Any) -> None:
    """A stride that NumPy's own check takes for 0, for it counts modulo 2**64."""
    buffer = LAYOUT.allocate(ROWS).buffer
    with refused(ValueError, "do not lie inside the buffer"):
        view = View("x", "uint8", 1, (9,), (2**62,), 0, buffer)
        read(from_dlpack(adapter, view))
        raise AssertionError("a view beyond the buffer")


@scenario("torch", unguarded=open_the_gate)
def negative_strides(adapter: Any) -> None:
    """Torch's importer aborts on a negative stride, and no `except` catches that."""
    buffer = LAYOUT.allocate(ROWS).buffer
    with refused(ValueError, "do not lie inside the buffer"):
        from_dlpack(adapter, View("x", "float32", 4, (3,), (-1,), 2, buffer))


def round_addresses() -> None:
    right = soaview._buffer.address_of
    soaview._buffer.address_of = lambda array: right(array) // 16 * 16


@scenario("torch", unguarded=round_addresses)
def misaligned_complex128(adapter: Any) -> None:
    """Torch crashes on complex128 that does not start on a multiple of 16; NumPy asks for 8."""
    layout = Layout([Column("z", "complex128")])
    memory = bytearray(layout.nbytes(33) + 8)
    with refused(BufferError, "8 bytes past a multiple of 16"):
        layout.wrap(memoryview(memory)[:-8], 33)  # a bytearray starts on such a multiple
        adapter.tensors(layout.wrap(memoryview(memory)[8:], 33), Spec(z="z"))[0].fill_(1)


def from_dlpack(adapter: Any, view: View) -> Any:
    return adapter.torch.from_dlpack(view) if hasattr(adapter, "torch") else np.from_dlpack(view)


@scenario("numpy", "torch", "jax")
def more_elements_than_numbers(adapter: Any) -> None:
    """A scalar for each of so many rows that their number is beyond int64: no abort."""
    layout = Layout([Scalar("n", "int32"), Scalar("m", "int32")])
    for rows in (2**31 + 1, 2**61, 2**62, 2**63 - 1):
        soa = layout.wrap(bytearray(256), rows)
        for entry in ("n", ["n"], ["n", "m"], Value("n")):
            for copy in (False, None) if rows > 2**40 else (False,):
                try:
                    [x] = adapter.tensors(soa, Spec(x=entry), copy=copy)
                except (MemoryError, ValueError, BufferError, RuntimeError):
                    continue
                assert x.shape[:1] in ((), (rows,))


# Capsules, and objects that lie


def take_their_word() -> None:
    soaview._host._exported = lambda owner, asked: np.asarray(owner)


@scenario("numpy", unguarded=take_their_word)
def an_address_without_memory(adapter: Any) -> None:
    """`__array_interface__` of an object that has no memory."""

    class Liar:
        __array_interface__ = {  # noqa: RUF012 - the protocol wants a dict
            "data": (4096, False),
            "shape": (NBYTES,),
            "typestr": "|u1",
            "version": 3,
        }

    with refused(TypeError, "cannot wrap Liar"):
        read(adapter.tensors(LAYOUT.wrap(Liar(), ROWS), SPEC)[0])


def import_directly() -> None:
    global first_by_numpy
    first_by_numpy = False


first_by_numpy = True


@scenario("jax", unguarded=import_directly)
def no_deleter(adapter: Any) -> None:
    """A capsule without a deleter, which is legal: JAX's importer calls it when it is freed."""
    from test_device import Producer

    memory = np.zeros(NBYTES + 64, np.uint8)
    address = memory.ctypes.data
    version = (1, 0) if first_by_numpy else None
    producer = Producer((NBYTES,), device=(1, 0), address=address + -address % 64, version=version)
    given = LAYOUT.wrap(producer, ROWS) if first_by_numpy else None
    x = adapter.tensors(given, SPEC)[0] if given else adapter.jax.dlpack.from_dlpack(producer)
    assert read(x) == 0
    del x, given
    gc.collect()


# The end of the process, and its children


@scenario("numpy", "torch", "jax")
def views_at_exit(adapter: Any) -> None:
    """Views in a global, in a cycle, in another module, in a capsule nobody took, and running."""
    global kept
    soa = LAYOUT.wrap(mmap.mmap(-1, NBYTES), ROWS)
    kept = adapter.tensors(soa, SPEC), soa
    cycle: list[Any] = [adapter.tensors(soa, SPEC)]
    cycle.append(cycle)
    sys.modules["os"].kept = adapter.tensors(soa, SPEC)  # type: ignore[attr-defined]
    weakref.finalize(soa, print, "finalized").atexit = False
    soaview._views.kept = View("x", "float32", 4, (9,), (1,), 0, soa.buffer).__dlpack__()
    if hasattr(adapter, "jax"):
        kept += (adapter.jax.jit(lambda s: s_x(adapter, s) * 2)(soa),)


@scenario("numpy", "torch")
def forked(adapter: Any) -> None:
    """A child by `fork` reads, writes and frees its own copy of the memory."""
    soa = LAYOUT.wrap(mmap.mmap(-1, NBYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), ROWS)
    soa["x"][:] = 1
    [x] = adapter.tensors(soa, SPEC)
    child = os.fork()
    if not child:
        faulthandler.dump_traceback_later(30, exit=True)  # the watchdog
        assert float(x[5]) == 1
        x[5] = 7
        [again] = adapter.tensors(soa, SPEC)
        assert float(again[5]) == 7
        adapter.write(soa[:3], SPEC, [adapter.from_numpy(np.zeros(3, np.float32))])
        del x, again, soa
        gc.collect()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read(x) == ROWS


@scenario("numpy", unguarded=lambda: ctypes.string_at(16))
def nothing(adapter: Any) -> None:
    """What dies is seen to die."""


def all_scenarios() -> dict[str, Any]:
    """With those of bound columns."""
    importlib.import_module("crashes_bound")
    return SCENARIOS


def serve(adapter: str) -> list[str] | None:
    """What a child is to run; None at the end of what was asked.

    Imported is the framework alone, for guards are taken out before its adapter is imported. It
    has started no thread, so that a child is as good as a process of its own.
    """
    if adapter != "numpy":
        importlib.import_module(adapter)
    assert len(os.listdir("/proc/self/task")) == 1
    for line in sys.stdin:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            with warnings.catch_warnings(action="ignore"):  # of JAX, about the threads it may have
                child = os.fork()
            if not child:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                return json.loads(line)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said = [os.pread(file.fileno(), 1 << 20, 0).decode() for file in (out, err)]
        print(json.dumps([code, *said]), flush=True)
    return None


def main(name: str, adapter: str, *mode: str) -> None:
    signal.alarm(120)
    run, _, unguarded = all_scenarios()[name]
    if mode == ("unguarded",):
        unguarded()
    found = adapters.load(adapter)
    with found.settings():
        run(found)
    print("end", flush=True)


if __name__ == "__main__":
    sys.modules["crashes"] = sys.modules["__main__"]  # for those who add scenarios
    asked = serve(sys.argv[2]) if sys.argv[1] == "serve" else sys.argv[1:]
    if asked:
        main(*asked)
