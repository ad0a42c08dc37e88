"""Traps that other libraries set, as `docs/traps.md` tells of them, and the ways out.

Each test pins what the other library does today, and fails when that is mended: then the page has
to be mended, too.
"""

from __future__ import annotations

import pickle
from multiprocessing.reduction import ForkingPickler

import jax
import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from onnx import TensorProto, helper

import soaview_jax
import soaview_torch
from soaview import Column, Layout, Scalar, Spec, Value, views

NEEDS = ["torch", "jax"]

LAYOUT = Layout(
    [
        Column("a", "float32"),
        Column("b", "float32"),
        Column("m", "complex128", (2, 3)),
        Scalar("n", "int64"),
    ]
)
ROWS = 1000
AB = Spec(ab=["a", "b"])


def filled(rows=ROWS):
    """An SoA in which no two values of a column are the same."""
    soa = LAYOUT.allocate(rows)
    soa["a"][:] = np.arange(rows)
    soa["b"][:] = -np.arange(rows)
    soa["m"][:] = np.arange(rows * 6).reshape(rows, 2, 3)
    soa[Value("n")][...] = 2**40 + 1
    return soa


def assert_same(one, other):
    for key in ("a", "b", "m", Value("n")):
        np.testing.assert_array_equal(one[key], other[key])


# Workers that send views

WORKERS = """if True:
    from torch.utils.data import DataLoader, Dataset
    import soaview_torch
    from soaview import Column, Layout, Spec

    layout = Layout([Column("a", "float32"), Column("b", "float32")])
    rows, size, spec = 80_000, 1000, Spec(ab=["a", "b"])
    soa = layout.allocate(rows)
    soa["b"][:] = 1

    class Batches(Dataset):
        def __init__(self, give):
            self.give = give

        def __len__(self):
            return rows // size

        def __getitem__(self, number):
            return self.give(soa[number * size : (number + 1) * size])

    def loaded(give):
        return DataLoader(
            Batches(give), batch_size=None, num_workers=2, multiprocessing_context="fork"
        )

    sent = total = 0
    for [x] in loaded(lambda part: soaview_torch.tensors(part, spec)):
        sent, total = sent + x.untyped_storage().nbytes(), total + x.sum().item()
    print(sent / soa.buffer.nbytes, total)
    sent = total = 0
    for part in loaded(lambda part: part):
        [x] = soaview_torch.tensors(part, spec)
        sent, total = sent + part.buffer.nbytes, total + x.sum().item()
    print(sent / soa.buffer.nbytes, total)
"""


@pytest.mark.slow
def test_workers_that_send_views_send_the_whole_soa(run_python):
    """In 80 batches of tensors the SoA arrives 80 times; in 80 of slices, once."""
    tensors, slices = (
        [float(word) for word in line.split()]
        for line in run_python("-c", WORKERS).stdout.splitlines()
    )
    assert tensors == [80, 80_000]
    assert slices[0] == pytest.approx(1, abs=0.05)  # and its padding
    assert slices[1] == 80_000


@pytest.mark.parametrize("dumps", [pickle.dumps, ForkingPickler.dumps])
def test_a_tensor_is_pickled_with_its_whole_storage(dumps):
    """A tensor of 10 rows takes the SoA's memory along, a slice its own rows, a clone none."""
    soa = filled(20_000)
    [x] = soaview_torch.tensors(soa[50:60], AB)
    sent = len(dumps(x))  # multiprocessing moves the storage into shared memory instead
    assert sent + x.untyped_storage().is_shared() * x.untyped_storage().nbytes() > soa.buffer.nbytes
    part = filled(20_000)[50:60]
    assert len(dumps(part)) < LAYOUT.nbytes(10) + 1000
    assert len(pickle.dumps(soaview_torch.tensors(part, AB)[0].clone())) < 1000
    assert_same(pickle.loads(dumps(part)), part)


# Files


