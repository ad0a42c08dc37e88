"""Every way in which people run models, on views with other row counts than they were made for."""

from __future__ import annotations

import copy
import importlib
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

import soaview_jax
import soaview_torch
from soaview import Column, Layout, Spec

NEEDS = ["torch", "jax"]

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ["simple_net", "masked_net", "tiny_resnet", "multi_head_net", "track_hit_deep_set"]
ROWS = (33, 64, 1000, 2, 999)  # padded, dense, padded ...

pytestmark = [
    # torch's own, of its exporters and of scripting.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]


needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None, reason="torch's code generator needs a C++ compiler, c++"
)


@pytest.fixture(params=NAMES)
def example(request, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module(request.param)


@pytest.fixture
def simple_net(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("simple_net")


def networks(example):
    return importlib.import_module("both").networks(example)


def event(example, rows, batch_size):
    return importlib.import_module("both").event(example, rows, batch_size)


def given(example, rows):
    """The inputs' tensors."""
    inputs, _ = example.event(rows)
    pairs = [inputs] if isinstance(inputs, tuple) else inputs
    return [t for soa, spec in pairs for t in soaview_torch.tensors(soa, spec)]


def check(example, model, rows=ROWS, **options):
    """A deployed model gives what the eager one does, at every row count."""
    eager, _ = networks(example)
    for count in rows:
        inputs, (soa, spec) = example.event(count)
        soaview_torch.forward(eager, inputs, (soa, spec))
        wanted = {name: soa[name].copy() for name in soa}
        for batch_size in (None, example.BATCH_SIZE):
            inputs, (soa, spec) = event(example, count, batch_size)
            soaview_torch.forward(model, inputs, (soa, spec), batch_size=batch_size, **options)
            for name, values in wanted.items():
                np.testing.assert_allclose(soa[name], values, rtol=1e-5, atol=1e-6)


def dynamic(tensors):
    """The sizes that vary, for `torch.export`: rows, where there is more than one."""
    counts = {1: None}
    for tensor in tensors:
        counts.setdefault(len(tensor), torch.export.Dim(f"rows{len(counts)}", min=2))
    return tuple({0: counts[len(t)]} for t in tensors)


@pytest.mark.slow_but_every(5)
def test_script(example):
    """`torch.jit.script`."""
    check(example, torch.jit.script(networks(example)[0]))


@pytest.mark.slow
def test_trace(example):
    """`torch.jit.trace`, with an example of another row count."""
    model = torch.jit.trace(networks(example)[0], tuple(given(example, 50)))
    check(example, model)


@pytest.mark.slow
def test_export(example):
    """`torch.export`, with an example of another row count."""
    tensors = given(example, 50)
    program = torch.export.export(
        networks(example)[0], tuple(tensors), dynamic_shapes=dynamic(tensors)
    )
    check(example, program.module())


@pytest.mark.slow
def test_compile(example):
    """`torch.compile`: other row counts and pitches are compiled for once, not again and again."""
    from torch._dynamo.testing import CompileCounterWithBackend  # 4 s, for this test alone

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    check(
        example, torch.compile(networks(example)[0], backend=counter), rows=(*range(40, 80), 1000)
    )
    assert counter.frame_count <= 3  # of 82 calls


@pytest.mark.slow
@needs_compiler
def test_compile_with_inductor(simple_net):
    """The same with torch's own code generator, whose kernels read the strides."""
    torch._dynamo.reset()
    check(simple_net, torch.compile(networks(simple_net)[0]))


class SineFirst(torch.nn.Module):
    """An element-wise operation reads the strides; a matrix product hands them to a library."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, features):
        return self.model(torch.sin(features))


def compare(example, model, package, rows, **options):
    for count in rows:
        inputs, (soa, spec) = example.event(count)
        soaview_torch.forward(model, inputs, (soa, spec))
        wanted = soa["reco_pt"].copy()
        for batch_size in (None, example.BATCH_SIZE):
            inputs, (soa, spec) = event(example, count, batch_size)
            soaview_torch.forward(package, inputs, (soa, spec), batch_size=batch_size, **options)
            np.testing.assert_allclose(soa["reco_pt"], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", ["masked_net", "track_hit_deep_set"])
def test_aot_inductor_package(name, monkeypatch, tmp_path):
    """A package made as the example shows serves all row counts, item sizes and several SoAs."""
    monkeypatch.syspath_prepend(EXAMPLES)
    example, recipe = (importlib.import_module(n) for n in (name, "aot_inductor"))
    model, _ = networks(example)
    inputs, _ = example.event(recipe.EXAMPLE_ROWS)
    pairs = [inputs] if isinstance(inputs, tuple) else inputs
    package = recipe.package(model, pairs, tmp_path / "model.pt2")
    compare(example, model, package, (2, 33, 64, 777, 999, 1000, 1024))


@pytest.mark.slow
@needs_compiler
def test_aot_inductor_package_of_fixed_strides(simple_net, tmp_path):
    """One made on copies takes copies; on views, with other strides, it is wrong."""
    model = SineFirst(networks(simple_net)[0])
    inputs, _ = simple_net.event(50)
    tensors = soaview_torch.tensors(*inputs, copy=True)
    program = torch.export.export(model, tuple(tensors), dynamic_shapes=dynamic(tensors))
    torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "fixed.pt2"))
    package = torch._inductor.aoti_load_package(str(tmp_path / "fixed.pt2"))
    compare(simple_net, model, package, [2, 999], copy=True)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):  # as torch 2.13 does
        compare(simple_net, model, package, [999])


class Function(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_autocast_and_bfloat16(simple_net):
    """Results of another precision are refused by name, and written where a column has it."""
    model, _ = networks(simple_net)
    (soa, inputs), (out, _) = simple_net.event(33)
    soaview_torch.forward(model, (soa, inputs), (out, Spec(y=["reco_pt"])))
    wanted = out["reco_pt"].copy()
    half = Layout([Column("y", "bfloat16")]).allocate(33)

    def cast(features):
        with torch.autocast("cpu", torch.bfloat16):
            return model(features)

    low = copy.deepcopy(model).bfloat16()
    for network in (cast, lambda features: low(features.bfloat16())):
        with pytest.raises(TypeError, match="'y': got dtype bfloat16, expected float32; convert"):
            soaview_torch.forward(network, (soa, inputs), (out, Spec(y=["reco_pt"])))
        widened = torch.nn.Sequential(Function(network), Function(torch.Tensor.float))
        soaview_torch.forward(widened, (soa, inputs), (out, Spec(y=["reco_pt"])))
        np.testing.assert_allclose(out["reco_pt"], wanted, atol=0.02)
        soaview_torch.forward(network, (soa, inputs), (half, Spec(y=["y"])), batch_size=10)
        np.testing.assert_allclose(half["y"].astype("f4"), out["reco_pt"])
    # Columns of bfloat16 go into a model of bfloat16 as they are.
    layout = Layout([Column(name, "bfloat16") for name in ("pt", "eta", "phi")])
    lower = layout.allocate(33)
    for name in layout.starts:
        lower[name][:] = soa[name]
    soaview_torch.forward(low, (lower, inputs), (half, Spec(y=["y"])))
    np.testing.assert_allclose(half["y"].astype("f4"), wanted, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 33, 1024])
def test_onnx_binding(simple_net, rows):
    """ONNX Runtime reads the columns where they lie, and writes the column of results."""
    recipe = importlib.import_module("onnx_binding")
    _, session = recipe.sessions(recipe.simple_net_layers())
    (soa, spec), (out, to) = simple_net.event(rows)
    binding = recipe.bind(session, (soa, spec), (out, to))
    for _ in range(2):  # what is written into the SoA is seen
        session.run_with_iobinding(binding)
        made = out["reco_pt"].copy()
        out.buffer.root[:] = 0
        soaview_torch.forward(networks(simple_net)[0], (soa, spec), (out, to))
        np.testing.assert_allclose(made, out["reco_pt"], rtol=1e-5, atol=1e-6)
        soa["eta"][:] += 1
    [there] = binding.get_outputs()
    assert there.data_ptr() == out["reco_pt"].ctypes.data


@pytest.mark.slow
def test_what_onnx_cannot_bind(simple_net):
    """Columns that are no neighbours, and results in read-only memory, are refused by name."""
    recipe = importlib.import_module("onnx_binding")
    _, session = recipe.sessions(recipe.simple_net_layers())
    (soa, spec), (out, to) = simple_net.event(33)
    names = "pt", "a", "eta", "b", "phi"
    apart = Layout([Column(name, "float32") for name in names]).allocate(33)
    const = out.layout.wrap(bytes(out.buffer.root), 33)
    for inputs, outputs, match in (
        ((apart, spec), (out, to), "'features' is not dense .*neighbouring columns"),
        ((soa, spec), (apart, Spec(reco_pt=["a", "b"])), "'reco_pt' is not dense"),
        ((soa, spec), (const, to), "'reco_pt': its memory is read-only"),
    ):
        with pytest.raises(BufferError, match=match):
            recipe.bind(session, inputs, outputs)


@pytest.mark.slow
def test_columns_first(simple_net):
    """The surgery is right for every node that reads the input, and for other inputs none."""
    recipe = importlib.import_module("onnx_binding")
    helper, kind = recipe.helper, recipe.TensorProto.FLOAT
    nodes = [
        helper.make_node("Add", ["x", "x"], ["twice"]),
        helper.make_node("Sub", ["twice", "other"], ["less"]),
        helper.make_node("Mul", ["less", "x"], ["y"]),
    ]
    given = [helper.make_tensor_value_info(name, kind, ["rows", 2]) for name in ("x", "other")]
    result = helper.make_tensor_value_info("y", kind, ["rows", 2])
    graph = helper.make_graph(nodes, "model", given, [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    changed = recipe.columns_first(model, "x").SerializeToString()
    session = recipe.onnxruntime.InferenceSession(changed, providers=["CPUExecutionProvider"])
    x, other = np.arange(6, dtype="f4").reshape(3, 2), np.ones((3, 2), "f4")
    [y] = session.run(None, {"x": x.T.copy(), "other": other})
    np.testing.assert_array_equal(y, (2 * x - 1) * x)


@pytest.mark.slow
def test_the_onnx_example_runs(simple_net, capsys):
    """It says how far it is from the graph on a copy."""
    importlib.import_module("onnx_binding").main()
    assert capsys.readouterr().out.count("rows: off by") == 4


@pytest.mark.slow_but_every(5)
def test_jax_export(example):
    """`jax.export` with a symbolic row count, saved and loaded, run on SoAs of other counts."""
    _, function = networks(example)
    inputs, _ = example.event(50)
    pairs = [inputs] if isinstance(inputs, tuple) else inputs
    arrays = [a for soa, spec in pairs for a in soaview_jax.arrays(soa, spec, copy=True)]
    scope = jax.export.SymbolicScope()
    symbols = {count: f"n{number}" for number, count in enumerate({len(a) for a in arrays})}
    shapes = [
        jax.ShapeDtypeStruct(
            jax.export.symbolic_shape(
                ", ".join([symbols[len(a)], *map(str, a.shape[1:])]), scope=scope
            ),
            a.dtype,
        )
        for a in arrays
    ]
    exported = jax.export.export(jax.jit(function))(*shapes)
    loaded = jax.export.deserialize(exported.serialize())
    for rows in (2, 33, 64):
        inputs, (soa, spec) = example.event(rows)
        soaview_jax.forward(function, inputs, (soa, spec))
        wanted = {name: soa[name].copy() for name in soa}
        soa.buffer.root[:] = 0
        soaview_jax.forward(loaded.call, inputs, (soa, spec))
        for name, values in wanted.items():
            np.testing.assert_allclose(soa[name], values, rtol=1e-5, atol=1e-6)
