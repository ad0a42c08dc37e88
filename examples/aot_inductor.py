"""One AOTInductor package for all row counts: `python examples/aot_inductor.py`.

A package reads its inputs with the strides of the example that it was made with, unless torch has
found them to vary. So all axes are declared to vary, and no two numbers of the example are equal by
chance: at 128 k + 4 rows the pitch is another one for each item size, and never the row count.
"""

from __future__ import annotations

import tempfile

import masked_net
import numpy as np
import torch
from both import networks
from torch.export import Dim

import soaview_torch

EXAMPLE_ROWS = 7 * 128 + 4  # another k for an SoA with another row count


def package(model, inputs, path):
    """Compile the model into a package, and load it; inputs are an example's pairs."""
    tensors = [t for pair in inputs for t in soaview_torch.tensors(*pair)]
    counts = enumerate({len(soa) for soa, _ in inputs} - {1})  # one row stays one
    rows = {1: None, **{count: Dim(f"rows{i}", min=2) for i, count in counts}}
    shapes = tuple(
        {axis: rows[length] if axis == 0 else Dim.AUTO for axis, length in enumerate(t.shape)}
        for t in tensors
    )
    program = torch.export.export(model, tuple(tensors), dynamic_shapes=shapes)
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return torch._inductor.aoti_load_package(str(path))


def main() -> None:
    """Package a network, and compare it at other row counts than the example's."""
    model, _ = networks(masked_net)
    with tempfile.TemporaryDirectory() as folder:
        packaged = package(model, masked_net.event(EXAMPLE_ROWS)[0], f"{folder}/net.pt2")
        for rows in (300, 777, 1024):
            inputs, (soa, spec) = masked_net.event(rows)
            soaview_torch.forward(model, inputs, (soa, spec))
            wanted = soa["reco_pt"].copy()
            soaview_torch.forward(packaged, inputs, (soa, spec))
            print(f"{rows} rows: off by {np.abs(soa['reco_pt'] - wanted).max():.1e}")


if __name__ == "__main__":
    main()
