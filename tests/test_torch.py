"""What is PyTorch's own: one storage, odd tensors, read-only memory word by word."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
import pytest
import torch
from cases import filled, layout_of
from torch._subclasses import FakeTensorMode

import soaview_torch
from soaview import Column, Layout, Scalar, SoA, Spec, Value, views
from soaview_torch import _tensors, forward, tensors, write

NEEDS = ["torch"]

LAYOUT = Layout(
    [Column("x", "float32"), Column("y", "float32"), Column("k", "int64"), Scalar("n", "int32")]
)
SPEC = Spec(xy=["x", "y"], k="k", x="x", n=Value("n"))


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


def test_the_gate():
    """No tensor leaves its buffer, were the layout's arithmetic wrong."""
    soa = SoA(LAYOUT, LAYOUT.allocate(33).buffer, 330, 0, 330)
    with pytest.raises(ValueError, match="do not lie inside"):
        tensors(soa, SPEC)


def test_one_storage():
    """All tensors of an SoA, its slices and later calls alias one storage."""
    soa = LAYOUT.allocate(100)
    found = [*tensors(soa, SPEC), *tensors(soa[3:5], SPEC), *tensors(soa, SPEC, copy=None)]
    assert {storage(t) for t in found} == {soa.buffer.address}
    assert {t.untyped_storage().nbytes() for t in found} == {soa.buffer.nbytes}


def test_copies_are_contiguous():
    """Copies are row-major, which strided views are not."""
    soa = LAYOUT.allocate(33)
    assert not tensors(soa, SPEC)[0].is_contiguous()
    assert all(t.is_contiguous() for t in tensors(soa, SPEC, copy=True))


@pytest.mark.parametrize("dtype", ["bool", "float32", "bfloat16", "complex128"])
@pytest.mark.parametrize("rows", [1 << 15, (1 << 15) + 1, 1 << 16])
def test_copies_of_many_rows(dtype, rows):
    """Columns without gaps, which are copied in two parts, are copied as others are."""
    layout = Layout([Column(name, dtype) for name in "ab"])
    soa = layout.allocate(rows)
    random = np.random.default_rng(rows)
    soa.buffer.root[:] = random.integers(0, 2, soa.buffer.root.shape)
    [x] = tensors(soa, Spec(x=["a", "b"]))
    wanted = x.clone(memory_format=torch.contiguous_format)
    [made] = tensors(soa, Spec(x=["a", "b"]), copy=True)
    assert made.is_contiguous()
    assert made.is_leaf
    assert not made.requires_grad
    soa.buffer.root[:] = 0
    assert torch.equal(made, wanted)
    assert made[-2:].any()


def test_read_only_memory_word_by_word():
    """The refusal of read-only memory names the ways out."""
    soa = LAYOUT.wrap(bytes(LAYOUT.nbytes(3)), 3)
    with pytest.raises(BufferError) as raised:
        tensors(soa, SPEC)
    assert str(raised.value) == (
        "the SoA's memory is read-only, and torch has no read-only tensors: a write would change "
        "it, or crash. Ways out: copy=None copies it; a file can be mapped as private memory, "
        'numpy.memmap(mode="c"), or to be written itself, mode="r+"'
    )
    for copy in (None, True):
        for tensor in tensors(soa, SPEC, copy=copy):
            tensor.fill_(7)
    assert not soa.buffer.root.any()


