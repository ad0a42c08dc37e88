"""Where the memory of torch's tensors is: files, devices, storages that move."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
import torch
from cases import filled, layout_of
from torch.utils._python_dispatch import TorchDispatchMode

import soaview_torch
from soaview import Blocks, Column, Layout, Scalar, SoA, Spec, Value, views
from soaview._device import DeviceBuffer
from soaview._dlpack import DeviceMemory
from soaview._frameworks import show
from soaview_torch import _move, empty, forward, tensors, to, write

NEEDS = ["torch"]

LAYOUT = Layout(
    [Column("x", "float32"), Column("y", "float32"), Column("k", "int64"), Scalar("n", "int32")]
)
SPEC = Spec(xy=["x", "y"], k="k", x="x", n=Value("n"))


def test_private_mappings(tmp_path):
    """A file mapped copy-on-write gives tensors that can be written; the file stays as it is."""
    path = tmp_path / "soa.bin"
    path.write_bytes(bytes(LAYOUT.nbytes(10)))
    memory = np.memmap(path, mode="c")
    tensors(LAYOUT.wrap(memory, 10), SPEC)[0].fill_(7)
    assert memory.any()
    assert not any(path.read_bytes())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as reading:
        soa = LAYOUT.wrap(reading, 10)
        assert soa.readonly
        with pytest.raises(BufferError, match="read-only"):
            tensors(soa, SPEC)
        del soa


def test_a_wrapped_tensor_keeps_its_memory():
    """`resize_` raises, and `set_` and `data =` leave the memory to the SoA."""
    owner = torch.zeros(LAYOUT.nbytes(10), dtype=torch.uint8)
    soa = LAYOUT.wrap(owner, 10)
    with pytest.raises(RuntimeError, match="not resizable"):
        owner.resize_(10**8)
    with pytest.raises(RuntimeError, match="not resizable"):
        owner.untyped_storage().resize_(0)
    owner.set_(torch.zeros(3, dtype=torch.uint8))
    owner.data = torch.zeros(5, dtype=torch.uint8)
    tensors(soa, Spec(x="x"))[0].fill_(3)
    assert soa["x"].tolist() == [3] * 10


@pytest.mark.parametrize("left", [0, 64])
def test_storage_that_was_shrunk(left):
    """A tensor that reaches past its storage is neither wrapped nor written."""
    x = Layout([Column("x", "float32")])
    for odd in (torch.zeros(1 << 20), torch.zeros(3, 1 << 20).T[:, 1]):
        odd.untyped_storage().resize_(left)
        with pytest.raises(BufferError, match="reaches to byte .* storage, which was resized to"):
            x.wrap(odd, 10)
        soa = LAYOUT.allocate(1 << 20)
        with pytest.raises(BufferError, match="reaches to byte"):
            write(soa, Spec(x="x"), [odd])
        assert not soa["x"].any()
    x.wrap(torch.zeros(9999)[4:], 10)
    write(LAYOUT.allocate(10), Spec(x="x"), [torch.zeros(1).expand(10)])
    write(LAYOUT.allocate(0), Spec(xy=["x", "y"]), [torch.empty(2, 0).T])  # strides (1, 1)


def test_storage_that_torch_moved():
    """After `share_memory_` of a tensor, calls give the SoA's memory again, not what it left."""
    soa, spec = LAYOUT.allocate(10), Spec(x="x")
    for again in (spec, Spec(x="x")):
        [x] = tensors(soa, spec)
        x.share_memory_()
        assert x.data_ptr() != soa.buffer.address
        assert tensors(soa, again)[0].data_ptr() == soa.buffer.address
        assert tensors(soa[2:], again)[0].data_ptr() == soa.buffer.address + 8
        assert tensors(soa, again, copy=None)[0].data_ptr() == soa.buffer.address
    tensors(soa, spec)[0].share_memory_()
    write(soa, spec, [torch.ones(10)])
    assert soa["x"].tolist() == [1] * 10


# Memory of torch's, and other devices


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


