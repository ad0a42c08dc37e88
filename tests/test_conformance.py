"""One suite for every adapter: what `tensors`, `arrays` and `write` promise, case by case."""

from __future__ import annotations

import functools
import gc
import operator

import numpy as np
import places
import pytest
from adapters import spec_of
from cases import (
    BLOCKS_IMAGES,
    CASES,
    IMAGES,
    SCATTERED,
    column_offset,
    filled,
    first_name,
    layout_of,
    list_of,
    padded_rows,
    read,
    wrapped,
    written,
)

from soaview import Column, Layout, Spec, Value, views

one_by_one = pytest.mark.dtype("float32")


def pytest_generate_tests(metafunc):
    """All cases, or those of one dtype."""
    take_cases(metafunc, CASES)


def take_cases(metafunc, cases):
    if "case" in metafunc.fixturenames:
        only = metafunc.definition.get_closest_marker("dtype")
        chosen = [case for case in cases if not only or case.dtype in only.args]
        metafunc.parametrize("case", chosen, ids=str)


def content(soa):
    return places.under_test.content(soa)


def on_host(soa):
    return places.under_test.on_host(soa)


def divergence(adapter, soa, spec, copy=False, padded=False):
    """The first entry of the adapter's table that holds for this call, if any does."""
    for view in views(soa, spec, padded=padded):
        for known in adapter.divergences:
            if copy in known.copy and known.when(view):
                return known
    return None


def tensors(adapter, soa, spec, copy=False, padded=False):
    """What the adapter gives; None where its table says that it must refuse, and it did."""
    known = divergence(adapter, soa, spec, copy, padded)
    if known is None:
        return adapter.tensors(soa, spec, copy=copy, padded=padded)
    with pytest.raises(known.error, match=known.match) as raised:
        adapter.tensors(soa, spec, copy=copy, padded=padded)
    named = any(repr(name) in str(raised.value) for name in spec) or "read-only" in known.match
    assert named, f"the refusal names none of the tensors {list(spec)}: {raised.value}"
    return None


def now(adapter, soa, found, spec, **options):
    """The tensors as memory is now: those found, where they alias it."""
    return found if adapter.aliases else adapter.tensors(soa, spec, **options)


def check(adapter, tensor, expected, dtype):
    assert tuple(tensor.shape) == expected.shape
    assert adapter.dtype(tensor) == dtype
    np.testing.assert_array_equal(adapter.to_numpy(tensor), expected)


def check_strides(adapter, tensor, expected):
    got = adapter.strides(tensor)
    assert len(got) == len(expected)
    if 0 not in tensor.shape:
        for step, wanted, length in zip(got, expected, tensor.shape, strict=True):
            # Nobody takes a step along an axis of length 1, and NumPy's imports may change it.
            assert step is None or step == wanted or length == 1


def test_values_shape_and_dtype(adapter, case):
    """Every kind of entry reads what memory holds, in its shape and dtype, at every row count."""
    for rows in adapter.rows:
        soa, expected = wrapped(case.layout, rows)
        found = tensors(adapter, soa, spec_of(case.entry))
        if found is not None:
            shape, _ = case.geometry(rows)
            wanted = read(case.entry, expected, rows)
            assert wanted.shape == shape
            check(adapter, found[0], wanted, case.dtype)


@pytest.mark.aliasing
def test_strides_and_address(adapter, case):
    """A tensor lies where the layout says, with the strides of the design's table."""
    for rows in adapter.rows:
        soa, _ = wrapped(case.layout, rows)
        found = tensors(adapter, soa, spec_of(case.entry))
        if found is None or 0 in found[0].shape:
            continue
        _, strides = case.geometry(rows)
        check_strides(adapter, found[0], strides)
        start = column_offset(case.layout, first_name(case.entry), rows)
        assert adapter.address(found[0]) == soa.buffer.address + start


