"""An event's memory, and models on it both ways: at once, and by the long way."""

from __future__ import annotations

import threading

import numpy as np
import places
import pytest
from hypothesis import strategies as st

from soaview import Column, Layout, Scalar, SoA, Spec, Value
from soaview.adapter import HostBuffer

IN = Layout(
    [Column("x", "float32"), Column("y", "float32"), Column("z", "float32"), Column("k", "int64"),
     Column("m", "float64", (2, 2)), Scalar("s", "float32")]
)  # fmt: skip
OUT = Layout(
    [Column("a", "float32"), Column("b", "float32"), Column("w", "float64", (2,)),
     Scalar("n", "float32")]
)  # fmt: skip
X, A = Spec(x=["x", "y"]), Spec(a=["a", "b"])


def filled(rows, layout=IN):
    soa = layout.allocate(rows)
    for number, field in enumerate(layout.fields):
        key = field.name if field.per_row else Value(field.name)
        soa[key][...] = np.arange(soa[key].size).reshape(soa[key].shape) + number
    return soa


ONE = Spec(a="a")


def both_ways(monkeypatch, real, places_of_it):
    """What runs a scenario twice, from the start, and gives its error, and whether it was at once.

    Args:
        monkeypatch: pytest's.
        real: what does it at once, where it can.
        places_of_it: modules and names under which it is called.
    """
    did = []

    def spied(*arguments):
        did.append(real(*arguments))
        return did[-1]

    def both(scenario):
        found = []
        for at_once in (spied, lambda *arguments: False):
            for module, name in places_of_it:
                monkeypatch.setattr(module, name, at_once)
            out, error = OUT.allocate(33), None
            out.buffer.root[:] = 1
            try:
                scenario(filled(33), out)
            except Exception as raised:
                error = type(raised), str(raised)
            found.append((error, out.buffer.root.tobytes()))
        assert found[0] == found[1]
        return found[0][0], bool(did and did[-1])

    return both


def refused(ways, scenario, message):
    """Both ways by the same words, and nothing has been written."""
    error, _ = ways(scenario)
    assert message in error[1]
    out = OUT.allocate(33)
    with pytest.raises(error[0]):
        scenario(filled(33), out)
    assert not out.buffer.root.any()


def own_of_each(ways, forward):
    """Layouts that have the same names by turns."""
    twin = Layout(OUT.fields[::-1])

    def scenario(soa, out):
        for layout in (OUT, twin, Layout(OUT.fields), OUT, twin):
            there = layout.allocate(33)
            forward(lambda x: (x[:, 0], x[:, 1]), (soa, X), (there, Spec(a="a", b="b")))
            assert there["b"].tolist() == soa["y"].tolist()

    assert ways(scenario) == (None, True)


def threads(runs):
    """Several of them use what was made once."""
    errors = []

    def work(rows):
        try:
            for _ in range(100):
                soa, out = filled(rows), OUT.allocate(rows)
                runs((soa.buffer.root.copy(), rows), out)
                assert (out["b"] == soa["y"] * 2).all()
        except BaseException as error:
            errors.append(error)

    started = [threading.Thread(target=work, args=(rows,)) for rows in (3, 33, 100)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert not errors


def pretended(soa):
    """Memory by the way of a device's."""
    return places.PretendedMemory().wrap(soa.layout, soa.buffer.root, soa.rows)


def short_of(soa):
    """An SoA over too little memory, which cannot be made by `wrap`."""
    return SoA(soa.layout, HostBuffer(np.zeros(256, np.uint8), 256, 8), 33, 0, 33)


def locked(array):
    array.flags.writeable = False
    return array


NAMES = ["float32", "float64", "int32", "int8", "complex128", "bool"]


@st.composite
def works(draw):
    """A layout, an input's and an output's spec, rows, and what changes the buffer."""
    fields = []
    for number in range(draw(st.integers(1, 6))):
        dtype = draw(st.sampled_from(NAMES))
        shape = draw(st.sampled_from([(), (), (2,), (2, 3)]))
        order = draw(st.sampled_from("CF"))
        kind, adjacent = draw(st.integers(0, 5)), shape != () and draw(st.booleans())
        column = Column(f"f{number}", dtype, shape, order, interleaved=adjacent)
        fields.append(column if kind else Scalar(f"f{number}", dtype, shape))
    layout = Layout(fields, alignment=draw(st.sampled_from([16, 64, 128])))

    def entry(field, single):
        return Value(field.name) if single and not field.per_row else field.name

    ins = draw(st.lists(st.sampled_from(fields), min_size=1, max_size=4))
    outs = draw(st.lists(st.sampled_from(fields), min_size=1, max_size=4, unique=True))
    spec = Spec({f"i{n}": entry(f, draw(st.booleans())) for n, f in enumerate(ins)})
    out_spec = Spec({f"o{n}": entry(f, True) for n, f in enumerate(outs)})
    alike = [
        f.name
        for f in fields
        if f.per_row and (f.dtype, f.shape) == (fields[0].dtype, fields[0].shape)
    ]
    if fields[0].per_row and draw(st.booleans()):
        spec = Spec({**spec, "all": alike})
    return layout, spec, out_spec, draw(st.sampled_from([1, 2, 15, 16, 17, 33, 100]))