def on_a_device(layout, rows):
    """An SoA that lies in the host's memory by the way that a device's goes."""
    memory, expected = filled(layout, rows)
    owner = torch.empty(len(memory) + 128 + 99, dtype=torch.uint8)  # more than is needed
    owner = owner[-owner.data_ptr() % 128 :]
    owner[: len(memory)] = torch.from_numpy(memory)
    there = DeviceMemory(owner.data_ptr(), len(owner), False, 1, 1, source=owner)
    return SoA(
        layout, DeviceBuffer(there._replace(owner=owner), len(memory), 16), rows, 0, rows
    ), expected


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


def test_an_owner_inside_of_its_storage():
    """A tensor that starts somewhere in its storage is taken from where it starts."""
    whole = torch.arange(3000, dtype=torch.float32)
    owner = whole[32 : 32 + 3 * 64].reshape(3, 64)
    layout = Layout([Column(name, "float32") for name in "xyz"])
    there = DeviceMemory(owner.data_ptr(), 768, False, 1, 1, source=owner)
    soa = SoA(layout, DeviceBuffer(there._replace(owner=owner), 768, 4), 60, 0, 60)
    [view] = views(soa, Spec(y="y"))
    wanted = list(range(96, 156))
    assert torch.from_dlpack(view).tolist() == tensors(soa, Spec(y="y"))[0].tolist() == wanted


def test_the_owner_of_a_pointer_is_not_its_memory():
    """An owner only keeps the memory, even where it is a tensor: the address counts."""
    arena = torch.arange(1024, dtype=torch.float32)
    soa = LAYOUT.from_pointer(1 << 40, 5, device="cuda:0", owner=arena)
    for follow in (
        lambda: tensors(soa, SPEC),
        lambda: views(soa, Spec(x="x"))[0].__dlpack__(),
        lambda: to(soa, "cpu"),
    ):
        with pytest.raises(BufferError, match="torch does not take memory on cuda:0"):
            follow()
    for device in ("rocm:0", "metal"):
        soa = LAYOUT.from_pointer(1 << 40, 5, device=device)
        for follow in (tensors, lambda soa, spec: views(soa, spec)[0].__dlpack__()):
            with pytest.raises(BufferError, match=f"bare memory on {device}.* has no protocol"):
                follow(soa, SPEC)
    with pytest.raises(MemoryError, match="rows need"):
        empty(LAYOUT, 2**62)


def test_memory_that_is_not_where_it_was_said_to_be():
    """What torch imports is compared with the address: it may have been moved or copied."""
    memory = torch.zeros(1024, dtype=torch.uint8)
    there = DeviceMemory(memory.data_ptr() + 128, 512, False, 1, 1, source=memory)
    soa = SoA(LAYOUT, DeviceBuffer(there._replace(owner=memory), 512, 8), 5, 0, 5)
    for follow in (lambda: tensors(soa, SPEC), lambda: views(soa, SPEC)[0].__dlpack__()):
        with pytest.raises(BufferError, match="memory on cpu:1 is not where it was: it was wrap"):
            follow()


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


def test_devices_that_are_not_there():
    """Memory that this torch cannot reach is refused, with where it is."""
    soa = LAYOUT.from_pointer(1 << 40, 10, device="cuda:0")
    for bad in (
        lambda: tensors(soa, SPEC),
        lambda: tensors(soa, SPEC, copy=True),
        lambda: views(soa, Spec(x="x"))[0].__dlpack__(),
        lambda: to(soa, "cpu"),
    ):
        # What torch says depends on whether it is built for CUDA, and has a driver.
        with pytest.raises(BufferError, match="torch does not take memory on cuda:0: .*"):
            bad()
    with pytest.raises(BufferError, match="read-only, and torch has no read-only"):
        tensors(LAYOUT.from_pointer(1 << 40, 10, device="cuda:0", readonly=True), SPEC)


def test_no_real_memory_in_transforms():
    """Where torch has no memory to give, a device's is refused as the host's is."""

    def inside(x):
        with pytest.raises(TypeError, match="torch gives no"):
            tensors(on_device, SPEC)
        with pytest.raises(TypeError, match="torch gives no real memory; take it outside"):
            empty(LAYOUT, 5)
        return x.sum()

    on_device, _ = on_a_device(LAYOUT, 5)
    torch.func.grad(inside)(torch.ones(3))


