"""Views as producers of DLPack, by whatever framework shows the memory."""

from __future__ import annotations

import numpy as np
import pytest
from cases import wrapped
from test_device import FAR, LAYOUT, NBYTES, ROWS, Producer

from soaview import Layout, Scalar, Spec, _frameworks, views


class Recorder:
    """DLPack's two methods over an array, and nothing else that could help a reader."""

    def __init__(self, array):
        self.array, self.asked = array, []

    def __dlpack__(self, **asked):
        self.asked.append(asked)
        return self.array.__dlpack__(**asked)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_the_consumers_wishes_are_passed_on(monkeypatch):
    """On a device, `__dlpack__` is that of the owner's own view, with all that was asked of it."""
    part = Recorder(np.arange(3))
    monkeypatch.setitem(_frameworks._SHOW, "test_device", lambda memory, at: part)
    [view] = views(LAYOUT.wrap(Producer(), ROWS), Spec(x="x"))
    wishes = {"stream": 7, "max_version": (1, 1), "dl_device": (1, 0), "copy": False}
    with pytest.raises(Exception, match="stream"):  # which NumPy has none of
        view.__dlpack__(**wishes)
    assert part.asked == [wishes]
    assert view.__dlpack_device__() == (2, 0)


def test_the_parent_buffer_is_a_producer():
    """Its bytes come by the same protocols as its views."""
    soa = LAYOUT.wrap(Producer(), ROWS)
    assert soa.buffer.__cuda_array_interface__["shape"] == (NBYTES,)
    assert soa.buffer.__cuda_array_interface__["data"] == (FAR, False)
    assert not hasattr(
        LAYOUT.wrap(Producer(device=(10, 0)), ROWS).buffer, "__cuda_array_interface__"
    )
    host, _ = wrapped(LAYOUT, ROWS)
    assert host.buffer.__dlpack_device__() == (1, 0)
    np.testing.assert_array_equal(np.from_dlpack(host.buffer), host.buffer.root)


def test_read_only_parts_are_shown_by_old_capsules(monkeypatch):
    """Their view's own capsule has no flag, and NumPy takes those without one as read-only."""
    monkeypatch.setitem(_frameworks._SHOW, "test_device", lambda memory, at: np.arange(3))
    for flags in (0, 1):
        soa = LAYOUT.wrap(Producer(flags=flags), ROWS)
        for part in (*views(soa, Spec(x="x")), soa.buffer):
            found = np.from_dlpack(Dunders(part))
            assert found.flags.writeable == (flags == 0)


class Dunders:
    """DLPack's two methods, for a part that is in truth on the host."""

    def __init__(self, part):
        self.part = part

    def __dlpack__(self, **asked):
        return self.part.__dlpack__(**asked)

    def __dlpack_device__(self):
        return (1, 0)


def test_nobody_to_show_a_part(run_python):
    """Without torch and CuPy, a part of device memory has no DLPack, and the way out is told."""
    code = """if True:
        from soaview import Column, Layout, Spec, views
        soa = Layout([Column("x", "float32")]).from_pointer(1 << 40, 9, device="cuda:0")
        [view] = views(soa, Spec(x="x"))
        assert view.__dlpack_device__() == (2, 0)
        try:
            view.__dlpack__()
        except BufferError as error:
            print(error)
    """
    assert "neither is imported; import one, or use" in run_python("-c", code).stdout


def test_rows_that_no_memory_has():
    """A layout of scalars alone has a limit of rows, too, by way of a pointer as by any other."""
    layout = Layout([Scalar("n", "int32")])
    with pytest.raises(ValueError, match="more than memory can have"):
        layout.from_pointer(2**20, 2**70, device="cuda:0")
    assert layout.from_pointer(2**20, 2**63 - 1, device="cuda:0").rows == 2**63 - 1
