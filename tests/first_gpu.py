"""What soaview claims of GPUs, one line each: HOLDS, BROKEN, ERROR or SKIP.

`python tests/first_gpu.py [group ...]` from the root of a checkout, in about two minutes. Each
group has a process of its own, which is ended after a while. It exits with 1 if anything is BROKEN
or an ERROR. `--verbose` shows what else is printed. `--dry` runs the same code on the host's memory
with a stand-in for torch.cuda: that shows that the script has no slips, and nothing about a GPU.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import weakref
from contextlib import contextmanager, nullcontext

sys.path.insert(0, os.getcwd())
DRY = "--dry" in sys.argv
LIMITS = {
    "torch": 60,
    "donate": 35,
    "donate_soa": 45,
    "races": 70,
    "jax": 150,
    "lifetimes": 40,
    "graph": 40,
    "cupy": 60,
    "cost": 50,
}
CLAIMS: dict[str, list] = {group: [] for group in LIMITS}
N = 1 << (12 if DRY else 20)


class Skip(Exception):  # noqa: N818 - no error
    pass


def claim(group, text):
    def add(function):
        CLAIMS[group].append((function, text))
        return function

    return add


def gpu_only(function):
    """A claim that the host cannot even try."""

    def run():
        if DRY:
            raise Skip("dry")
        return function()

    return run


def check(found, detail=""):
    if not found:
        raise AssertionError(detail or "no")


# ---------------------------------------------------------------- what the claims share


def load(with_jax=False, with_cupy=False):
    global torch, cuda, np, DEV, sv, st, LAYOUT, X, XY, jax, jnp, sj, cupy
    import numpy as np
    import torch

    DEV = "cpu" if DRY else "cuda:0"
    cuda = Pretend() if DRY else torch.cuda
    if not DRY and not torch.cuda.is_available():
        raise Skip("no GPU that torch sees")
    import soaview as sv
    import soaview_torch as st

    LAYOUT = sv.Layout([sv.Column("x", "float32"), sv.Column("y", "float32")])
    X, XY = sv.Spec(x="x"), sv.Spec(xy=["x", "y"])
    if with_jax:
        import jax
        import jax.numpy as jnp

        import soaview_jax as sj

        if not DRY and jax.default_backend() != "gpu":
            raise Skip(f"JAX's backend is {jax.default_backend()}")
    if with_cupy:
        try:
            import cupy

            cupy.zeros(1)
        except Exception as error:
            raise Skip(f"no CuPy: {error}") from None


class Pretend:
    """Enough of torch.cuda for a dry run."""

    class Stream:
        cuda_stream = 64

        def __init__(self, *a, **k):
            pass

        def wait_stream(self, other):
            pass

        def synchronize(self):
            pass

        def query(self):
            return False

    def current_stream(self, *a):
        return self.Stream()

    def stream(self, s):
        return nullcontext()

    def _sleep(self, n):
        pass

    def synchronize(self, *a):
        pass

    def set_sync_debug_mode(self, mode):
        pass

    def reset_peak_memory_stats(self):
        pass

    def memory_allocated(self):
        return 0

    def max_memory_allocated(self):
        return 0

    def device_count(self):
        return 1

    def current_device(self):
        return 0


def lag(milliseconds=300):
    """Keep torch's current stream busy; bounded, about 1.5 GHz."""
    cuda._sleep(int(milliseconds * 1.5e6))


def filled(value=0.0, rows=N):
    soa = st.empty(LAYOUT, rows, device=DEV)
    st.tensors(soa, sv.Spec(x="x", y="y"))
    soa.buffer.owner.zero_()
    for t in st.tensors(soa, sv.Spec(x="x", y="y")):
        t.fill_(value)
    return soa


def bare(rows=N):
    return torch.zeros(LAYOUT.nbytes(rows), dtype=torch.uint8, device=DEV)


def pointed(owner, rows=N, **more):
    if DRY:
        more.pop("stream", None)
    return LAYOUT.from_pointer(owner.data_ptr(), rows, device=DEV, owner=owner, **more)


@contextmanager
def no_syncs():
    cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        cuda.set_sync_debug_mode("default")


# ---------------------------------------------------------------- torch


@claim("torch", "a bare pointer can be the first that torch hears of CUDA")
def _():
    import ctypes

    if DRY:
        raise Skip("dry")
    rt = None
    for name in ("libcudart.so.13", "libcudart.so"):
        try:
            rt = ctypes.CDLL(name)
            break
        except OSError:
            pass
    if rt is None:
        raise Skip("no libcudart by that name")
    at = ctypes.c_void_p()
    check(rt.cudaMalloc(ctypes.byref(at), ctypes.c_size_t(LAYOUT.nbytes(1000))) == 0, "cudaMalloc")
    check(rt.cudaMemset(at, 0, ctypes.c_size_t(LAYOUT.nbytes(1000))) == 0, "cudaMemset")
    soa = LAYOUT.from_pointer(at.value, 1000, device=DEV, finalizer=lambda: rt.cudaFree(at))
    [x] = st.tensors(soa, X)
    check(x.data_ptr() == at.value and str(x.device) == DEV and x.sum().item() == 0, str(x.device))


@claim("torch", "wrap of a CUDA tensor: device, address, writable")
def _():
    owner = bare()
    soa = LAYOUT.wrap(owner, N)
    check(
        (soa.device, soa.readonly, soa.buffer.address) == (DEV, False, owner.data_ptr()), repr(soa)
    )


@claim("torch", "tensors alias, with SoA strides, and what is written into them is in the memory")
def _():
    owner = bare()
    soa = LAYOUT.wrap(owner, N)
    [xy] = st.tensors(soa, XY)
    pitch = LAYOUT.offset("y", N) // 4
    check(xy.data_ptr() == owner.data_ptr() and xy.stride() == (1, pitch), f"{xy.stride()}")
    xy[5, 1] = 7
    check(owner.view(torch.float32)[pitch + 5].item() == 7)


