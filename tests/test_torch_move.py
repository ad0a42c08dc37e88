"""SoAs in memory that torch makes, and moved from device to device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import filled, layout_of
from test_torch_memory import on_a_device
from torch.utils._python_dispatch import TorchDispatchMode

from soaview import Blocks, Column, Layout, Scalar, Spec, Value
from soaview_torch import _move, empty, tensors, to, write

NEEDS = ["torch"]

LAYOUT = Layout(
    [Column("x", "float32"), Column("y", "float32"), Column("k", "int64"), Scalar("n", "int32")]
)
SPEC = Spec(xy=["x", "y"], k="k", x="x", n=Value("n"))


@pytest.mark.parametrize("rows", [0, 1, 33, 1000])
def test_empty(rows):
    """Memory of torch's, aligned for XLA, too, and for the layout, in inference mode as well."""
    for alignment in (16, 128, 4096):
        layout = Layout(LAYOUT.fields, alignment=alignment)
        with torch.inference_mode():
            soa = empty(layout, rows)
        assert (soa.layout, soa.rows, soa.device, soa.readonly) == (layout, rows, "cpu", False)
        assert soa.buffer.nbytes == layout.nbytes(rows)
        assert soa.buffer.address % max(alignment, 64) == 0
        write(soa, Spec(x="x"), [torch.ones(rows)])
        assert (soa["x"] == 1).all()
    with pytest.raises(TypeError, match="layout must be a Layout or Blocks, got int"):
        empty(3, LAYOUT)
    with pytest.raises(ValueError, match="rows must not be negative"):
        empty(LAYOUT, -1)


class Copies(TorchDispatchMode):
    """Counts what is copied."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "copy" in function.name() or "clone" in function.name():
            self.sizes.append(args[0].numel() * args[0].element_size())
        return function(*args, **(kwargs or {}))


def test_to_is_one_transfer():
    """The parent buffer goes as it is; what is there already does not."""
    layout = layout_of("complex128", "bfloat16")
    soa, expected = on_a_device(layout, 1000)
    assert soa.device == "cpu:1"
    with Copies() as copied:
        moved = to(soa, "cpu")
    assert copied.sizes == [layout.nbytes(1000)]
    assert (moved.device, moved.readonly, moved.rows) == ("cpu", False, 1000)
    for name in ("x", "m", "gap"):
        np.testing.assert_array_equal(moved[name], expected[name])
    np.testing.assert_array_equal(moved.buffer.root, soa.buffer.owner[: len(moved.buffer.root)])
    soa.buffer.owner.zero_()
    np.testing.assert_array_equal(moved["x"], expected["x"])
    for here in (moved, moved[3:5], layout.allocate(3)):
        assert to(here, "cpu") is here
    with pytest.raises(TypeError, match="soa must be an SoA, got int"):
        to(3, "cpu")
    with pytest.raises(RuntimeError):
        to(soa, "no such device")


def test_to_from_the_host(monkeypatch):
    """Memory of the host goes as it is, read-only memory, too; nothing warns of that."""
    layout = layout_of("float32", "bfloat16")
    memory, expected = filled(layout, 100)
    memory.flags.writeable = False
    monkeypatch.setattr(_move, "empty", lambda layout, rows, **at: empty(layout, rows))
    for soa in (layout.wrap(memory, 100), layout.wrap(memory.copy(), 100)):
        for part, rows in ((soa, slice(None)), (soa[3:9], slice(3, 9))):
            moved = to(part, "meta")  # which is not the host, and stands for a device
            assert moved.buffer.nbytes == layout.nbytes(len(part))
            for name in ("x", "m", "gap"):
                np.testing.assert_array_equal(moved[name], expected[name][rows])


def test_a_slice_moves_its_own_rows():
    """They are put together where they are, one copy a run, and moved in one transfer."""
    layout = layout_of("float32", "bfloat16")
    soa, expected = on_a_device(layout, 1000)
    with Copies() as copied:
        moved = to(soa[100:133], "cpu")
    assert (moved.rows, moved.capacity, moved.buffer.nbytes) == (33, 33, layout.nbytes(33))
    assert copied.sizes[-1] == layout.nbytes(33)
    assert sum(copied.sizes) <= 2 * layout.nbytes(33)
    for name in ("x", "m", "gap"):
        np.testing.assert_array_equal(moved[name], expected[name][100:133])
    assert moved[Value("n")] == expected["n"]


def test_names_of_rocms_devices(monkeypatch):
    """To torch these are CUDA's, to everybody else ROCm's."""
    soa = LAYOUT.from_pointer(1 << 40, 5, device="rocm:0")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    made = []

    def record(*size, device=None, **options):
        made.append(device)
        return Elsewhere()

    class Elsewhere:
        device = torch.device("cuda:0")

    monkeypatch.setattr(torch, "empty", record)
    for name in ("rocm:0", "rocm", "cuda:0", torch.device("cuda:0")):
        assert to(soa, name) is soa
    assert made == ["cuda:0", "cuda", "cuda:0", torch.device("cuda:0")]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    taken = []
    monkeypatch.setattr(torch, "as_tensor", lambda given, device: taken.append((given, device)))
    with pytest.raises(AttributeError):
        tensors(soa, Spec(x="x"))
    [(interface, device)] = taken
    assert (interface.__cuda_array_interface__["data"], device) == ((1 << 40, False), "cuda:0")


def test_pinned_memory_is_used_by_its_own_storage(monkeypatch):
    """Torch's allocator then knows what is still being copied, of blocks and of slices, too."""
    seen, pinned = [], []
    real = torch.empty

    def record(*size, pin_memory=False, **options):
        pinned.append((size, pin_memory))
        return real(*size, **options)

    class Note(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "copy_" in function.name():
                seen.append(args[1].untyped_storage()._cdata)
            return function(*args, **(kwargs or {}))

    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: tensor.device.type == "cpu")
    monkeypatch.setattr(torch, "empty", record)
    event = empty(Blocks({"a": LAYOUT, "b": LAYOUT}), {"a": 3, "b": 100}, pin_memory=True)
    assert event["b"].buffer.owner is event.buffer.owner
    storage = event.buffer.owner.untyped_storage()._cdata
    monkeypatch.setattr(_move, "empty", lambda layout, rows, **at: empty(layout, rows))
    for part in (event, event["b"]):
        del seen[:]
        with Note():
            to(part, "meta")
        assert seen == [storage]
    monkeypatch.setattr(_move, "empty", empty)
    del pinned[:]
    with pytest.raises(BufferError, match="meta"):
        to(event["b"][5:9], "meta")
    assert ((LAYOUT.nbytes(4),), True) in pinned  # where its rows are put together


@pytest.mark.parametrize("start", [0, 64])
def test_empty_asks_for_no_more_than_it_needs(monkeypatch, start):
    """Pinned memory of a power of two would else take twice as much."""
    asked, real = [], torch.empty

    def record(size, **options):
        asked.append(size)
        memory = real(size + 256, dtype=torch.uint8)
        return memory[-memory.data_ptr() % 128 + start :][:size]

    monkeypatch.setattr(torch, "empty", record)
    soa, nbytes = empty(LAYOUT, 32), LAYOUT.nbytes(32)
    assert asked == ([nbytes, nbytes + 128] if start else [nbytes])
    assert soa.buffer.address % 128 == 0