def test_torch_tensors_can_be_wrapped():
    """A CPU tensor holds an SoA as any other memory does; what cannot is refused."""
    rows = 33
    memory, expected = filled(layout_of("float32", "int8"), rows)
    owner = torch.from_numpy(memory)
    soa = layout_of("float32", "int8").wrap(owner, rows)
    assert soa.buffer.owner is owner
    assert tensors(soa, Spec(x="x"))[0].data_ptr() == owner.data_ptr()
    assert (soa["x"] == expected["x"]).all()
    owner[0] = 1
    with pytest.raises(BufferError, match="not contiguous"):
        LAYOUT.wrap(torch.zeros(9999, dtype=torch.uint8)[::2], 3)
    for other in (torch.zeros(9999), torch.zeros(9999, dtype=torch.bfloat16)):
        with pytest.raises(TypeError, match=f"holds {str(other.dtype)[6:]}, but field"):
            LAYOUT.wrap(other, 3)
    for odd in (
        torch.zeros(9999, requires_grad=True),
        torch.zeros(9999, dtype=torch.complex64).conj(),
        torch._neg_view(torch.zeros(9999)),
        torch.zeros(9999).to_sparse(),
    ):
        with pytest.raises(BufferError, match="has no memory to wrap .*detached"):
            LAYOUT.wrap(odd, 3)
    with FakeTensorMode(), warnings.catch_warnings(action="ignore"):
        fake = torch.zeros(9999)
        with pytest.raises(BufferError, match="has no memory to wrap"):
            LAYOUT.wrap(fake, 3)
    with warnings.catch_warnings(action="ignore"):
        quantized = torch.quantize_per_tensor(torch.zeros(9999), 0.1, 0, torch.quint8)
    with pytest.raises(BufferError, match="has no memory to wrap"):
        LAYOUT.wrap(quantized, 3)
    assert LAYOUT.wrap(torch.zeros(9999, dtype=torch.bfloat16).view(torch.uint8), 3)
    with pytest.raises(BufferError, match="Tensor has no memory to wrap .*meta"):
        LAYOUT.wrap(torch.zeros(9999, device="meta"), 3)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([np.zeros(10, "f4")], TypeError, "tensor 'x': got ndarray, expected a torch.Tensor"),
        (torch.zeros(10), TypeError, "tensors must be a list in spec order, got Tensor"),
        ([torch.zeros(10, device="meta")], ValueError, "'x': got device meta, the SoA is on cpu"),
        ([torch.zeros(10, dtype=torch.float8_e5m2)], TypeError, "got dtype torch.float8_e5m2, exp"),
    ],
)
def test_bad_writes(bad, error, message):
    """Only tensors of the SoA's device, in a list, are written."""
    with pytest.raises(error, match=message):
        write(LAYOUT.allocate(10), Spec(x="x"), bad)


def test_odd_tensors_are_not_half_written():
    """What may fail when it is read is refused before the first byte is written."""
    soa = LAYOUT.allocate(10)
    with FakeTensorMode():
        fake = torch.ones(10)
    own = torch.ones(10).as_subclass(type("Own", (torch.Tensor,), {}))
    with warnings.catch_warnings(action="ignore"):  # it is a prototype, torch says
        nested = torch.nested.nested_tensor([torch.ones(10)], layout=torch.strided)
    for odd in (
        fake,
        own,
        torch.ones(10).to_sparse(),
        torch.nested.nested_tensor([torch.ones(10)], layout=torch.jagged),
        nested,
        torch._to_functional_tensor(torch.ones(10)),
        torch._efficientzerotensor(10),
    ):
        with pytest.raises(TypeError, match="tensor 'y': .*expected a plain dense"):
            write(soa, Spec(x="x", y="y"), [torch.ones(10), odd])
        with pytest.raises(TypeError, match="tensor 'y': .*expected a plain dense"):
            forward(lambda x, odd=odd: odd, (soa, Spec(x="x")), (soa, Spec(y="y")))
        assert not soa.buffer.root.any()
    with pytest.raises(TypeError, match="outside of torch.func transforms"):
        torch.func.vmap(lambda x: write(soa, Spec(x="x"), [x]))(torch.ones(10))
    write(soa, Spec(x="x"), [torch.nn.Parameter(torch.ones(10))])
    write(soa, Spec(y="y"), [torch._neg_view(torch.ones(10))])
    assert soa[["x", "y"]][3].tolist() == [1, -1]
    with pytest.raises(TypeError, match="soa must be an SoA, got NoneType"):
        write(None, Spec(x="x"), [torch.ones(10)])


def test_expanded_scalars():
    """A broadcast scalar has stride 0: torch refuses to add to it; `fill_` writes the scalar."""
    soa = LAYOUT.allocate(10)
    [n] = tensors(soa, Spec(n="n"))
    with pytest.raises(RuntimeError):
        n.add_(1)
    n.fill_(3)
    assert soa[Value("n")] == 3