@claim("torch", "blocks, slices and their parts alias")
def _():
    blocks = sv.Blocks({"a": LAYOUT, "b": LAYOUT})
    owner = torch.zeros(blocks.nbytes({"a": 33, "b": 77}), dtype=torch.uint8, device=DEV)
    event = blocks.wrap(owner, {"a": 33, "b": 77})
    [x] = st.tensors(event["b"][3:9], X)
    first = blocks.offset("b", {"a": 33, "b": 77})
    check(x.data_ptr() == owner.data_ptr() + first + 12, "elsewhere")


@claim("torch", "empty(device='cuda') is aligned to 128; `to` there is the same SoA")
def _():
    soa = st.empty(LAYOUT, 33, device="cpu" if DRY else "cuda")
    check(soa.buffer.address % 128 == 0 and st.to(soa, soa.device) is soa, repr(soa))


@claim("torch", "there and back: the same bytes, of slices and blocks, too")
def _():
    host = LAYOUT.pack({"x": np.arange(1000, dtype="f4"), "y": -np.arange(1000, dtype="f4")})
    for one in (host, host[10:500], host[:0]):
        back = st.to(st.to(st.to(one, DEV)[:], DEV), "cpu")
        check((back["y"] == one["y"]).all() and len(back) == len(one))
    there = st.to(st.to(host, DEV)[7:99], "cpu")
    check((there["x"] == host["x"][7:99]).all())
    event = sv.Blocks({"a": LAYOUT, "b": LAYOUT}).allocate({"a": 3, "b": 1000})
    event["b"]["x"][:] = 4
    check((st.to(st.to(event, DEV), "cpu")["b"]["x"] == 4).all())


@claim("torch", "0 rows: pointer 0, and torch's own memory")
def _():
    [x] = st.tensors(LAYOUT.from_pointer(0, 0, device=DEV), X)
    [y] = st.tensors(st.empty(LAYOUT, 0, device=DEV), X)
    check(x.shape == y.shape == (0,) and str(x.device) == DEV)


class OnlyInterface:
    def __init__(self, tensor, **more):
        self.tensor, self.more = tensor, more

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": tuple(self.tensor.shape),
            "typestr": "|u1",
            "version": 3,
            "data": (self.tensor.data_ptr(), False),
            **self.more,
        }


@claim(
    "torch",
    "CUDA array interface without a stream: alias, owner kept while a tensor lives, then freed",
)
@gpu_only
def _():
    owner = OnlyInterface(bare())
    gone = weakref.ref(owner)
    at = owner.tensor.data_ptr()
    [x] = st.tensors(LAYOUT.wrap(owner, N), X)
    del owner
    gc.collect()
    check(gone() is not None and x.data_ptr() == at, "owner gone or copied")
    del x
    gc.collect()
    check(gone() is None, "never freed")


@claim("torch", "CUDA array interface or pointer with stream=1 (the legacy default, as CuPy gives)")
@gpu_only
def _():
    [x] = st.tensors(LAYOUT.wrap(OnlyInterface(bare(), stream=1), N), X)
    check(x.sum().item() == 0)


@claim("torch", "pointer with stream=2 (the thread's default)")
def _():
    [x] = st.tensors(pointed(bare(), stream=2), X)
    check(x.sum().item() == 0)


@claim("torch", "pointer with a stream: what is queued there is waited for")
def _():
    owner, side = bare(), cuda.Stream()
    side.wait_stream(cuda.current_stream())
    soa = pointed(owner, stream=side.cuda_stream)
    for value in (1.0, 2.0, 3.0):
        with cuda.stream(side):
            lag(40)
            owner.view(torch.float32).fill_(value)
        [x] = st.tensors(soa, X)
        check((x.cpu() == value).all().item(), "read too early")
        cuda.synchronize()


@claim("torch", "views speak to torch.from_dlpack and torch.as_tensor without a copy")
def _():
    soa = filled(2)
    [view] = sv.views(soa, XY)
    a = torch.from_dlpack(view)
    check(a.data_ptr() == soa.buffer.address and a.stride() == view.strides, "from_dlpack")
    if not DRY:
        b = torch.as_tensor(view, device=DEV)
        check(b.data_ptr() == soa.buffer.address and b.stride() == view.strides, "as_tensor")


@claim("torch", "tensors, write and forward never synchronize")
def _():
    soa, out = filled(1), filled(0)
    side = cuda.Stream()
    side.wait_stream(cuda.current_stream())
    with cuda.stream(side), no_syncs():
        for _ in range(2):
            [x] = st.tensors(soa, X)
            st.write(out, sv.Spec(y="y"), [x * 2])
            st.forward(lambda xy: xy.sum(1), (soa, XY), (out, X))
    cuda.synchronize()
    check(
        (st.tensors(out, X)[0] == 2).all().item()
        and (st.tensors(out, sv.Spec(y="y"))[0] == 2).all().item()
    )


@claim("torch", "write: scattered columns, and results over the SoA's own memory")
def _():
    soa = filled(1)
    x, y = st.tensors(soa, sv.Spec(x="x", y="y"))
    x.fill_(3)
    st.write(soa, sv.Spec(x="x", y="y"), [y, x])
    check((x == 1).all().item() and (y == 3).all().item(), "swapped wrong")
    st.write(soa, sv.Spec(a=["y", "x"]), [torch.stack([x, y], 1).clone()])
    check((x == 3).all().item() and (y == 1).all().item(), "scattered")


