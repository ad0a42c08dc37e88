"""Where the memory of torch's tensors is: files, devices, storages that move."""

from __future__ import annotations

import mmap

import numpy as np
import places
import pytest
import torch
from cases import filled

import soaview_torch
from soaview import Blocks, Column, Layout, Scalar, SoA, Spec, Value, views
from soaview._device import DeviceBuffer
from soaview._dlpack import DeviceMemory, capsule_of, of_capsule
from soaview._frameworks import show
from soaview_torch import empty, forward, tensors, to, write

NEEDS = ["torch"]

LAYOUT = Layout(
    [Column("x", "float32"), Column("y", "float32"), Column("k", "int64"), Scalar("n", "int32")]
)
SPEC = Spec(xy=["x", "y"], k="k", x="x", n=Value("n"))


@pytest.mark.parametrize("rows", [33, 40_000, 40_064])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bool"])
def test_copies_lie_where_the_memory_does(dtype, rows):
    """Whatever torch's default device is, and however many rows there are without padding."""
    layout = Layout([Column("x", dtype), Column("y", dtype), Column("z", dtype)])
    soa, spec = layout.allocate(rows), Spec(xy=["x", "y"], gap=["x", "z"], yx=["y", "x"])
    soa["y"][:] = np.arange(rows) % 2
    with torch.device("meta"):
        found = tensors(soa, spec, copy=True)
    for tensor, names in zip(found, ("xy", "xz", "yx"), strict=True):
        assert tensor.is_contiguous()
        np.testing.assert_array_equal(tensor, np.stack([soa[name] for name in names], 1))


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
    soa = LAYOUT.from_pointer(1 << 40, 5, device="cuda:99", owner=arena)
    for follow in (
        lambda: tensors(soa, SPEC),
        lambda: views(soa, Spec(x="x"))[0].__dlpack__(),
        lambda: to(soa, "cpu"),
    ):
        with pytest.raises(BufferError, match="torch does not take memory on cuda:99"):
            follow()
    for device in ("rocm:0", "metal"):
        soa = LAYOUT.from_pointer(1 << 40, 5, device=device)
        for follow in (tensors, lambda soa, spec: views(soa, spec)[0].__dlpack__()):
            with pytest.raises(BufferError, match=f"bare memory on {device}.* has no protocol"):
                follow(soa, SPEC)
    with pytest.raises(MemoryError, match="rows need"):
        empty(LAYOUT, 2**62)
    for layout, rows in ((LAYOUT, 2**45), (Blocks({"a": LAYOUT}), {"a": 2**45})):
        with pytest.raises(MemoryError, match="torch has no .* bytes on cpu: "):
            empty(layout, rows)
    for device in (None, 0, "cpu:"):
        with pytest.raises(TypeError if device != "cpu:" else RuntimeError, match="device"):
            empty(LAYOUT, 3, device=device)
        with pytest.raises(TypeError if device != "cpu:" else RuntimeError, match="device"):
            to(LAYOUT.allocate(3), device)


def test_memory_that_is_not_where_it_was_said_to_be():
    """What torch imports is compared with the address: it may have been moved or copied."""
    memory = torch.zeros(1024, dtype=torch.uint8)
    there = DeviceMemory(memory.data_ptr() + 128, 512, False, 1, 1, source=memory)
    soa = SoA(LAYOUT, DeviceBuffer(there._replace(owner=memory), 512, 8), 5, 0, 5)
    for follow in (lambda: tensors(soa, SPEC), lambda: views(soa, SPEC)[0].__dlpack__()):
        with pytest.raises(BufferError, match="memory on cpu:1 is not where it was: it was wrap"):
            follow()


def test_devices_that_are_not_there():
    """Memory that this torch cannot reach is refused, with where it is."""
    soa = LAYOUT.from_pointer(1 << 40, 10, device="cuda:99")
    for bad in (
        lambda: tensors(soa, SPEC),
        lambda: tensors(soa, SPEC, copy=True),
        lambda: views(soa, Spec(x="x"))[0].__dlpack__(),
        lambda: to(soa, "cpu"),
    ):
        # What torch says depends on whether it is built for CUDA, and has a driver and a GPU.
        with pytest.raises(BufferError, match="torch does not take memory on cuda:99: "):
            bad()
    with pytest.raises(BufferError, match="read-only, and torch has no read-only"):
        tensors(LAYOUT.from_pointer(1 << 40, 10, device="cuda:99", readonly=True), SPEC)


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