def test_a_write_into_memory_is_seen(adapter, case):
    """A tensor aliases the SoA: what is written into the memory later is read from it."""
    for rows in (1, 33):
        soa, _ = wrapped(case.layout, rows)
        found = tensors(adapter, soa, spec_of(case.entry))
        if found is not None:
            places.under_test.fill(soa, 0)
            assert not adapter.to_numpy(now(adapter, soa, found, spec_of(case.entry))[0]).any()


@pytest.mark.aliasing
@one_by_one
def test_a_write_into_a_tensor_is_seen(adapter, case):
    """Where a framework's tensors can be written, that writes the SoA."""
    if not adapter.writable or 0 in case.geometry(33)[1]:
        return
    soa, expected = wrapped(case.layout, 33)
    [tensor] = adapter.tensors(soa, spec_of(case.entry))
    tensor[...] = 5
    check(adapter, tensor, np.full(tensor.shape, 5, case.dtype), case.dtype)
    for name in expected:
        touched = name == first_name(case.entry) or name in getattr(case.entry, "__iter__", list)()
        entry = name if case.layout[name].per_row else Value(name)
        assert (on_host(soa)[entry] == (5 if touched else expected[name])).all(), name


@pytest.mark.aliasing
def test_copy_true_is_independent(adapter, case):
    """`copy=True` gives the same values, and later writes into the memory are not seen."""
    for rows in (0, 1, 33):
        soa, expected = wrapped(case.layout, rows)
        found = tensors(adapter, soa, spec_of(case.entry), copy=True)
        if found is None:
            continue
        places.under_test.fill(soa, 0)
        check(adapter, found[0], read(case.entry, expected, rows), case.dtype)
        if 0 not in found[0].shape:
            address = adapter.address(found[0])
            begin = soa.buffer.address
            assert not begin <= address < begin + soa.buffer.nbytes


@pytest.mark.aliasing
def test_copy_none_copies_only_what_it_must(adapter, case):
    """`copy=None` aliases exactly what `copy=False` can give, and copies the rest."""
    for rows in (0, 1, 33, 1024):
        soa, expected = wrapped(case.layout, rows)
        spec = spec_of(case.entry)
        must_copy = divergence(adapter, soa, spec) is not None
        found = tensors(adapter, soa, spec, copy=None)
        if found is None:
            continue
        check(adapter, found[0], read(case.entry, expected, rows), case.dtype)
        if 0 not in found[0].shape:
            places.under_test.fill(soa, 0)
            kept = adapter.to_numpy(found[0])
            wanted = read(case.entry, expected, rows) if must_copy else np.zeros_like(kept)
            np.testing.assert_array_equal(kept, wanted)


def test_padded(adapter, case):
    """`padded=True` gives the padded rows, the valid ones first, and aliases."""
    for rows in adapter.rows:
        soa, expected = wrapped(case.layout, rows)
        found = tensors(adapter, soa, spec_of(case.entry), padded=True)
        if found is None:
            continue
        shape, strides = case.geometry(rows, padded=True)
        assert tuple(found[0].shape) == shape
        if adapter.aliases:
            check_strides(adapter, found[0], strides)
        values = adapter.to_numpy(found[0])
        valid = values[:rows] if case.has_rows else values
        np.testing.assert_array_equal(valid, read(case.entry, expected, rows))
        if case.has_rows and 0 not in strides and case.dtype != "bool":
            beyond = np.ascontiguousarray(values[rows:]).view(np.uint8)
            assert (beyond == 0xEE).all()
        places.under_test.fill(soa, 0)
        [zero] = now(adapter, soa, found, spec_of(case.entry), padded=True)
        assert not adapter.to_numpy(zero).any()


def test_padded_makes_columns_dense(adapter):
    """With `padded=True`, neighbouring columns are zero-copy at every row count, everywhere."""
    layout = Layout([Column("x", "float32"), Column("y", "float32"), Column("v", "int32", (3,))])
    for rows in adapter.rows:
        soa, _ = wrapped(layout, rows)
        xy, v = adapter.tensors(soa, Spec(xy=["x", "y"], v="v"), padded=True)
        assert tuple(xy.shape) == (padded_rows("float32", rows), 2)
        assert tuple(v.shape) == (padded_rows("int32", rows), 3)