@claim("torch", "Linear on the (N, 16) strided view copies nothing (float32, bfloat16)")
def _():
    for dtype in ("float32", "bfloat16"):
        names = [f"c{i}" for i in range(16)]
        soa = st.empty(sv.Layout([sv.Column(n, dtype) for n in names]), N, device=DEV)
        soa.buffer.owner.zero_()
        [x] = st.tensors(soa, sv.Spec(x=names))
        x.copy_(torch.randn(N, 16, device=DEV))
        model = torch.nn.Linear(16, 32).to(DEV, x.dtype)
        with torch.no_grad():
            model(x), model(x.contiguous())
            cuda.synchronize()
            before = cuda.memory_allocated()
            cuda.reset_peak_memory_stats()
            got = model(x)
            extra = cuda.max_memory_allocated() - before - got.numel() * got.element_size()
            want = model(x.contiguous())
        tolerance = 1e-2 if dtype == "float32" else 0.1  # TF32 may be on
        check(torch.allclose(got, want, atol=tolerance, rtol=tolerance), f"{dtype}: wrong values")
        check(
            extra < x.numel() * x.element_size() / 2,
            f"{dtype}: {extra >> 20} MiB beside the result",
        )


@claim("torch", "jagged over device memory")
def _():
    soa = filled(1, 10)
    [x] = st.jagged(soa, X, counts=[4, 0, 6])
    check(x.sum(1).tolist() == [4, 0, 6])


@claim(
    "torch",
    "wrap, `tensors` and capsules of memory on another GPU than the current one",
)
@gpu_only
def _():
    if torch.cuda.device_count() > 1:
        [x] = st.tensors(st.empty(LAYOUT, 33, device="cuda:1"), X)
        check(str(x.device) == "cuda:1")
        return
    owner, real = bare(), (torch.cuda.current_device, torch.cuda.device)
    now = [1]

    class Guard:
        def __init__(self, device):
            self.number = torch.device(device).index

        def __enter__(self):
            now.append(self.number)

        def __exit__(self, *raised):
            now.pop()

    torch.cuda.current_device, torch.cuda.device = lambda: now[-1], Guard
    try:
        soa = LAYOUT.wrap(owner, N)
        [x] = st.tensors(soa, X)
        check(x.data_ptr() == owner.data_ptr())
        [view] = sv.views(soa, X)
        capsule = view.__dlpack__()
    except BufferError as error:
        check(False, str(error)[:200])
    finally:
        torch.cuda.current_device, torch.cuda.device = real
    del capsule


# ---------------------------------------------------------------- lifetimes in torch


@claim("lifetimes", "pinned: root, its slices and `tensors` are seen as pinned")
def _():
    host = st.empty(LAYOUT, N, pin_memory=not DRY)
    check(host.device == "cpu")
    if DRY:
        raise Skip("dry")
    for part in (host.buffer.root, host.buffer.root[4096:]):
        check(torch.from_numpy(part).is_pinned(), "not pinned")
    check(st.tensors(host, sv.Spec(y="y"))[0].is_pinned(), "tensor not pinned")


def pinned_then_dropped(make):
    host, one = make()
    one["x"][:] = 5
    st.to(one, DEV)  # so that nothing has to be allocated later
    cuda.synchronize()
    lag()
    there = st.to(one, DEV, non_blocking=True)
    early = not cuda.current_stream().query()
    at, size = host.buffer.owner.data_ptr(), host.buffer.owner.untyped_storage().nbytes()
    del host, one
    gc.collect()
    again = torch.empty(size, dtype=torch.uint8, pin_memory=not DRY)
    again.fill_(0)
    reused = again.data_ptr() == at
    cuda.synchronize()
    right = (st.tensors(there, X)[0] == 5).all().item()
    check(early, "`to(non_blocking=True)` waited")
    check(right, f"wrong values; pinned memory reused: {reused}")


@claim(
    "lifetimes",
    "to(non_blocking=True) from pinned returns early, and its memory may be dropped at once",
)
def _():
    pinned_then_dropped(lambda: (lambda h: (h, h))(st.empty(LAYOUT, N, pin_memory=not DRY)))


@claim("lifetimes", "the same of one block, which does not start where torch's block does")
def _():
    def make():
        rows = {"a": 64, "b": N}
        event = st.empty(sv.Blocks({"a": LAYOUT, "b": LAYOUT}), rows, pin_memory=not DRY)
        return event, event["b"]

    pinned_then_dropped(make)


@claim("lifetimes", "the same of a slice")
def _():
    pinned_then_dropped(lambda: (lambda h: (h, h[1000:]))(st.empty(LAYOUT, N, pin_memory=not DRY)))


def used_on_side(record):
    soa = filled(1)
    [x] = st.tensors(soa, X)
    cuda.synchronize()
    side, size, at = cuda.Stream(), soa.buffer.owner.untyped_storage().nbytes(), x.data_ptr()
    with cuda.stream(side):
        torch.empty_like(x)  # so that nothing has to be allocated later
        lag()
        y = x.clone()
    record(soa, x, side)
    del soa, x
    gc.collect()
    others = [torch.zeros(size, dtype=torch.uint8, device=DEV) for _ in range(4)]
    reused = any(o.data_ptr() <= at < o.data_ptr() + size for o in others)
    cuda.synchronize()
    check((y == 1).all().item(), f"overwritten; memory reused: {reused}")


@claim("lifetimes", "record_stream of a tensor of soaview's keeps torch's memory")
@gpu_only
def _():
    used_on_side(lambda soa, x, side: x.record_stream(side))


@claim("lifetimes", "record_stream of soa.buffer.owner keeps it (the way out)")
@gpu_only
def _():
    used_on_side(lambda soa, x, side: soa.buffer.owner.record_stream(side))