def test_memory_made_read_only_later():
    """A flag that is set on the memory later is minded by what was prepared before."""
    soa, k, y = LAYOUT.allocate(10), Spec(k="k"), Spec(y="y")
    part = soa[3:5]
    calls = [
        lambda: tensors(soa, k),
        lambda: tensors(soa, k, padded=True),
        lambda: tensors(part, y),
        lambda: write(soa, y, [torch.ones(10)]),
        lambda: write(part, y, [torch.ones(2)]),
        lambda: forward(lambda k: k * 2.0, (soa, k), (OUT, y)),
        lambda: forward(lambda y: y * 2, (OUT, y), (soa, y)),
        lambda: soaview_torch.jagged(soa, y, counts=[4, 6]),
    ]
    for writeable in (True, False, True, False):
        soa.buffer.root.flags.writeable = writeable
        before = soa.buffer.root.copy(), OUT.buffer.root.copy()
        for call in calls:
            for _ in range(2):
                if writeable:
                    call()
                    continue
                with pytest.raises(BufferError, match="read-only"):
                    call()
                with pytest.raises(BufferError, match="read-only"):
                    tensors(soa, Spec(x="x"))
        if not writeable:
            assert (soa.buffer.root == before[0]).all()
            assert (OUT.buffer.root == before[1]).all()
            for copied in (None, True):
                [tensor] = tensors(soa, y, copy=copied)
                tensor.fill_(7)
            forward(lambda y: y.fill_(7), (soa, y), (OUT, y), copy=None)
            assert (soa.buffer.root == before[0]).all()


OUT = Layout([Column("y", "float32")]).allocate(10)


def test_memory_made_read_only_after_jax_has_read_it():
    """It is copied without a word of torch's, whatever was kept for readers before."""
    soa = LAYOUT.allocate(10)
    assert soa.buffer.unguarded.flags.writeable
    soa.buffer.root.flags.writeable = False
    [x] = tensors(soa, Spec(x="x"), copy=None)
    x.fill_(7)
    assert not soa.buffer.root.any()
    with pytest.raises(BufferError):
        to(soa, "meta")  # where there is no memory


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
    taken = []
    monkeypatch.setattr(torch, "as_tensor", lambda given, device: taken.append((given, device)))
    with pytest.raises(AttributeError):
        tensors(soa, Spec(x="x"))
    [(interface, device)] = taken
    assert (interface.__cuda_array_interface__["data"], device) == ((1 << 40, False), "cuda:0")


def test_memory_of_torchs_keeps_its_storage():
    """Torch's allocator knows whose memory a tensor is: `record_stream` and CUDA graphs need it."""
    whole = torch.zeros(LAYOUT.nbytes(33) + 512, dtype=torch.uint8)
    owner = whole[-whole.data_ptr() % 128 :][: LAYOUT.nbytes(33)]
    there = DeviceMemory(owner.data_ptr(), len(owner), False, 1, 1, source=owner, owner=owner)
    soa = SoA(LAYOUT, DeviceBuffer(there, len(owner), 8), 33, 0, 33)
    found = tensors(soa, SPEC)
    for tensor in (*found, show(soa.buffer.memory, views(soa, Spec(k="k"))[0].strided)):
        assert tensor.untyped_storage()._cdata == whole.untyped_storage()._cdata
    found[0][5, 1] = 7
    assert owner.view(torch.float32)[LAYOUT.offset("y", 33) // 4 + 5] == 7
    with torch.inference_mode():
        made = torch.zeros(LAYOUT.nbytes(33), dtype=torch.uint8)
    there = DeviceMemory(made.data_ptr(), len(made), False, 1, 1, source=made, owner=made)
    soa = SoA(LAYOUT, DeviceBuffer(there, len(made), 8), 33, 0, 33)
    weight = torch.ones(33, requires_grad=True)
    (tensors(soa, Spec(x="x"))[0] * weight).sum().backward()  # no tensor of inference mode


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