def test_safetensors_writes_wrong_values_of_strided_arrays():
    """NumPy's columns come back as rows, without an error; contiguous, they are right."""
    strided = filled()[["a", "b"]][:7]
    back = safetensors.numpy.load(safetensors.numpy.save({"ab": strided}))["ab"]
    np.testing.assert_array_equal(back, np.arange(14).reshape(7, 2))
    dense = np.ascontiguousarray(strided)
    back = safetensors.numpy.load(safetensors.numpy.save({"ab": dense}))["ab"]
    np.testing.assert_array_equal(back, strided)


def test_safetensors_of_torch_refuses_strided_tensors():
    """What the page says of `safetensors.torch`: an error, and no wrong values."""
    [x] = soaview_torch.tensors(filled(), AB)
    with pytest.raises(ValueError, match="non contiguous"):
        safetensors.torch.save({"ab": x})


@pytest.mark.parametrize("rows", [0, 1, 33, ROWS])
def test_an_soa_goes_through_a_safetensors_file(tmp_path, rows):
    """The memory as it is, with the layout's JSON, is the same SoA when it is wrapped again."""
    soa, path = filled(rows), tmp_path / "soa.safetensors"
    about = {"layout": LAYOUT.to_json(), "rows": str(rows)}
    safetensors.numpy.save_file({"soa": soa.buffer.root}, path, metadata=about)
    with safetensors.safe_open(path, "np") as file:
        about, memory = file.metadata(), file.get_tensor("soa")
    again = Layout.from_json(about["layout"]).wrap(memory, int(about["rows"]))
    assert again.layout == LAYOUT
    assert_same(again, soa)
    assert not again.readonly


# Models that ask for an address


def bound(values, outputs, nodes, axes):
    """What a model gives for an input that is bound by shape and address."""
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, outputs)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, values.dtype, values.shape, values.ctypes.data)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    return session.run(None, {"x": values})[0], binding.copy_outputs_to_cpu()[0]


def test_onnxruntime_binds_an_address_and_ignores_strides():
    """A view of columns is read as if it were row-major; `run` copies it, and is right."""
    strided = filled()[["a", "b"]][:7]
    double = helper.make_node("Add", ["x", "x"], ["y"])
    right, wrong = bound(strided, ["n", 2], [double], ["n", 2])
    np.testing.assert_array_equal(right, 2 * strided)
    np.testing.assert_array_equal(wrong, 2 * np.arange(14).reshape(7, 2))


@pytest.mark.parametrize("rows", [1, 33, ROWS])
def test_onnxruntime_binds_the_padded_columns(rows):
    """`(k, P)` is dense, and a model that begins with a Transpose reads it right."""
    soa = filled(rows)
    [view] = views(soa, AB, padded=True)
    columns = view.numpy().T
    assert columns.flags.c_contiguous
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"]),
        helper.make_node("Add", ["t", "t"], ["y"]),
    ]
    _, got = bound(columns, ["P", "k"], nodes, ["k", "P"])
    np.testing.assert_array_equal(got[:rows], 2 * soa[["a", "b"]])


# Memory that others read, too


def arrow(soa, path):
    return LAYOUT.wrap(pa.py_buffer(soa.buffer.root.tobytes()), soa.rows)


def mapped_by_arrow(soa, path):
    soa.buffer.root.tofile(path)
    return LAYOUT.wrap(pa.memory_map(str(path)).read_buffer(), soa.rows)


def sent_out_of_band(soa, path):
    """As object stores send what speaks pickle's protocol 5: the bytes come back read-only."""
    sent = []
    pickled = pickle.dumps(soa, 5, buffer_callback=sent.append)
    return pickle.loads(pickled, buffers=[pa.py_buffer(bytes(part.raw())) for part in sent])


@pytest.mark.parametrize("given", [arrow, mapped_by_arrow, sent_out_of_band])
def test_arrow_and_object_stores_give_read_only_memory(tmp_path, given):
    """Torch is refused until it copies; NumPy and JAX read the memory where it lies."""
    soa = filled()
    shared = given(soa, tmp_path / "soa.bin")
    assert shared.readonly
    assert_same(shared, soa)
    with pytest.raises(BufferError, match="read-only.*copy=None"):
        soaview_torch.tensors(shared, AB)
    [x] = soaview_torch.tensors(shared, AB, copy=None)
    x += 1
    assert_same(shared, soa)
    [a] = soaview_jax.arrays(shared, Spec(a="a"), copy=None)
    np.testing.assert_array_equal(a, soa["a"])