@claim("lifetimes", "everything is freed: 50 SoAs made and dropped leave no device memory")
def _():
    def once():
        soa = filled(1, 1000)
        st.forward(lambda x: x, (soa, X), (soa, sv.Spec(y="y")))
        st.to(soa, "cpu")

    once()
    gc.collect()
    before = cuda.memory_allocated()
    for _ in range(50):
        once()
    gc.collect()
    check(cuda.memory_allocated() <= before, f"{cuda.memory_allocated() - before} bytes left")


# ---------------------------------------------------------------- graphs


def captured(soa, warm):
    if warm:
        st.tensors(soa, X)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        [x] = st.tensors(soa, X)
        y = x * 2
    for value in (3, 4):
        soa.buffer.owner.view(torch.float32).fill_(value)
        graph.replay()
        torch.cuda.synchronize()
        check((y == 2 * value).all().item(), "replay is wrong")


@claim("graph", "`tensors` of torch's memory in a CUDA graph capture, used before")
@gpu_only
def _():
    captured(LAYOUT.wrap(bare(), N), True)


@claim("graph", "the same, first used in the capture")
@gpu_only
def _():
    captured(LAYOUT.wrap(bare(), N), False)


@claim("graph", "forward in a capture")
@gpu_only
def _():
    soa, out = filled(1), filled(0)
    run = lambda: st.forward(lambda x: x + 1, (soa, X), (out, X))  # noqa: E731
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    st.tensors(soa, X)[0].fill_(9)
    graph.replay()
    torch.cuda.synchronize()
    check((st.tensors(out, X)[0] == 10).all().item(), "replay is wrong")


@claim("graph", "`tensors` of a pointer with stream=, in a capture: our error, before CUDA's")
@gpu_only
def _():
    told = "nothing was raised"
    try:
        captured(pointed(bare(), stream=torch.cuda.Stream().cuda_stream), True)
    except BufferError as error:
        told = str(error)
    check("take the tensors before the capture" in told, told)
    return told


@claim("graph", "the way out: tensors taken before the capture, used in it")
@gpu_only
def _():
    owner = bare()
    [x] = st.tensors(pointed(owner, stream=torch.cuda.Stream().cuda_stream), X)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x * 2
    owner.view(torch.float32).fill_(4)
    graph.replay()
    torch.cuda.synchronize()
    check((y == 8).all().item(), "replay is wrong")


# ---------------------------------------------------------------- JAX


def host(array):
    return np.asarray(jnp.array(array))


@claim("jax", "JAX's name for the device is soaview's")
def _():
    soa = filled(1, 64)
    name = jax.jit(lambda s: s)(soa).device
    check(name == soa.device, f"{name}, {soa.device}, {jax.devices()[0].platform}")


@claim("jax", "arrays(copy=False): one column, and dense columns in column-major order, alias")
def _():
    soa = filled(2)
    x, xy = sj.arrays(soa, sv.Spec(x="x", xy=["x", "y"]))
    check(x.unsafe_buffer_pointer() == soa.buffer.address == xy.unsafe_buffer_pointer(), "copied")
    order = xy.format.layout.major_to_minor
    check(tuple(order) == (1, 0), f"major to minor is {order}")


@claim("jax", "column-major imports compute right: eager, in jit, by slices, in matmul")
def _():
    soa = filled(0, 4096)
    x, y = st.tensors(soa, sv.Spec(x="x", y="y"))
    x.copy_(torch.arange(4096, device=DEV))
    y.copy_(-torch.arange(4096, device=DEV))
    [a] = sj.arrays(soa, XY)
    w = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    want = torch.stack([x, y], 1).cpu().numpy()
    check(
        (host(a) == want).all()
        and (host(a[5]) == want[5]).all()
        and (host(a[:, 1]) == want[:, 1]).all(),
        "eager",
    )
    check((host(jax.jit(lambda a: a * 2)(a)) == want * 2).all(), "jit")
    with jax.default_matmul_precision("highest"):
        check(np.allclose(host(jax.jit(lambda a: a @ w)(a)), want @ np.asarray(w)), "matmul")


@claim("jax", "every dtype there and back, 64-bit types on and off")
def _():
    for wide in (True, False):
        with jax.enable_x64(wide):
            for dtype in (
                "bool",
                "int8",
                "int16",
                "int32",
                "int64",
                "uint8",
                "uint16",
                "uint32",
                "uint64",
                "float16",
                "bfloat16",
                "float32",
                "float64",
                "complex64",
                "complex128",
            ):
                layout = sv.Layout([sv.Column("v", dtype), sv.Column("w", dtype)])
                soa = st.to(
                    layout.pack(
                        {"v": np.arange(100) % 2 == 0, "w": np.zeros(100, bool)}
                        if dtype == "bool"
                        else {"v": np.arange(100).astype(dtype), "w": np.zeros(100, dtype)}
                    ),
                    DEV,
                )
                narrow = not wide and dtype in ("int64", "uint64", "float64", "complex128")
                passed = jax.jit(lambda s: s)(soa)
                back = jax.device_get(passed)
                want = st.to(soa, "cpu")
                check(
                    (np.asarray(back["v"]) == np.asarray(want["v"])).all(),
                    f"{dtype} through jit, x64 {wide}",
                )
                if not narrow:
                    [v] = sj.arrays(soa, sv.Spec(v="v"))
                    sj.write(soa, sv.Spec(w="w"), [v])
                    cuda.synchronize()
                    check((st.to(soa, "cpu")["w"] == want["v"]).all(), f"{dtype} write, x64 {wide}")