@one_by_one
def test_batches_and_slices(adapter, case):
    """A slice or batch reads its own rows, in place."""
    soa, expected = wrapped(case.layout, 100)
    wanted = read(case.entry, expected, 100)
    spec = spec_of(case.entry)
    pieces = [(soa[a:b], slice(a, b)) for a, b in ((0, 100), (16, 50), (3, 4), (7, 7), (-9, None))]
    pieces += [(b, slice(i * 32, i * 32 + 32)) for i, b in enumerate(soa.batches(32))]
    assert len(pieces) == 9
    for piece, rows in pieces:
        part = wanted[rows] if case.has_rows else wanted
        for copy in adapter.copies:
            found = tensors(adapter, piece, spec, copy=copy)
            if found is not None:
                check(adapter, found[0], part, case.dtype)
    [single] = adapter.tensors(soa[32:64], Spec(x="x"))
    assert not adapter.aliases or adapter.address(single) == soa.buffer.address + 32 * 4


@pytest.mark.aliasing
def test_padded_slices_are_refused(adapter):
    """What follows a slice is other rows, not padding, so `padded=True` refuses it."""
    soa = wrapped(layout_of("float32", "int8"), 100)[0]
    with pytest.raises(ValueError, match=r"padded=True: rows 10:20 are a slice of 100"):
        adapter.tensors(soa[10:20], Spec(x="x"), padded=True)
    assert adapter.tensors(soa[:], Spec(x="x"), padded=True)[0].shape[0] == 128


@pytest.mark.parametrize("image", IMAGES, ids=str)
def test_golden_images(adapter, image):
    """Every field of every memory image that the C++ classes wrote comes out right."""
    memory = image.memory()
    assert image.layout.nbytes(image.rows) == image.nbytes == len(memory)
    soa = places.under_test.wrap(image.layout, memory, image.rows)
    entries = {}
    for field in image.layout.fields:
        where = image.offsets[field.name]
        assert image.layout.offset(field.name, image.rows) == where["offset"]
        assert image.layout.pitch(field.name, image.rows) == where["component_bytes"]
        entries[field.name] = field.name if field.per_row else Value(field.name)
    check_fields(adapter, soa, entries, image.expected)


def check_fields(adapter, soa, entries, expected):
    for copy in adapter.copies[:2]:
        specs = {name: Spec({name: entry}) for name, entry in entries.items()}
        refused = [name for name in specs if divergence(adapter, soa, specs[name], copy)]
        for name in refused:
            assert tensors(adapter, soa, specs[name], copy=copy) is None
        spec = Spec({name: entries[name] for name in entries if name not in refused})
        for name, tensor in zip(spec, adapter.tensors(soa, spec, copy=copy), strict=True):
            number = list(entries).index(name)
            check(adapter, tensor, expected(number), soa.layout[name].dtype)


@pytest.mark.parametrize("image", BLOCKS_IMAGES, ids=str)
def test_golden_images_of_blocks(adapter, image):
    """Every field of every block, and of blocks in blocks, that the C++ classes wrote."""
    memory = image.memory()
    assert image.blocks.nbytes(image.rows) == image.nbytes == len(memory)
    soas = places.under_test.wrap(image.blocks, memory, image.rows)
    for block, (path, where) in enumerate(image.places.items()):
        soa = functools.reduce(operator.getitem, path, soas)
        first = where["offset"]
        assert (soa.buffer.nbytes, soa.rows) == (where["nbytes"], where["rows"])
        if where["nbytes"]:
            assert soa.buffer.address == soas.buffer.address + first
        entries = {}
        for field in soa.layout.fields:
            there = where["offsets"][field.name]
            assert first + soa.layout.offset(field.name, soa.rows) == there["offset"]
            assert soa.layout.pitch(field.name, soa.rows) == there["component_bytes"]
            entries[field.name] = field.name if field.per_row else Value(field.name)
        layout, rows = soa.layout, soa.rows
        check_fields(adapter, soa, entries, lambda n: written(layout, n, rows, block))  # noqa: B023


