"""What could end a process without a word, of bound columns: scenarios as `crashes.py` has them."""

from __future__ import annotations

import ctypes
import gc
import itertools
import mmap
from collections.abc import Callable
from multiprocessing import shared_memory
from typing import Any

import numpy as np
from crashes import NBYTES, ROWS, read, refused, scenario

import soaview._extents
from soaview import Spec, bind
from soaview._host import address_of

X = Spec(x="x")
PAGE = mmap.PAGESIZE


def point_only() -> None:
    """Let arrays be taken as they are: nobody asked what they lie in, and nothing held."""
    soaview._extents._vouched = lambda name, base, owner, address: soaview._extents.Extent(  # type: ignore[assignment]
        *soaview._extents._span(base, address_of(base)), address, True, None
    )


def believe() -> None:
    """Let an array reach out of its owner's memory."""
    right = soaview._extents._vouched

    def vouched(*given: Any) -> Any:
        found = right(*given)
        return found._replace(first=found.first - PAGE, end=found.end + PAGE)

    soaview._extents._vouched = vouched


# Memory that goes away


def use_after(adapter: Any, array: Any, end: Callable[[], object]) -> None:
    [x] = adapter.tensors(bind({"x": array}), X)
    del array
    gc.collect()
    with refused(BufferError, "export"):
        end()
    assert read(x) == 0


def pointed(memory: Any) -> Any:
    """An array that points at memory, on a multiple of 64 bytes, and does not hold its export."""
    first = -np.frombuffer(memory, np.uint8).ctypes.data % 64
    return np.ndarray(ROWS, np.float32, memory, first)


@scenario("numpy", "torch", "jax", unguarded=point_only)
def bound_closed_mapping(adapter: Any) -> None:
    """An mmap at which bound columns were pointed is closed under their views."""
    memory = mmap.mmap(-1, NBYTES)
    use_after(adapter, pointed(memory), memory.close)


@scenario("numpy", "torch", "jax", unguarded=point_only)
def bound_shrunk_mapping(adapter: Any) -> None:
    """The same, resized."""
    memory = mmap.mmap(-1, NBYTES)
    use_after(adapter, pointed(memory), lambda: memory.resize(PAGE))


@scenario("numpy", "torch", "jax", unguarded=point_only)
def bound_emptied_bytearray(adapter: Any) -> None:
    """A bytearray gives its memory back."""
    memory = bytearray(NBYTES)
    use_after(adapter, pointed(memory), memory.clear)


@scenario("numpy", "torch", "jax", unguarded=point_only)
def bound_closed_shared_memory(adapter: Any) -> None:
    """Shared memory is closed."""
    memory = shared_memory.SharedMemory(create=True, size=NBYTES)
    memory.unlink()
    use_after(adapter, pointed(memory.buf), memory.close)
    gc.collect()  # of what a refusal's traceback still has, before the memory closes itself


@scenario("numpy", "torch", "jax", unguarded=point_only)
def bound_after_closing(adapter: Any) -> None:
    """A mapping that was closed before its columns are bound."""
    memory = mmap.mmap(-1, NBYTES)
    array = pointed(memory)
    memory.close()
    with refused(BufferError, "before it is closed"):
        read(adapter.tensors(bind({"x": array}), X)[0])
        raise AssertionError("columns of closed memory")


@scenario("numpy", "torch", "jax")
def bound_resized_array(adapter: Any) -> None:
    """NumPy's array, also as one of a loop, and torch's storage, are resized."""
    for step in (1, 2):
        array = np.zeros(ROWS, np.float32)
        [x] = adapter.tensors(bind({"x": array[::step]}), X, copy=None)
        try:
            array.resize(2 * ROWS)
        except ValueError:
            assert len(array) == ROWS
        assert read(x) == 0
    if hasattr(adapter, "torch"):
        tensor = adapter.torch.zeros(ROWS)
        [x] = adapter.tensors(bind({"x": tensor}), X)
        with refused(RuntimeError, "resizable"):
            tensor.resize_(64 * ROWS)
            raise AssertionError("a storage that was resized")
        tensor.set_()
        gc.collect()
        assert read(x) == 0