@claim("jax", "an SoA of torch's memory as an argument of jit, and updates out of it")
def _():
    soa = filled(2)
    f = jax.jit(lambda s: sj.update(s, sv.Spec(y="y"), [sj.arrays(s, X)[0] * 3]))
    out = f(soa)
    y, x = jax.jit(lambda s: sj.arrays(s, sv.Spec(y="y", x="x")))(out)
    check((host(y) == 6).all() and (host(x) == 2).all())
    check(out.device == soa.device, out.device)


@claim(
    "jax",
    "a layout without padding (alignment=4) on a device: arrays(copy=None), and as argument of jit",
)
def _():
    layout = sv.Layout(
        [sv.Column("a", "int32"), sv.Column("x", "float32"), sv.Column("b", "int32")], alignment=4
    )
    soa = st.empty(layout, 1001, device=DEV)
    soa.buffer.owner.zero_()
    for name in ("a", "x", "b"):
        [v] = sj.arrays(soa, sv.Spec(v=name), copy=None)
        check((host(v) == 0).all())
        spec = sv.Spec(v=name)
        more = jax.jit(lambda s, spec=spec: sj.arrays(s, spec)[0] + 1)(soa)
        check((host(more) == 1).all())


@claim("jax", "XLA imports what starts on 16, not 64, and so does arrays")
@gpu_only
def _():
    [x] = sj.arrays(filled(3)[4:], X)
    check((host(x) == 3).all(), "wrong values")
    t = torch.arange(1024, dtype=torch.float32, device=DEV)[4:]
    a = jax.dlpack.from_dlpack(t, copy=False)
    check(a.unsafe_buffer_pointer() == t.data_ptr() and (host(a + 1) == t.cpu().numpy() + 1).all())


@claim("jax", "write waits for JAX, and torch's stream has it: one and scattered columns")
def _():
    soa = filled(0)
    a = jnp.full((N, 2), 4.0).at[:, 1].set(5.0)
    sj.write(soa, sv.Spec(a=["y", "x"]), [a])
    x, y = st.tensors(soa, sv.Spec(x="x", y="y"))
    check((y == 4).all().item() and (x == 5).all().item())


@claim("jax", "what torch's stream has queued is waited for, in arrays and as argument of jit")
def _():
    owner, side = bare(), cuda.Stream()
    side.wait_stream(cuda.current_stream())
    soa, f = LAYOUT.wrap(owner, N), jax.jit(lambda s: sj.arrays(s, X)[0] + 0)
    f(soa).block_until_ready()
    for value in (1.0, 2.0, 3.0):
        with cuda.stream(side):
            lag(60)
            owner.view(torch.float32).fill_(value)
            a = host(sj.arrays(soa, X)[0])
            lag(60)
            owner.view(torch.float32).fill_(value + 10)
            b = host(f(soa))
        check((a == value).all(), "arrays read too early")
        check((b == value + 10).all(), "jit read too early")
        cuda.synchronize()


