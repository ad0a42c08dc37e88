"""ONNX Runtime on an SoA's own memory, in and out: `python examples/onnx_binding.py`.

Its bindings take an address and a shape, but no strides. Columns with their padding are dense: a
matrix (columns, padded rows), which is what the graph reads behind a `Transpose`. A column is where
its result goes. Both have padded rows, of which the first ones are valid.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import simple_net
from both import networks
from onnx import TensorProto, helper, numpy_helper

from soaview import views


def graph_of(layers):
    """Dense layers as people have them in a file: `features`, (rows, columns), to `reco_pt`."""
    nodes, numbers, given = [], [], "features"
    for number, (weight, bias) in enumerate(layers, start=1):
        names = f"weight{number}", f"bias{number}"
        numbers += map(numpy_helper.from_array, (weight, bias), names)
        made = "reco_pt" if number == len(layers) else f"layer{number}"
        nodes.append(helper.make_node("Gemm", [given, *names], [made], transB=1))
        if number < len(layers):
            nodes.append(helper.make_node("Relu", [made], [given := f"relu{number}"]))
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", count])]
        for name, count in (("features", layers[0][0].shape[1]), ("reco_pt", len(layers[-1][0])))
    ]
    graph = helper.make_graph(nodes, "dense", *ends, numbers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def columns_first(model, name):
    """Any graph whose input of this name, (rows, columns), is given as (columns, rows) instead."""
    graph = model.graph
    for node in graph.node:
        node.input[:] = [f"{name}.rows" if given == name else given for given in node.input]
    graph.node.insert(0, helper.make_node("Transpose", [name], [f"{name}.rows"], perm=[1, 0]))
    [tensor] = [given.type.tensor_type for given in graph.input if given.name == name]
    tensor.shape.dim.reverse()
    onnx.checker.check_model(model)
    return model


def bind(session, inputs, outputs):
    """The SoAs' memory as what a session reads and writes; they must live as long as this does."""
    binding = session.io_binding()
    for view in views(*inputs, padded=True):
        binding.bind_input(*dense(view, view.numpy().T))
    for view in views(*outputs, padded=True):
        column = view.numpy()
        if not column.flags.writeable:
            raise BufferError(f"tensor {view.name!r}: its memory is read-only")
        binding.bind_output(*dense(view, column))
    return binding


def dense(view, matrix):
    """What a binding takes of memory that has neither strides nor gaps."""
    if not matrix.flags.c_contiguous:
        raise BufferError(
            f"tensor {view.name!r} is not dense (strides {view.strides}, in elements): give "
            f"neighbouring columns, and one for results"
        )
    return view.name, "cpu", 0, matrix.dtype, matrix.shape, matrix.ctypes.data


def sessions(layers, options=None):
    """The graph as it is, and with columns first."""
    graphs = graph_of(layers), columns_first(graph_of(layers), "features")
    on = ["CPUExecutionProvider"]
    return [onnxruntime.InferenceSession(g.SerializeToString(), options, on) for g in graphs]


def simple_net_layers():
    """Weights and biases of the example's network."""
    weights = {name: value.numpy() for name, value in networks(simple_net)[0].state_dict().items()}
    return [(weights[f"{n}.weight"], weights[f"{n}.bias"]) for n in ("first", "second", "last")]


def main() -> None:
    """Bind SoAs, and compare the results with those of the graph as it is, on a copy."""
    rows_first, by_columns = sessions(simple_net_layers())
    for rows in (1, 300, 1000, 1024):
        inputs, (soa, spec) = simple_net.event(rows)
        by_columns.run_with_iobinding(bind(by_columns, inputs, (soa, spec)))
        [features] = views(*inputs)
        [wanted] = rows_first.run(None, {"features": np.ascontiguousarray(features)})
        print(f"{rows} rows: off by {np.abs(soa['reco_pt'] - wanted[:, 0]).max():.1e}")


if __name__ == "__main__":
    main()