def test_order_and_reorder(adapter):
    """Tensors come in the order of the spec."""
    soa, expected = wrapped(layout_of("float32", "int8"), 32)
    spec = Spec(a="x", b=["y", "z"], c=Value("n"), d="u")
    for names in (("a", "b", "c", "d"), ("d", "b", "a", "c"), ("c", "a")):
        some = spec.subset(*names)
        found = adapter.tensors(soa, some)
        assert len(found) == len(names)
        for name, tensor in zip(names, found, strict=True):
            check(adapter, tensor, read(list_of(spec[name]), expected, 32), "float32")


def test_the_empty_spec(adapter):
    """A spec without tensors gives an empty list."""
    for copy in (False, None, True):
        assert (
            list(adapter.tensors(wrapped(layout_of("int32", "int8"), 5)[0], Spec(), copy=copy))
            == []
        )


@pytest.mark.parametrize("entry", SCATTERED, ids=str)
def test_scattered_columns(adapter, entry):
    """Columns that no single view covers are refused with the reason; `copy=None` gathers them."""
    gathered(adapter, entry, SCATTERED[entry])


def gathered(adapter, entry, why, row_counts=(0, 1, 33, 1024)):
    layout = layout_of("float32", "int8")
    for rows in row_counts:
        soa, expected = wrapped(layout, rows)
        spec = spec_of(entry)
        if adapter.aliases:
            with pytest.raises(BufferError, match=f"tensor 't': .*{why}.*copy=None"):
                adapter.tensors(soa, spec)
        for copy in adapter.copies[adapter.aliases :]:
            [tensor] = adapter.tensors(soa, spec, copy=copy)
            wanted = read(list(entry), expected, rows)
            check(adapter, tensor, wanted, "float32")
        places.under_test.fill(soa, 0)
        check(adapter, tensor, wanted, "float32")


@pytest.mark.aliasing
def test_one_refusal_gives_nothing(adapter):
    """One tensor that cannot be a view refuses the call; `copy=None` copies that one alone."""
    soa, _ = wrapped(layout_of("float32", "int8"), 32)
    spec = Spec(good="x", bad=["z", "y"], also="u")
    with pytest.raises(BufferError, match="tensor 'bad'"):
        adapter.tensors(soa, spec)
    good, bad, also = adapter.tensors(soa, spec, copy=None)
    places.under_test.fill(soa, 0)
    assert not adapter.to_numpy(good).any()
    assert adapter.to_numpy(bad).any()
    assert not adapter.to_numpy(also).any()


def test_lifetime(adapter):
    """Views keep the memory alive after everything else is gone, and let it go when they are."""
    layout = layout_of("float32", "int8")
    memory, expected = filled(layout, 1000)
    wanted = expected["x"].copy()
    soa, gone = places.under_test.watched(layout, memory, 1000)
    del memory
    first = adapter.tensors(soa[:500], Spec(x="x"))
    second = adapter.tensors(soa, Spec(x="x", z="z"))
    del soa, first
    gc.collect()
    assert not (gone() and adapter.aliases)
    np.testing.assert_array_equal(adapter.to_numpy(second[0]), wanted)
    del second
    assert places.soon(gone)