def test_the_same_spec_again_and_another():
    """What is kept from one call never answers another spec, paddedness or slice."""
    soa = LAYOUT.allocate(33)
    for spec, padded, rows in (
        (SPEC, False, 33),
        (SPEC, True, 64),
        (SPEC, False, 33),
        (Spec(xy=["x", "y"]), False, 33),
        (Spec(xy=["x"]), False, 33),
    ):
        first = tensors(soa, spec, padded=padded)[0]
        again = tensors(soa, spec, padded=padded)[0]
        assert first.shape == again.shape == (rows, len(spec["xy"]))
        assert first.data_ptr() == again.data_ptr()
        assert len(tensors(soa[:5], spec)[0]) == 5


def test_torch_consumes_views():
    """`torch.from_dlpack` takes a view."""
    soa = LAYOUT.allocate(33)
    [view] = views(soa, Spec(xy=["x", "y"]))
    tensor = torch.from_dlpack(view)
    assert (tensor.stride(), tensor.data_ptr()) == ((1, 64), view.address)


def test_public_names():
    """The public door is what it is."""
    names = [
        "Rows",
        "concatenate",
        "empty",
        "explain",
        "forward",
        "jagged",
        "loader",
        "prepare",
        "segments",
        "take",
        "tensors",
        "to",
        "write",
    ]
    assert soaview_torch.__all__ == names


def test_new_memory_is_imported_in_one_step(monkeypatch):
    """An event's: the tensors are those of the long way, of one storage and count of writes."""
    spec = Spec(xyz=["x", "y", "z"], m="m", n=Value("n"), s="s", k="k")
    layout = layout_of("float32", "int64")
    for rows in (1, 31, 1000):
        memory, _ = filled(layout, rows)
        with monkeypatch.context() as patch:
            patch.setattr(_tensors, "maker_of", None)
            soa = layout.wrap(memory, rows)
            once = tensors(soa, spec)
        again = tensors(soa, spec)
        for one, other in zip(once, again, strict=True):
            assert (one.shape, one.stride(), one.dtype) == (
                other.shape,
                other.stride(),
                other.dtype,
            )
            assert one.data_ptr() == other.data_ptr()
            assert one.untyped_storage()._cdata == other.untyped_storage()._cdata
        again[0].zero_()
        assert [tensor._version for tensor in once] == [1] * len(once)
        assert tensors(soa, spec)[0]._version == 1


def test_what_goes_the_long_way(monkeypatch):
    """Whatever is not an event's plain memory: nothing of it is told apart by luck."""
    layout, spec = layout_of("float32", "int64"), Spec(x=["x", "y"])
    memory, _ = filled(layout, 40)
    frozen = memory.copy()
    frozen.flags.writeable = False
    asked, maker_of = [], _tensors.maker_of

    def note(*given):
        asked.append(given)
        return maker_of(*given)

    monkeypatch.setattr(_tensors, "maker_of", note)
    soa = layout.wrap(memory, 40)
    tensors(soa, spec)
    assert not asked
    for number, call in enumerate(
        (
            lambda: tensors(soa, spec),
            lambda: tensors(soa, Spec(y="y")),
            lambda: tensors(layout.wrap(memory, 40)[1:], spec),
            lambda: tensors(layout.wrap(memory, 40), spec, padded=True),
            lambda: tensors(layout.allocate(0), spec),
            lambda: tensors(layout.wrap(bytearray(memory), 40), Spec(x=["z", "x"])),
            lambda: tensors(layout.wrap(frozen, 40), spec),
            lambda: inside_inference(layout.wrap(memory, 40), spec),
            lambda: tensors(memory, spec),
            lambda: tensors(layout.wrap(memory, 40), {"x": "x"}),
            lambda: tensors(layout.wrap(memory, 40), spec, padded=1),
        )
    ):
        with contextlib.suppress(BufferError, TypeError):
            call()
        assert len(asked) >= number + 1, number


def inside_inference(soa, spec):
    with torch.inference_mode():
        return tensors(soa, spec)