@scenario("numpy", "torch", "jax")
def bound_owners_in_every_order(adapter: Any) -> None:
    """Arrays, mappings, capsules and their views go in every order."""

    def made() -> list[Any]:
        mapping = mmap.mmap(-1, 1 << 18)
        owners = [
            np.zeros(1 << 16, "f4"),
            np.frombuffer(mapping, "f4"),
            np.zeros((2, 1 << 16), "f4"),
        ]
        soa = bind({"x": owners[0], "y": owners[1], "z": np.from_dlpack(owners[2])[1]})
        taken = [adapter.tensors(soa, Spec(t=name), copy=None)[0] for name in "xyz"]
        return [*owners, soa, *taken]

    for order in itertools.permutations(range(4)):
        held: list[Any] = made()
        for number in order:
            held[number] = None
            assert not any(read(x) for x in held[4:] if x is not None)


# Bounds: pages before and behind that nobody may touch


def guarded(nbytes: int, side: int) -> tuple[int, Any]:
    """The address of memory that ends, or begins, at a page that cannot be read."""
    libc = ctypes.CDLL(None, use_errno=True)
    memory = mmap.mmap(-1, -(-nbytes // PAGE) * PAGE + 2 * PAGE)
    size = len(memory)
    first = np.frombuffer(memory, np.uint8).ctypes.data
    for page in (first, first + size - PAGE):
        assert libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0) == 0
    at = first + PAGE if side < 0 else first + size - PAGE - nbytes
    return at, memory


class At:
    """An array interface over so much memory at an address."""

    def __init__(self, address: int, count: int, memory: Any) -> None:
        self.memory = memory
        self.__array_interface__ = {
            "data": (address, False),
            "shape": (count,),
            "typestr": "|u1",
            "version": 3,
        }


@scenario("numpy", "torch", "jax")
def bound_to_the_last_byte(adapter: Any) -> None:
    """Nothing that is done with columns touches a byte before or behind what they have."""
    rows, record = 64, np.dtype([("i", "i1"), ("x", "f4"), ("v", "f4", (3,))], align=True)
    for side in (-1, 1):
        address, memory = guarded(rows * record.itemsize, side)
        records = np.asarray(At(address, rows * record.itemsize, memory)).view(record)
        soa = bind({name: records[name] for name in record.names})
        for part in (soa, soa[1:], soa[:-1], soa[rows:], *soa.batches(17)):
            for copy in (None, True):
                for x in adapter.tensors(part, Spec(x="x", v="v", xs=["x", "x"]), copy=copy):
                    read(x)
            adapter.write(part, Spec(x="x"), [adapter.from_numpy(np.zeros(len(part), "f4"))])
            part.pack()
        if hasattr(adapter, "jax"):
            total = adapter.jax.jit(lambda s: adapter.adapter.arrays(s, Spec(x="x"))[0].sum())
            assert float(total(soa)) == 0


@scenario("numpy", "torch", "jax", unguarded=believe)
def bound_past_the_end(adapter: Any) -> None:
    """An array that reaches past what its owner has, into memory that nobody may read."""
    address, memory = guarded(4 * 64, 1)
    shown = np.asarray(At(address, 4 * 64, memory)).view("f4")
    beyond = np.lib.stride_tricks.as_strided(shown, (65,), (4,))
    with refused(BufferError, "reaches from byte 0 to 260 of its owner's 256"):
        read(adapter.tensors(bind({"x": beyond}), X, copy=None)[0])
        raise AssertionError("columns past the end")


@scenario("numpy", "torch", "jax", unguarded=believe)
def bound_before_the_start(adapter: Any) -> None:
    """The same, before its first byte."""
    address, memory = guarded(4 * 64, -1)
    shown = np.asarray(At(address, 4 * 64, memory)).view("f4")
    before = np.lib.stride_tricks.as_strided(shown, (65,), (-4,))[::-1]
    with refused(BufferError, "reaches from byte -256 to 4 of its owner's 256"):
        read(adapter.tensors(bind({"x": before}), X, copy=None)[0])
        raise AssertionError("columns before the start")