def test_read_only_memory(adapter):
    """Read-only memory is read, never written: copies are free, and views as the table says."""
    layout = layout_of("float32", "int8")
    memory, expected = filled(layout, 32)
    before = memory.copy()
    memory.flags.writeable = False
    soa = places.under_test.wrap(layout, memory, 32)
    assert soa.readonly
    spec = Spec(x="x", xyz=["x", "y", "z"], v=Value("n"))
    for copy in adapter.copies:
        found = tensors(adapter, soa, spec, copy=copy)
        if found is None:
            continue
        check(adapter, found[0], expected["x"], "float32")
        check(adapter, found[1], read(["x", "y", "z"], expected, 32), "float32")
        if adapter.writable:
            try:
                found[0][...] = 9
            except ValueError:
                assert copy is not True
    with pytest.raises(BufferError, match="read-only"):
        adapter.write(soa, Spec(x="x"), [adapter.from_numpy(np.zeros(32, np.float32))])
    np.testing.assert_array_equal(content(soa), before)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (Spec(t="X"), KeyError, "tensor 't': no column 'X'"),
        (Spec(t=["x", "yy"]), KeyError, "no column 'yy'; did you mean 'y'"),
        (Spec(t=["x", "gap"]), ValueError, "'t'.*one dtype.*'x' has float32.*'gap' has int8"),
        (Spec(t=["x", "u"]), ValueError, r"'t'.*one shape.*'x' has \(\).*'u' has \(3,\)"),
        (Spec(t=["x", "u"]), ValueError, r"take them apart, \['x'\] and 'u', and join"),
        (Spec(t=Value("x")), ValueError, "'t'.*Value takes a Scalar, but 'x' is a Column"),
        ({"t": "x"}, TypeError, "spec must be a Spec, got dict"),
    ],
)
def test_bad_specs(adapter, spec, error, message):
    """A spec that does not fit the layout says so, with every value of `copy`."""
    soa = wrapped(layout_of("float32", "int8"), 10)[0]
    for copy in (False, None, True):
        with pytest.raises(error, match=message):
            adapter.tensors(soa, spec, copy=copy)


def test_bad_copy(adapter):
    """`copy` is one of three values, and nothing else that is true or false."""
    soa = wrapped(layout_of("float32", "int8"), 10)[0]
    for copy in (1, 0, "no"):
        with pytest.raises(TypeError, match="copy must be False"):
            adapter.tensors(soa, Spec(x="x"), copy=copy)


@one_by_one
def test_write(adapter, case):
    """`write` puts a tensor's values into its columns, and into nothing else."""
    layout = case.layout
    for rows in (0, 1, 33):
        soa, expected = wrapped(layout, rows)
        before = content(soa)
        values = np.asarray(read(case.entry, expected, rows) + 1)
        if not layout[first_name(case.entry)].per_row and case.has_rows:
            with pytest.raises(ValueError, match=r"'t': scalar '\w' has one value.*write Value"):
                adapter.write(soa, spec_of(case.entry), [adapter.from_numpy(values)])
            np.testing.assert_array_equal(content(soa), before)
            continue
        adapter.write(soa, spec_of(case.entry), [adapter.from_numpy(values)])
        changed = content(soa) != before
        np.testing.assert_array_equal(on_host(soa)[list_of(case.entry)], values)
        old = [adapter.from_numpy(np.asarray(read(case.entry, expected, rows)))]
        adapter.write(soa, spec_of(case.entry), old)
        np.testing.assert_array_equal(content(soa), before)
        assert changed.any() == (rows > 0 or not case.has_rows)


def test_write_scattered_and_sliced(adapter):
    """Reversed columns and a slice's rows are written where they belong."""
    soa, expected = wrapped(layout_of("float32", "int8"), 100)
    values = np.arange(20, dtype=np.float32).reshape(10, 2)
    adapter.write(soa[50:60], Spec(t=["z", "x"]), [adapter.from_numpy(values)])
    for name, column in (("z", 0), ("x", 1)):
        wanted = expected[name].copy()
        wanted[50:60] = values[:, column]
        np.testing.assert_array_equal(on_host(soa)[name], wanted)
    np.testing.assert_array_equal(on_host(soa)["y"], expected["y"])


def test_write_of_aliases(adapter):
    """Tensors over the SoA itself are read before anything is written: columns can be swapped."""
    soa, expected = wrapped(layout_of("float32", "int8"), 32)
    spec = Spec(x="x", z="z")
    adapter.write(soa, spec.reorder("z", "x"), adapter.tensors(soa, spec))
    np.testing.assert_array_equal(on_host(soa)["x"], expected["z"])
    np.testing.assert_array_equal(on_host(soa)["z"], expected["x"])


