"""Who waits for whom where several streams use an SoA's memory, and on which device."""

from __future__ import annotations

import contextlib

import numpy as np
import places
import pytest
import torch
from cases import filled
from torch.utils._python_dispatch import TorchDispatchMode

from soaview import Column, Layout, Scalar, Spec, Value, _frameworks, views
from soaview._device import DeviceBuffer
from soaview._dlpack import DeviceMemory
from soaview._frameworks import show
from soaview_torch import tensors, to, write

NEEDS = ["torch"]

LAYOUT = Layout(
    [Column("x", "float32"), Column("y", "float32"), Column("k", "int64"), Scalar("n", "int32")]
)
SPEC = Spec(xy=["x", "y"], k="k", x="x", n=Value("n"))


class Streams:
    """In place of torch's streams: what is waited for is noted in `seen`."""

    def __init__(self, monkeypatch, current=0):
        self.seen, self.cuda_stream, self.capturing = [], current, False
        for name, stand_in in {
            "current_stream": lambda device: self,
            "default_stream": lambda device: ("the default", str(device)),
            "ExternalStream": lambda number, device: (number, str(device)),
            "is_current_stream_capturing": lambda: self.capturing,
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)

    def wait_stream(self, other):
        self.seen.append(("waits for", other))


class Producer:
    """What is asked for a capsule, and for which stream."""

    def __init__(self, seen):
        self.seen = seen

    def __dlpack__(self, *, stream):
        self.seen.append(("asked for", stream))


def waiter(source=None, stream=None):
    """What lets torch's current stream wait for the producer of memory on cuda:1."""
    there = DeviceMemory(1 << 40, 1 << 20, False, 2, 1, stream, None, source)
    return DeviceBuffer(there, 1 << 20, 16).waiter("torch", torch.device("cuda:1"))


def test_who_waits_for_whom(monkeypatch):
    """Torch's current stream waits for the producer's in every call; torch's own are the user's."""
    streams = Streams(monkeypatch)
    waiter(stream=7)()
    waiter(Producer(streams.seen))()
    streams.cuda_stream = 9
    waiter(Producer(streams.seen))()
    assert streams.seen == [("waits for", (7, "cuda:1")), ("asked for", 1), ("asked for", 9)]
    assert waiter(torch.zeros(1)) is None
    assert waiter() is None
    with pytest.raises(BufferError, match="who writes the memory on cuda:1 does not tell when"):
        waiter(np.zeros(1))()  # which knows nothing of streams


@pytest.mark.parametrize(("hip", "default"), [(None, 1), ("6.4", 0)])
def test_the_default_stream(monkeypatch, hip, default):
    """Its number is 1 by the protocols, 0 on ROCm, and torch knows it by neither."""
    monkeypatch.setattr(torch.version, "hip", hip)
    streams = Streams(monkeypatch)
    waiter(stream=default)()
    waiter(stream=2)()
    assert streams.seen == [
        ("waits for", ("the default", "cuda:1")),
        ("waits for", (2, "cuda:1")),
    ]


def test_streams_of_pointers():
    """CUDA has no stream 0, ROCm has; other devices have none."""
    for device, stream in (("cuda:0", 1), ("rocm:0", 0), ("rocm:0", 5), ("cuda_managed:0", 2)):
        soa = LAYOUT.from_pointer(1 << 40, 5, device=device, stream=stream)
        assert soa.buffer.memory.stream == stream
    with pytest.raises(ValueError, match="stream must be a positive integer, got 0: 1 is the leg"):
        LAYOUT.from_pointer(1 << 40, 5, device="cuda:0", stream=0)
    with pytest.raises(ValueError, match="a stream is CUDA's or ROCm's; the memory is on metal"):
        LAYOUT.from_pointer(1 << 40, 5, device="metal", stream=1)


def test_a_graph_that_is_captured_waits_for_nobody(monkeypatch):
    """CUDA forbids that; the error comes before CUDA's, which would spoil the capture."""
    streams = Streams(monkeypatch)
    streams.capturing = True
    for wait in (waiter(stream=7), waiter(Producer(streams.seen))):
        with pytest.raises(BufferError, match=r"on cuda:1; take the tensors before the capture"):
            wait()
    assert streams.seen == []


class At:
    """In place of `torch.cuda.device`: what is made current."""

    now: list[str] = []  # noqa: RUF012 - the tests clear it

    def __init__(self, device):
        self.device = str(device)

    def __enter__(self):
        self.now.append(self.device)

    def __exit__(self, *raised):
        self.now.remove(self.device)


