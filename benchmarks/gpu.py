"""Views, stacks and transfers on a GPU: `python benchmarks/gpu.py`, on a machine that has one.

16 float32 columns on the device. Against them: `torch.stack` of the columns there; the round trip
by the host, where NumPy stacks them; and, for `to`, one plain copy of as many bytes from pinned
memory, and a copy for every column. What is compared runs interleaved, round by round; a ratio is
that of the medians. Every call is waited for. `--device cpu` only shows that it runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from measure import medians

from soaview import Column, Layout, Spec
from soaview_torch import empty, tensors, to

NAMES = [f"x{i}" for i in range(16)]
LAYOUT = Layout([Column(name, "float32") for name in NAMES])
SPEC = Spec(x=NAMES)


def compare(rows: int, device: torch.device) -> list[float]:
    """One line of the table."""
    on_gpu = device.type == "cuda"
    host = empty(LAYOUT, rows, pin_memory=on_gpu)
    host.buffer.root.view(np.float32)[:] = 1
    soa = to(host, device) if on_gpu else host
    [x] = tensors(soa, SPEC)
    columns = tensors(soa, Spec({name: name for name in NAMES}))
    sources = tensors(host, Spec({name: name for name in NAMES}))
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    model = model.to(device)
    plain = torch.empty(soa.buffer.nbytes, dtype=torch.uint8, device=device)
    bytes_of_host = torch.from_numpy(host.buffer.root)

    def by_host() -> torch.Tensor:
        stacked = np.stack([column.cpu().numpy() for column in columns], axis=1)
        return model(torch.from_numpy(stacked).to(device))

    ways: dict[str, Callable[[], object]] = {
        "view": lambda: tensors(soa, SPEC),
        "stack": lambda: torch.stack(columns, dim=1),
        "view, model": lambda: model(tensors(soa, SPEC)[0]),
        "stack, model": lambda: model(torch.stack(columns, dim=1)),
        "host, model": by_host,
        "ready, model": lambda: model(x),
        "to": lambda: to(host, device) if on_gpu else plain.copy_(bytes_of_host),
        "copy": lambda: plain.copy_(bytes_of_host, non_blocking=True),
        "columns": lambda: [column.to(device, copy=True) for column in sources],
    }

    def waited(call: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            call()
            if on_gpu:
                torch.cuda.synchronize(device)

        return run

    with torch.no_grad():
        calls = {way: waited(call) for way, call in ways.items()}
        found = medians(calls, rounds=30 if rows < 10**7 else 5, repeat=1)
    return [
        found["view"] * 1e6,
        found["stack"] / found["view"],
        found["stack, model"] / found["view, model"],
        found["host, model"] / found["view, model"],
        found["view, model"] / found["ready, model"],
        found["copy"] / found["to"],
        found["columns"] / found["to"],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--most", type=int, default=10**8, help="rows at most")
    chosen = parser.parse_args()
    device = torch.empty(0, device=chosen.device).device
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; --device cpu runs it without one")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    print(f"{name}, torch {torch.__version__}, numpy {np.__version__}\n")
    print("| rows | view, us | stack / view | with model: stack / view | host / view "
          "| view / ready | one copy / `to` | by column / `to` |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    rows = 1000
    while rows <= chosen.most:
        view, *ratios = compare(rows, device)
        print(f"| {rows} | {view:.1f} | {' | '.join(f'{r:.2f}' for r in ratios)} |", flush=True)
        rows *= 10


if __name__ == "__main__":
    main()