def test_memory_of_torchs_keeps_its_storage():
    """Torch's allocator knows whose memory a tensor is: `record_stream` and CUDA graphs need it."""
    whole = torch.zeros(LAYOUT.nbytes(33) + 512, dtype=torch.uint8)
    owner = whole[-whole.data_ptr() % 128 + 128 :][: LAYOUT.nbytes(33)]
    there = DeviceMemory(owner.data_ptr(), len(owner), False, 1, 1, source=owner, owner=owner)
    soa = SoA(LAYOUT, DeviceBuffer(there, len(owner), 8), 33, 0, 33)
    found = tensors(soa, SPEC)
    for tensor in (*found, show(soa.buffer.memory, views(soa, Spec(k="k"))[0].strided)):
        assert tensor.untyped_storage()._cdata == whole.untyped_storage()._cdata
    found[0][5, 1] = 7
    assert owner.view(torch.float32)[LAYOUT.offset("y", 33) // 4 + 5] == 7
    write(soa, Spec(k="k"), [torch.arange(33)])
    for copy in (False, None, True):
        xy, k = tensors(soa, Spec(xy=["x", "y"], k="k"), copy=copy)
        assert xy[5].tolist() == [0, 7]
        assert k.tolist() == list(range(33))
    with torch.inference_mode():
        made = torch.zeros(LAYOUT.nbytes(33), dtype=torch.uint8)
    there = DeviceMemory(made.data_ptr(), len(made), False, 1, 1, source=made, owner=made)
    soa = SoA(LAYOUT, DeviceBuffer(there, len(made), 8), 33, 0, 33)
    weight = torch.ones(33, requires_grad=True)
    (tensors(soa, Spec(x="x"))[0] * weight).sum().backward()  # no tensor of inference mode


def test_a_model_is_not_blamed_for_others():
    """Each import counts its own writes: what others write meanwhile is not the model's doing."""
    soa, _ = on_a_device(LAYOUT, 33)

    def model(x):
        write(soa, Spec(y="y"), [torch.ones(33)])
        soa.buffer.owner[-1] = 1
        return x + 1

    forward(model, (soa, Spec(x="x")), (soa, Spec(y="y")))
    with pytest.raises(RuntimeError, match="the model has changed its inputs in place"):
        forward(lambda x: x.add_(1), (soa, Spec(x="x")), (soa, Spec(y="y")))


def test_an_owner_of_a_subclass():
    """Its memory is taken, and not its class."""

    class Named(torch.Tensor):
        pass

    owner = torch.zeros(LAYOUT.nbytes(33) + 128, dtype=torch.uint8)
    owner = owner[-owner.data_ptr() % 128 :][: LAYOUT.nbytes(33)].as_subclass(Named)
    there = DeviceMemory(owner.data_ptr(), len(owner), False, 1, 1, source=owner, owner=owner)
    soa = SoA(LAYOUT, DeviceBuffer(there, LAYOUT.nbytes(33), 8), 33, 0, 33)
    [k] = tensors(soa, Spec(k="k"))
    assert type(k) is torch.Tensor
    k[:] = torch.arange(33)
    assert owner.view(torch.int64)[LAYOUT.offset("k", 33) // 8 + 7] == 7


class Far:
    """Speaks DLPack for a tensor, and is no tensor itself: a device's array of another library."""

    def __init__(self, tensor):
        self.tensor, self.failing = tensor, None

    def __dlpack__(self, **asked):
        if self.failing is not None:
            raise self.failing
        return self.tensor.__dlpack__(**asked)

    def __dlpack_device__(self):
        return (1, 0)

    def soa(self, layout, rows):
        """As `wrap` makes it of memory that is on a device."""
        said, _ = of_capsule(capsule_of(self), (1, 0))
        buffer = DeviceBuffer(said._replace(source=self, owner=self), layout.nbytes(rows), 4)
        return SoA(layout, buffer, rows, 0, rows)


TABLE = Layout([Column("x", "float32"), Column("y", "float32")])


def test_a_table_in_column_order_on_a_device():
    """Memory that is (rows, columns) in Fortran's order is the layout's, as it is on the host."""
    table = torch.arange(64, dtype=torch.float32).reshape(2, 32).T
    soa = Far(table).soa(TABLE, 32)
    [y] = tensors(soa, Spec(y="y"))
    assert y.tolist() == list(range(32, 64))
    y[0] = -1
    assert table[0, 1] == -1
    assert torch.from_dlpack(views(soa, Spec(y="y"))[0])[0] == -1


@pytest.mark.parametrize("error", [OSError, KeyError, RuntimeError, BufferError])
def test_producers_that_fail_later(error):
    """What they raise, or that they give less than before, comes as one kind of error."""
    far = Far(torch.zeros(64))
    soa = far.soa(TABLE, 32)
    [view] = views(soa, Spec(y="y"))
    for failing, tensor in ((error("gone"), far.tensor), (None, far.tensor[:63])):
        far.failing, far.tensor = failing, tensor
        message = "gone" if failing else "gives 252 bytes of it now, and the SoA has 256"
        for follow in (lambda: tensors(soa, Spec(y="y")), view.__dlpack__):
            with pytest.raises(BufferError, match=message):
                follow()


def test_a_subclass_whose_twin_is_none():
    """`detach` of a subclass may give anything; the memory is held, and stays where it is."""

    class Odd(torch.Tensor):
        def detach(self):
            return torch.zeros(1)

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is torch.Tensor.detach:
                return torch.zeros(1)
            return super().__torch_function__(function, types, args, kwargs)

    plain = torch.full((64,), 7.0)
    column = TABLE.wrap(plain.as_subclass(Odd), 32)["x"]
    with pytest.raises(RuntimeError, match="not resizable"):
        plain.untyped_storage().resize_(0)
    assert column.tolist() == [7.0] * 32


def test_memory_that_starts_between_items_of_its_storage():
    """Torch counts a view's offset in items, and has none there: a storage is made anew."""
    raw = places.aligned(np.zeros(LAYOUT.nbytes(33) + 256, np.uint8))
    owner = torch.from_numpy(raw[4:])[124:]
    there = DeviceMemory(owner.data_ptr(), len(owner), False, 1, 1, source=owner, owner=owner)
    soa = SoA(LAYOUT, DeviceBuffer(there, LAYOUT.nbytes(33), 8), 33, 0, 33)
    tensors(soa, Spec(k="k"))[0][:] = torch.arange(33)
    assert LAYOUT.wrap(raw[128:], 33)["k"].tolist() == list(range(33))