@claim(
    "jax", "memory that JAX owns: wrapped, read-only, torch copies it, JAX has it back where it was"
)
def _():
    made = jnp.ones(LAYOUT.nbytes(N) // 4, jnp.float32)
    soa = LAYOUT.wrap(made, N)
    check(soa.readonly and soa.device == DEV, repr(soa))
    check((st.tensors(soa, X, copy=None)[0] == 1).all().item(), "torch's copy")
    if not DRY:
        [x] = sj.arrays(soa, X)
        check(x.unsafe_buffer_pointer() == made.unsafe_buffer_pointer(), "elsewhere")


@claim("jax", "soaview_jax.forward from device SoA to device SoA, whole and in batches")
def _():
    soa, out = filled(2, 10_000), filled(0, 10_000)
    double = lambda xy: xy.sum(1)  # noqa: E731
    for size in (None, 3000):
        sj.forward(double, (soa, XY), (out, X), batch_size=size)
        check((st.tensors(out, X)[0] == 4).all().item(), f"batch_size={size}")


@claim("jax", "soaview_jax.forward from host SoA to host SoA where JAX has a GPU")
@gpu_only
def _():
    soa = LAYOUT.pack({"x": np.ones(100, "f4"), "y": np.zeros(100, "f4")})
    sj.forward(lambda x: x + 1, (soa, X), (soa, sv.Spec(y="y")))
    check((soa["y"] == 2).all())


@claim("jax", "the same under jax.default_device(cpu) (a way out)")
def _():
    soa = LAYOUT.pack({"x": np.ones(100, "f4"), "y": np.zeros(100, "f4")})
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        sj.forward(lambda x: x + 1, (soa, X), (soa, sv.Spec(y="y")))
    check((soa["y"] == 2).all())


@claim("jax", "soaview_jax.to(soa of torch's memory, its own device) makes memory of JAX's own")
@gpu_only
def _():
    soa = filled(2)
    there = sj.to(soa, jax.devices()[0])
    jax.block_until_ready(there)
    at = there.buffer.leaves[0].unsafe_buffer_pointer()
    check(at != soa.buffer.address, "it is torch's memory still")


@claim("jax", "copy=True is no alias")
def _():
    soa = filled(2)
    for spec in (X, XY, sv.Spec(x="y")):
        [x] = sj.arrays(soa, spec, copy=True, padded=True)
        at = x.unsafe_buffer_pointer()
        check(not soa.buffer.address <= at < soa.buffer.address + soa.buffer.nbytes, "alias")


# ---------------------------------------------------------------- races between JAX and torch


def burner():
    """What keeps JAX's stream busy for some 250 ms, and returns before."""
    size = 64 if DRY else 6144

    @jax.jit
    def run(a):
        b = a
        for _ in range(16):  # no loop of XLA's, for which the host may have to wait
            b = a @ b
        return b

    a = jnp.ones((size, size), jnp.float32) / size
    run(a).block_until_ready()
    begin = time.perf_counter()
    run(a).block_until_ready()
    each = time.perf_counter() - begin
    return lambda: [run(a) for _ in range(max(1, min(20, int(0.25 / each))))][-1]


def collect():
    """Let go of what Python and JAX have put aside."""
    gc.collect()
    jnp.zeros(8).__dlpack__()
    gc.collect()


@claim("races", "an SoA that goes right after jit(f)(soa): its memory is kept until f has read it")
def _():
    burn, f = burner(), jax.jit(lambda s: sj.arrays(s, X)[0] + 0)
    f(filled(1)).block_until_ready()
    cuda.synchronize()
    for _ in range(3):
        soa = filled(1)
        cuda.synchronize()
        busy = burn()
        y = f(soa)
        at, size = soa.buffer.address, soa.buffer.owner.untyped_storage().nbytes()
        del soa
        gc.collect()
        others = [torch.zeros(size, dtype=torch.uint8, device=DEV) for _ in range(4)]
        cuda.current_stream().synchronize()
        late = not y.is_ready()  # by now its memory has been written, if torch had it again
        reused = any(o.data_ptr() <= at < o.data_ptr() + size for o in others)
        right = (host(y) == 1).all()
        busy.block_until_ready()
        if not DRY:
            check(late, "f was done too early to tell")
        check(right, f"f has read other memory; torch reused it: {reused}")
    return f"torch reused the memory: {reused}"


@claim("races", "an array of `arrays` that goes while it is being read: likewise")
def _():
    burn, f = burner(), jax.jit(lambda x: x + 0)
    soa = filled(1)
    f(sj.arrays(soa, X)[0]).block_until_ready()
    cuda.synchronize()
    soa = filled(1)
    cuda.synchronize()
    [x] = sj.arrays(soa, X)
    at, size = soa.buffer.address, soa.buffer.owner.untyped_storage().nbytes()
    busy, y = burn(), f(x)
    del soa, x
    gc.collect()
    others = [torch.zeros(size, dtype=torch.uint8, device=DEV) for _ in range(4)]
    cuda.current_stream().synchronize()
    late = not y.is_ready()
    reused = any(o.data_ptr() <= at < o.data_ptr() + size for o in others)
    right = (host(y) == 1).all()
    busy.block_until_ready()
    if not DRY:
        check(late, "f was done too early to tell")
    check(right, f"it has read other memory; torch reused it: {reused}")
    return f"torch reused the memory: {reused}"


def written_and_dropped(spec, shape):
    make = jax.jit(lambda v: jnp.full(shape, v) + jnp.arange(shape[-1]) % 2, static_argnums=0)
    make(9.0).block_until_ready()
    out = filled(0)
    sj.write(out, spec, [make(9.0)])  # so that nothing has to be compiled later
    y = make(3.0).block_until_ready()
    want = torch.from_numpy(np.array(y))
    at = y.unsafe_buffer_pointer()
    cuda.synchronize()
    lag(500)
    sj.write(out, spec, [y])
    del y
    collect()
    others = [make(9.0).block_until_ready() for _ in range(8)]
    reused = any(o.unsafe_buffer_pointer() == at for o in others)
    cuda.synchronize()
    found = st.tensors(out, spec, copy=None)[0].cpu()
    check(
        (found == want).all().item(), f"wrong values were written; JAX reused the memory: {reused}"
    )
    return f"JAX reused the memory: {reused}"


@claim("races", "results that go right after soaview_jax.write: kept until torch has read them")
def _():
    return written_and_dropped(X, (N,))


@claim("races", "the same where write cuts the columns itself (scattered)")
def _():
    return written_and_dropped(sv.Spec(a=["y", "x"]), (N, 2))


# ---------------------------------------------------------------- donation


def donated(run):
    soa = filled(0)
    cuda.synchronize()
    message = ""
    try:
        jax.block_until_ready(run(soa))
    except Exception as error:
        message = f" ({type(error).__name__}: {str(error)[:100]})"
    cuda.synchronize()
    check(not soa.buffer.owner.any().item(), f"XLA has written the user's memory{message}")
    return message.strip() or "untouched"


@claim("donate", "an array of `arrays`, donated: the memory stays as it is")
def _():
    f = jax.jit(lambda x: x + 1, donate_argnums=0)
    return donated(lambda soa: f(sj.arrays(soa, X)[0]))


@claim(
    "donate",
    "without soaview, XLA writes into a torch tensor that is donated",
)
@gpu_only
def _():
    f = jax.jit(lambda x: x + 1, donate_argnums=0)
    t = torch.zeros(N, device=DEV)
    f(jax.dlpack.from_dlpack(t)).block_until_ready()
    cuda.synchronize()
    check(t.any().item(), "not written: this has been mended")


@claim("donate_soa", "an SoA of torch's memory, donated to jit(update): the memory stays as it is")
def _():
    f = jax.jit(lambda s: sj.update(s, X, [sj.arrays(s, X)[0] + 1]), donate_argnums=0)
    return donated(lambda soa: f(soa))


@claim("donate_soa", "the same after soaview_jax.to")
def _():
    f = jax.jit(lambda s: sj.update(s, X, [sj.arrays(s, X)[0] + 1]), donate_argnums=0)
    return donated(lambda soa: f(sj.to(soa, jax.devices()[0])))


def step(s):
    return sj.update(s, X, [sj.arrays(s, X)[0] + 1])


@claim("donate_soa", "an SoA that jax.device_put was given, without a device")
def _():
    return donated(lambda soa: jax.jit(step, donate_argnums=0)(jax.device_put(soa)))


@claim("donate_soa", "jax.device_put(soa, its own device) gives no protection")
@gpu_only
def _():
    soa = filled(0)
    f = jax.jit(step, donate_argnums=0)
    jax.block_until_ready(f(jax.device_put(soa, jax.devices()[0])))
    cuda.synchronize()
    check(soa.buffer.owner.any().item(), "not written: the documents can say so")


@claim("donate_soa", "an SoA that went through a jitted function as it was")
def _():
    through = jax.jit(lambda s: s)
    return donated(lambda soa: jax.jit(step, donate_argnums=0)(through(soa)))


@claim("donate_soa", "an SoA that JAX made can be donated, again and again")
def _():
    f = jax.jit(step, donate_argnums=0)
    soa = sj.to(filled(0), jax.devices()[0])
    for _ in range(3):
        soa = f(soa)
    check((host(sj.arrays(soa, X)[0]) == 3).all(), "wrong values")


# ---------------------------------------------------------------- CuPy and Numba


def cupy_memory():
    raw = cupy.zeros(LAYOUT.nbytes(N) + 512, cupy.uint8)
    first = -raw.data.ptr % 512
    return raw[first : first + LAYOUT.nbytes(N)]


@claim("cupy", "CuPy's memory: torch's tensors, CuPy's own view and JAX's arrays alias it")
def _():
    a = cupy_memory()
    soa = LAYOUT.wrap(a, N)
    check(not soa.readonly and soa.device == DEV, repr(soa))
    check(st.tensors(soa, X)[0].data_ptr() == a.data.ptr, "torch")
    [view] = sv.views(soa, XY)
    mine = cupy.from_dlpack(view)
    check(
        mine.data.ptr == a.data.ptr and mine.strides == tuple(4 * s for s in view.strides), "CuPy"
    )
    check(sj.arrays(soa, X)[0].unsafe_buffer_pointer() == a.data.ptr, "JAX")


@claim(
    "cupy", "what CuPy's current stream has queued is waited for, by torch and JAX, in every call"
)
def _():
    a = cupy_memory()
    soa, big = LAYOUT.wrap(a, N), cupy.ones(1 << 26, cupy.float32)
    st.tensors(soa, X), sj.arrays(soa, X)
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True):
        for value in (1, 2, 3):
            for _ in range(100):
                cupy.sin(big, out=big)
            a.view(cupy.float32)[...] = value
            [x] = st.tensors(soa, X)
            check((x.cpu() == value).all().item(), "torch read too early")
            for _ in range(100):
                cupy.sin(big, out=big)
            a.view(cupy.float32)[...] = value + 10
            check((host(sj.arrays(soa, X)[0]) == value + 10).all(), "JAX read too early")
            torch.cuda.synchronize()