def test_torch_writes_into_arrows_immutable_memory():
    """Why soaview refuses: torch's importer ignores the flag."""
    given = pa.py_buffer(bytes(16))
    assert not given.is_mutable
    torch.from_dlpack(np.frombuffer(given, np.uint8)).fill_(7)
    assert given.to_pybytes() == bytes([7] * 16)


# Writes that nobody counts


def by_dlpack(soa):
    torch.from_dlpack(views(soa, Spec(a="a"))[0]).zero_()


def by_numpy(soa):
    soa["a"][:] = 0


def by_storage(soa):
    [x] = soaview_torch.tensors(soa, AB)
    x.untyped_storage().fill_(0)


UNCOUNTED = pytest.mark.parametrize("write", [by_dlpack, by_numpy, by_storage])


@UNCOUNTED
def test_autograd_does_not_notice_writes_through_another_import(write):
    """The gradient is that of other values than the loss, and nothing is raised."""
    soa = filled()
    [x] = soaview_torch.tensors(soa, AB)
    weight = torch.ones(2, requires_grad=True)
    loss, right = (x @ weight).sum(), x.sum(0)
    write(soa)
    loss.backward()
    assert weight.grad[0] == 0 != right[0]


@UNCOUNTED
def test_forward_does_not_notice_writes_through_another_import(write):
    """A model that writes into its inputs that way has changed the SoA, and is not told."""
    soa, out = filled(), Layout([Column("y", "float32")]).allocate(ROWS)

    def model(x):
        write(soa)
        return x[:, 0] + 1

    soaview_torch.forward(model, (soa, AB), (out, Spec(y="y")))
    assert not soa["a"].any()
    assert (out["y"] == 1).all()


def by_tensors(soa):
    soaview_torch.tensors(soa, Spec(b="b"))[0].zero_()


def by_write(soa):
    soaview_torch.write(soa, Spec(b="b"), [torch.zeros(ROWS)])


@pytest.mark.parametrize("write", [by_tensors, by_write])
def test_autograd_notices_writes_through_the_tensors(write):
    """The way out: a write through tensors of the SoA makes `backward` raise."""
    soa = filled()
    [x] = soaview_torch.tensors(soa, AB)
    loss = (x @ torch.ones(2, requires_grad=True)).sum()
    write(soa)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# One memory at two addresses


@pytest.mark.parametrize("package", [soaview_torch, soaview_jax])
@pytest.mark.parametrize("mappings", [1, 2])
def test_a_file_that_is_mapped_twice_overlaps_unseen(tmp_path, mappings, package):
    """Columns are swapped right within one mapping; over two, torch loses one of them."""
    soa, path = filled(), tmp_path / "soa.bin"
    soa.buffer.root.tofile(path)
    maps = [np.memmap(path, mode="r+") for _ in range(mappings)]
    first, second = (LAYOUT.wrap(mapped, ROWS) for mapped in (maps[0], maps[-1]))
    assert np.may_share_memory(first.buffer.root, second.buffer.root) == (mappings == 1)
    package.forward(lambda x: (x[:, 1], x[:, 0]), (first, AB), (second, Spec(a="a", b="b")))
    lost = mappings == 2 and package is soaview_torch
    np.testing.assert_array_equal(first["a"], soa["b"])
    np.testing.assert_array_equal(first["b"], soa["b"] if lost else soa["a"])


# What asks nobody for a pytree


@pytest.mark.parametrize("rows", [0, 1, 33, ROWS])
def test_an_soa_is_restored_from_its_leaves(rows):
    """The leaves, NumPy arrays as a serializer takes them, and the tree give the same SoA."""
    soa = filled(rows)
    leaves = jax.tree.leaves(soa)
    assert all(type(leaf) is np.ndarray for leaf in leaves)
    copies = [pickle.loads(pickle.dumps(leaf)) for leaf in leaves]
    again = jax.tree.unflatten(jax.tree.structure(LAYOUT.allocate(rows)), copies)
    assert_same(again, soa)
    assert again.readonly