BAD_WRITES = [
    (Spec(a="x", b="y"), np.zeros(9, "f4"), ValueError, r"'b': got shape \(9,\), exp.*\(10,\)"),
    (Spec(a="x", b="y"), np.zeros((10, 1), "f4"), ValueError, "'b': .*list of one"),
    (Spec(a="x", b="u"), np.zeros((3, 10), "f4"), ValueError, "'b': .*transpose"),
    (Spec(a="x", b="y"), np.zeros(32, "f4"), ValueError, "'b': got 32 padded rows, exp.* 10;"),
    (Spec(a="x", b=Value("n")), np.zeros(1, "f4"), ValueError, "'b': .*a scalar has no axes"),
    (Spec(a="x", b="y"), np.zeros(10, "i4"), TypeError, "'b': got dtype int32, exp.*float32"),
    (Spec(a="x", b=["y", "x"]), np.zeros((10, 2), "f4"), ValueError, "'x' would be .* twice"),
    (Spec(a="x", b=["y", "y"]), np.zeros((10, 2), "f4"), ValueError, "'y' would be .* twice"),
    (Spec(a="x"), np.zeros(10, "f4"), ValueError, "got 2 tensors, but the spec has 1"),
    (Spec(a="x", b="ww"), np.zeros(10, "f4"), KeyError, "no column 'ww'"),
]


@pytest.mark.parametrize(("spec", "second", "error", "message"), BAD_WRITES)
def test_bad_writes_write_nothing(adapter, spec, second, error, message):
    """Everything is checked before the first byte is written."""
    soa, _ = wrapped(layout_of("float32", "int8"), 10)
    before = content(soa)
    given = [adapter.from_numpy(np.ones(10, np.float32)), adapter.from_numpy(second)]
    with pytest.raises(error, match=message):
        adapter.write(soa, spec, given)
    np.testing.assert_array_equal(content(soa), before)


def as_they_are(*tensors):
    return tensors


@pytest.mark.parametrize("entry", ["x", ["x", "z"], ["y"], "u", ["u", "v"], "m", "k"], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool"])
def test_forward(adapter, dtype, entry):
    """What a model gives goes where it belongs, and nowhere else, in batches of any size."""
    layout = layout_of(dtype, "float64")
    spec = spec_of(entry)
    if divergence(adapter, wrapped(layout, 1)[0], spec, copy=True):  # there is no such dtype
        return
    for rows, batch_size in ((0, None), (1, 7), (33, None), (33, 7), (33, 33)):
        soa, expected = wrapped(layout, rows)
        out, before = wrapped(layout, rows)
        places.under_test.fill(out, 0)
        adapter.forward(as_they_are, (soa, spec), (out, spec), batch_size=batch_size)
        found = on_host(out)
        named = [entry] if isinstance(entry, str) else entry
        for f in layout.fields:
            wanted = expected[f.name] if f.name in named else np.zeros_like(before[f.name])
            np.testing.assert_array_equal(
                found[f.name], np.broadcast_to(wanted, found[f.name].shape)
            )
        np.testing.assert_array_equal(content(soa), filled(layout, rows)[0])


def test_forward_to_scattered_columns(adapter):
    """Results go to columns in any order."""
    layout = layout_of("float32", "float64")
    for batch_size in (None, 7):
        soa, expected = wrapped(layout, 33)
        out, _ = wrapped(layout, 33)
        pairs = (soa, Spec(t=["x", "y", "z"])), (out, Spec(t=["z", "x", "y"]))
        adapter.forward(as_they_are, *pairs, batch_size=batch_size)
        found = on_host(out)
        for source, target in zip("xyz", "zxy", strict=True):
            np.testing.assert_array_equal(found[target], expected[source])


def test_forward_writes_all_or_nothing(adapter):
    """A model that raises, or gives what does not fit, has written nothing."""

    def short(x):
        return (x[:-1],)

    def raises(x):
        raise RuntimeError("on purpose")

    soa, _ = wrapped(layout_of("float32", "float64"), 33)
    before = content(soa)
    for fn, error in ((short, ValueError), (raises, RuntimeError)):
        for batch_size in (None, 7):
            with pytest.raises(error):
                adapter.forward(fn, (soa, Spec(x="x")), (soa, Spec(y="y")), batch_size=batch_size)
            np.testing.assert_array_equal(content(soa), before)