@claim("cupy", "CuPy's CUDA array interface alone (stream 1) into torch")
def _():
    a = cupy_memory()

    class Only:
        @property
        def __cuda_array_interface__(self):
            return a.__cuda_array_interface__

    [x] = st.tensors(LAYOUT.wrap(Only(), N), X)
    check(x.data_ptr() == a.data.ptr)


@claim("cupy", "managed memory has its own name, and CuPy shows it")
def _():
    pointer = cupy.cuda.malloc_managed(LAYOUT.nbytes(N))
    a = cupy.ndarray((LAYOUT.nbytes(N),), cupy.uint8, pointer)
    a[...] = 0
    soa = LAYOUT.wrap(a, N)
    check(soa.device == "cuda_managed:0", f"{soa.device}, {a.__dlpack_device__()}")
    [view] = sv.views(soa, XY)
    mine = cupy.from_dlpack(view)
    check(mine.data.ptr == a.data.ptr and mine.sum() == 0, "elsewhere")
    try:
        st.tensors(soa, X)
    except BufferError as error:
        return str(error)


@claim("cupy", "what JAX wrote into CuPy's memory is there when `write` returns")
def _():
    a = cupy_memory()
    soa = LAYOUT.wrap(a, N)
    sj.write(soa, X, [jnp.full(N, 3.0)])
    check((cupy.asnumpy(a[: 4 * N].view(cupy.float32)) == 3).all(), "not written")


@claim("cupy", "Numba's device array into torch and JAX")
def _():
    try:
        from numba import cuda as numba_cuda

        d = numba_cuda.to_device(np.zeros(LAYOUT.nbytes(N), np.uint8))
    except Exception as error:
        raise Skip(f"no Numba: {str(error)[:80]}") from None
    soa = LAYOUT.wrap(d, N)
    at = d.__cuda_array_interface__["data"][0]
    check(st.tensors(soa, X)[0].data_ptr() == at, "torch")
    check(sj.arrays(soa, X)[0].unsafe_buffer_pointer() == at, "JAX")


# ---------------------------------------------------------------- what it costs


def medians(*calls, rounds=15, each=100):
    """Microseconds of each call, worked out by turns."""
    found = [[] for _ in calls]
    for _ in range(rounds + 1):
        for times, call in zip(found, calls, strict=True):
            begin = time.perf_counter()
            for _ in range(each):
                call()
            times.append((time.perf_counter() - begin) / each * 1e6)
            cuda.synchronize()
    return [statistics.median(times[1:]) for times in found]


@claim("cost", "`tensors` take no longer than torch.stack of 1000 rows of two columns")
def _():
    soa = filled(1, 1000)
    columns = st.tensors(soa, sv.Spec(x="x", y="y"))
    view, stack = medians(lambda: st.tensors(soa, XY), lambda: torch.stack(columns, 1))
    check(view <= stack, f"{view:.1f} us, stack {stack:.1f}")
    return f"{view:.1f} us, stack {stack:.1f}"


