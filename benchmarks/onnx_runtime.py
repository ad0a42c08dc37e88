"""ONNX Runtime on an SoA's own memory, and on copies: `python benchmarks/onnx_runtime.py`.

The bindings are those of `examples/onnx_binding.py`, of its network and of one linear layer with
eight inputs, where a copy is most of the work. What people write is a stack of the columns, `run`,
and an assignment of its result to the column; or the same with a view of the columns, which `run`
copies. On the other side the SoAs are bound, once or anew in every call. One thread, and its
time on the CPU; all run interleaved, round by round; a ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from measure import keep_freed_memory, medians

from soaview import Column, Layout, Spec, views

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
EIGHT = Layout([Column(f"x{number}", "float32") for number in range(8)])


def networks() -> dict[str, tuple[Any, Callable[[int], Any]]]:
    """Layers, and what goes in and out, by row count."""
    import onnx_binding
    import simple_net

    random = np.random.default_rng(0)
    linear = random.normal(size=(1, 8)).astype("f4"), np.ones(1, "f4")

    def eight(rows: int) -> Any:
        values = {name: random.normal(size=rows).astype("f4") for name in EIGHT}
        inputs = EIGHT.pack(values), Spec(features=[*EIGHT])
        return inputs, (simple_net.SIMPLE_NET.allocate(rows), simple_net.OUTPUTS)

    return {
        "SimpleNet": (onnx_binding.simple_net_layers(), simple_net.event),
        "linear": ([linear], eight),
    }


def ways(layers: Any, event: Callable[[int], Any], rows: int) -> dict[str, Callable[[], object]]:
    """Each of them writes the same values into the column of results."""
    import onnx_binding

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session, by_columns = onnx_binding.sessions(layers, options)
    inputs, outputs = event(rows)
    columns, result = [*inputs[0].values()], outputs[0]["reco_pt"]
    view, once = views(*inputs)[0].numpy(), onnx_binding.bind(by_columns, inputs, outputs)

    def stack() -> None:
        result[:] = session.run(None, {"features": np.stack(columns, axis=1)})[0][:, 0]

    def of_view() -> None:
        result[:] = session.run(None, {"features": view})[0][:, 0]

    found: dict[str, Callable[[], object]] = {
        "stack": stack,
        "view": of_view,
        "anew": lambda: by_columns.run_with_iobinding(
            onnx_binding.bind(by_columns, inputs, outputs)
        ),
        "once": lambda: by_columns.run_with_iobinding(once),
    }
    stack()
    wanted = result.copy()
    for call in found.values():
        result[:] = 0
        call()
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-6)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=10**6, help="the largest row count")
    asked = parser.parse_args()
    keep_freed_memory()
    print(f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}\n")
    ratios = "stack / once | view / once | stack / anew | view / anew"
    print(f"| network | rows | bound once, us | {ratios} |")
    print("|---|---|---|---|---|---|---|")
    for name, network in networks().items():
        for rows in (10**3, 10**5, 10**6):
            if rows <= asked.most:
                found = medians(ways(*network, rows), rounds=31, clock=time.process_time)
                pairs = [(way, by) for by in ("once", "anew") for way in ("stack", "view")]
                cells = [f"{found[way] / found[by]:.2f}" for way, by in pairs]
                print(f"| {name} | {rows} | {found['once'] * 1e6:.0f} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