def test_memory_of_another_device_than_the_current_one(monkeypatch):
    """It is asked for its capsule, and shown, while its own device is the current one."""
    monkeypatch.setattr(torch.cuda, "device", At)
    asked = []

    class Tensor(torch.Tensor):
        device = torch.device("cuda:1")

        def __dlpack_device__(self):
            return 2, 1

        def __dlpack__(self, **options):
            asked.append((*At.now, *options))
            raise BufferError("enough seen")

    there = torch.empty(LAYOUT.nbytes(5), dtype=torch.uint8).as_subclass(Tensor)
    with pytest.raises(BufferError, match="enough seen"):
        LAYOUT.wrap(there, 5)
    assert asked == [("cuda:1", "max_version", "copy")]
    monkeypatch.setitem(_frameworks._SHOW, "test_streams", lambda memory, at: there)
    soa = LAYOUT.from_pointer(1 << 40, 5, device="cuda:1")
    soa.buffer.memory = soa.buffer.memory._replace(source=Producer([]))
    with pytest.raises(BufferError, match="enough seen"):
        views(soa, Spec(x="x"))[0].__dlpack__(stream=3)
    assert asked[1:] == [("cuda:1", "stream")]
    assert At.now == []


def test_a_view_of_a_pointer_waits(monkeypatch):
    """Who takes a view by DLPack gets torch's, whose stream has waited for the memory's."""
    memory, streams = filled(LAYOUT, 33)[0], Streams(monkeypatch)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "as_tensor", lambda interface, device: torch.from_numpy(memory))
    at = {"device": "cuda:0", "owner": memory}
    soa = LAYOUT.from_pointer(memory.ctypes.data, 33, stream=7, **at)
    [x, k] = views(soa, Spec(x="x", k="k"))
    taken = [show(soa.buffer.memory, view.strided) for view in (x, k)]
    assert streams.seen == [("waits for", (7, "cpu"))] * 2
    assert [t.data_ptr() for t in taken] == [x.address, k.address]
    still = LAYOUT.from_pointer(memory.ctypes.data, 33, **at)  # nobody is writing it
    show(still.buffer.memory, views(still, Spec(x="x"))[0].strided)
    assert len(streams.seen) == 2


def test_every_call_waits():
    """The producer is waited for before tensors are given, again and again, and before writes."""
    memory, _ = filled(LAYOUT, 33)
    soa, waits = places.PretendedMemory().wrap(LAYOUT, memory, 33), []
    tensors(soa, SPEC)
    soa.buffer.imports["torch"].wait = lambda: waits.append(1)
    for count, call in enumerate(
        (
            lambda: tensors(soa, SPEC),
            lambda: tensors(soa, SPEC),
            lambda: tensors(soa[3:], SPEC),
            lambda: tensors(soa, Spec(x="x"), copy=True),
            lambda: write(soa, Spec(x="x"), [torch.ones(33)]),
            lambda: to(soa[3:], "meta"),
        )
    ):
        with contextlib.suppress(BufferError):  # there is no memory on the device meta
            call()
        assert len(waits) == count + 1


def test_what_comes_from_the_memory_is_read_after_its_producer():
    """A write of a tensor over the memory itself waits before it puts that aside."""
    memory, _ = filled(LAYOUT, 33)
    soa, seen = places.PretendedMemory().wrap(LAYOUT, memory, 33), []

    class Note(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "clone" in function.name() or "copy_" in function.name():
                seen.append(function.name().partition("::")[2])
            return function(*args, **(kwargs or {}))

    x, y = tensors(soa, Spec(x="x", y="y"))
    soa.buffer.imports["torch"].wait = lambda: seen.append("wait")
    with Note():
        write(soa, Spec(x="x", y="y"), [y, x])
    assert seen == ["wait", "clone", "clone", "copy_", "copy_"]


def test_what_is_written_by_torch_is_waited_for(monkeypatch):
    """Until then somebody holds the values, which their framework may use again after that."""
    queue = []

    class Stream:
        def synchronize(self):
            queue.append("waited")

    class Target(torch.Tensor):
        device = torch.device("cuda:1")

        def copy_(self, values):
            queue.append(("written", values.tolist()))

    monkeypatch.setattr(torch.cuda, "device", At)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    target = torch.zeros(2).as_subclass(Target)
    Target.__module__ = "torch"
    fill = _frameworks.filling(target, np.ones(2, "f4"))
    assert queue == []
    wait = fill()
    assert queue == [("written", [1, 1])]
    wait()
    assert queue[1:] == ["waited"]
    _frameworks.filling(torch.zeros(2), np.ones(2, "f4"))()()
    assert len(queue) == 2


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (np.ones(2), TypeError, "got dtype torch.float64, expected torch.float32; convert it"),
        (np.ones(1, "f4"), ValueError, r"got shape \(1,\), expected \(2,\)"),
        (np.ones((2, 1), "f4"), ValueError, r"got shape \(2, 1\), expected \(2,\)"),
        (5, BufferError, "torch does not take the values: "),
    ],
)
def test_what_does_not_fit_is_not_written(values, error, message):
    """Nothing is broadcast or converted."""
    target = torch.zeros(2)
    with pytest.raises(error, match=message):
        _frameworks.filling(target, values)
    assert not target.any()