@claim("cost", "where a stream is waited for, at most three times torch's own wait for it more")
def _():
    owner, side = bare(), cuda.Stream()
    soa, same = pointed(owner, stream=side.cuda_stream), LAYOUT.wrap(owner, N)
    found = medians(
        lambda: st.tensors(soa, XY),
        lambda: st.tensors(same, XY),
        lambda: cuda.current_stream().wait_stream(side),
    )
    told = "{:.1f} us, without a stream {:.1f}, a wait {:.1f}".format(*found)
    check(DRY or found[0] <= found[1] + 3 * found[2], told)
    return told


@claim("cost", "`arrays` take at most four imports of JAX's, jit at most ten more")
def _():
    soa, f, g = filled(1), jax.jit(lambda s: sj.arrays(s, X)[0] + 0), jax.jit(lambda x: x + 0)
    own, tensor = jnp.zeros(N), torch.zeros(N, device=DEV)
    found = medians(
        lambda: sj.arrays(soa, X),
        lambda: jax.dlpack.from_dlpack(tensor, copy=False),
        lambda: f(soa),
        lambda: g(own),
    )
    told = "{:.0f} us, an import {:.0f}, jit of the SoA {:.0f}, of an array {:.0f}".format(*found)
    check(found[0] <= 4 * found[1] and (DRY or found[2] <= found[3] + 10 * found[1]), told)
    return told


@claim(
    "cost",
    "a view with a model is at least as fast as torch.stack with it, at 10^6 rows and 16 columns",
)
@gpu_only
def _():
    names = [f"c{i}" for i in range(16)]
    soa = st.empty(sv.Layout([sv.Column(n, "float32") for n in names]), N, device=DEV)
    soa.buffer.owner.zero_()
    columns = st.tensors(soa, sv.Spec({n: n for n in names}))
    model = torch.nn.Sequential(
        torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1)
    ).to(DEV)

    def waited(call):
        def run():
            call()
            cuda.synchronize()

        return run

    with torch.no_grad():
        ready = torch.stack(columns, 1)
        found = medians(
            waited(lambda: model(st.tensors(soa, sv.Spec(x=names))[0])),
            waited(lambda: model(torch.stack(columns, 1))),
            waited(lambda: model(ready)),
            each=5,
        )
    told = "view {:.0f} us, stack {:.0f}, contiguous and ready {:.0f}".format(*found)
    check(found[0] <= found[1] * 1.05, told)
    return told


# ---------------------------------------------------------------- running them


def run_group(group):
    faulthandler.enable()
    faulthandler.dump_traceback_later(LIMITS[group] - 3, exit=True)
    needs_jax = group in ("jax", "races", "donate", "donate_soa", "cupy", "cost")
    why = None
    try:
        load(with_jax=needs_jax, with_cupy=group == "cupy" and not DRY)
        if DRY and group == "cupy":
            why = "dry"
    except Skip as skip:
        why = str(skip)
    except ImportError as error:
        why = f"cannot import: {error}"
    for number, (function, text) in enumerate(CLAIMS[group]):
        tell(group, number, "START", "", "")
        begin, detail = time.perf_counter(), ""
        if why is not None:
            state, detail = "SKIP", why
        else:
            try:
                detail = function() or ""
                state = "HOLDS"
            except Skip as skip:
                state, detail = "SKIP", str(skip)
            except AssertionError as error:
                state, detail = "BROKEN", str(error)
            except Exception as error:
                state, detail = "ERROR", f"{type(error).__name__}: {str(error)[:200]}"
                if DRY:
                    import traceback

                    traceback.print_exc()
        detail = " ".join(str(detail).split())
        tell(
            group,
            number,
            state,
            text,
            (f" [{detail}]" if detail else "") + f" {time.perf_counter() - begin:.1f}s",
        )
        gc.collect()


def tell(group, number, state, text, more):
    print(f"@@{group}\t{number}\t{state:<6} {group}/{number} {text}{more}", flush=True)


def main():
    asked = [a for a in sys.argv[1:] if not a.startswith("--")]
    if "--group" in sys.argv:
        return run_group(asked[0])
    counts: dict[str, int] = {}
    import importlib.metadata as meta

    for name in ("torch", "jax", "jaxlib", "cupy-cuda13x", "numpy", "numba-cuda"):
        try:
            print(name, meta.version(name), end="  ")
        except meta.PackageNotFoundError:
            print(name, "absent", end="  ")
    print(f"python {sys.version.split()[0]}", flush=True)
    for group in asked or list(LIMITS):
        command = [
            sys.executable,
            os.path.abspath(__file__),
            group,
            "--group",
            *(["--dry"] if DRY else []),
        ]
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        timer = threading.Timer(LIMITS[group], lambda pid=child.pid: os.killpg(pid, signal.SIGKILL))
        timer.start()
        seen, started, other = set(), None, []
        for line in child.stdout:
            if not line.startswith("@@"):
                other.append(line.rstrip())
                continue
            _, number, text = line[2:].rstrip("\n").split("\t", 2)
            if text.startswith("START"):
                started = int(number)
                continue
            seen.add(int(number))
            print(text, flush=True)
            counts[text[:6].strip()] = counts.get(text[:6].strip(), 0) + 1
        code = child.wait()
        timer.cancel()
        for number, (_, text) in enumerate(CLAIMS[group]):
            if number not in seen:
                what = "here" if number == started else "not reached"
                print(
                    f"ERROR  {group}/{number} {text} [process ended with {code}, {what}]",
                    flush=True,
                )
                counts["ERROR"] = counts.get("ERROR", 0) + 1
        if code != 0 or "--verbose" in sys.argv or DRY:
            for line in other[-25:]:
                print("    |", line[:240])
    print(", ".join(f"{count} {state}" for state, count in sorted(counts.items())), flush=True)
    return int("BROKEN" in counts or "ERROR" in counts)


if __name__ == "__main__":
    sys.exit(main())
