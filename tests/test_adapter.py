"""The door: what `soaview.adapter` offers, and that adapters need nothing else."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from test_third_party import StrictAdapter

import soaview
from soaview import Column, Layout, Scalar, Spec, Value, adapter, views

HERE = Path(__file__).parent
ROOT = Path(soaview.__file__).parents[1]
DOCUMENT = HERE.parent / "docs" / "adapters.md"
EXAMPLE = HERE.parent / "examples" / "strict_adapter.py"

NAMES = [
    "Allocations", "BatchSize", "BoundFields", "Buffer", "Described", "DeviceBuffer",
    "EVENT_NAMES", "Explain", "Gather", "HostBuffer", "INT64_MAX", "ITEMSIZE", "MOST_OUTPUTS",
    "Matches", "Memories", "Numbers", "PLAIN", "Pair", "Pairs", "Place", "Places", "Run", "Side",
    "Sides", "Strided", "Target", "Verdict", "Work", "announce", "apart", "array_lines",
    "as_tuple", "check_alike", "check_among_rows", "check_copy", "check_dtype", "check_dtypes",
    "check_given", "check_integers", "check_mask", "check_model", "check_offsets",
    "check_one_given", "check_present", "check_same_scalar", "check_sides", "check_soa",
    "check_storage", "check_writable", "columns_of", "compiled", "copy_rows", "event_for",
    "events_for", "exact_int", "gather", "host_array", "host_offsets", "in_order", "is_dense",
    "keep", "match", "numpy_dtype", "overlaps", "pairs", "parts_of", "places", "resolve",
    "results", "row_numbers", "run_numbers", "runs", "soa_lines", "soas_of", "tensor_labels",
    "verdicts", "views_or_gathers", "why_copied_in", "work", "writable_views",
]  # fmt: skip


def test_the_door_is_what_it_is():
    """The public names are these; each is there, explained, and in the document."""
    assert sorted(adapter.__all__) == sorted(NAMES)
    table = DOCUMENT.read_text().partition("## The rules")[0]
    named = set(re.findall(r"`(\w+)", table))
    for name in NAMES:
        thing = getattr(adapter, name)
        if callable(thing) and getattr(thing, "__module__", "").startswith("soaview"):
            assert thing.__doc__, name
        assert name in named, name


def test_the_document_has_the_example():
    """What the document shows is the file that the suite runs on."""
    [code] = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert code == EXAMPLE.read_text()


def private(source: str, packages: tuple[str, ...] = ("soaview",)) -> list[str]:
    """What of other packages is named that begins with an underscore: modules, names, attributes.

    A module's own relative imports are its own.
    """
    found = []

    def hidden(name: str) -> bool:
        return any(part.startswith("_") and part[:2] != "__" for part in name.split("."))

    tree = ast.parse(source)
    modules = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0)
        for alias in node.names
        if (getattr(node, "module", None) or alias.name).partition(".")[0] in packages
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            if (node.module or "").partition(".")[0] in packages:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                found += [name for name in names if hidden(name)]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.partition(".")[0] in packages]
            found += [name for name in names if hidden(name)]
        elif isinstance(node, ast.Attribute):
            first = node.value
            while isinstance(first, ast.Attribute):
                first = first.value
            if isinstance(first, ast.Name) and first.id in modules and hidden(node.attr):
                found.append(ast.unparse(node))
    return found


ADAPTERS = [
    *(ROOT / "soaview_torch").rglob("*.py"),
    *(ROOT / "soaview_jax").rglob("*.py"),
    HERE / "adapters.py",
    HERE / "test_third_party.py",
    EXAMPLE,
]


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_adapters_come_in_by_the_door(path):
    """Ours and the third party's name nothing of soaview's that begins with an underscore."""
    assert private(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "from soaview._views import View",
        "from soaview import _views",
        "from soaview.adapter import _targets",
        "from soaview.adapter._targets import Target",
        "import soaview._views",
        "import soaview\nsoaview._views.View",
        "import soaview as s\ns.adapter._targets",
        "from soaview import SoA\nSoA._at",
        "def f():\n    from soaview._soa import keep",
    ],
)
def test_the_test_of_the_door_can_fail(source):
    """Each way to a private name is seen; what is one's own, or Python's, is none."""
    assert private(source)
    assert not private("from ._views import x\nimport soaview\nsoaview.__all__\nself._x\nnp._y")


def test_the_example_has_the_verbs_of_the_others(request):
    """What is called alike takes the same arguments, whichever adapter it is of."""
    others = [name for name in ("torch", "jax") if name in request.config.chosen_adapters]
    for module in (StrictAdapter().adapter, *map(import_module, map("soaview_{}".format, others))):
        arrays = getattr(module, "tensors", None) or module.arrays
        wanted = "soa, spec, *, copy=False, padded=False, dtype=None"
        assert without_types(arrays) == f"({wanted})", module
        assert re.fullmatch(r"\(soa, spec, (arrays|tensors)\)", without_types(module.write)), module
        wanted = r"\((fn|model), inputs, outputs, \*, batch_size=None[,)].*"
        assert re.match(wanted, without_types(module.forward)), module


def without_types(function):
    signature = inspect.signature(function)
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=signature.empty))


LAYOUT = Layout(
    [Column("x", "float32"), Column("y", "float32"), Column("z", "float32"), Scalar("n", "int32")]
)


def test_resolve_gives_the_numbers_of_views():
    """They are plain tuples, equal to what the views are made of."""
    soa = LAYOUT.allocate(33)[3:9]
    spec = Spec(xy=["x", "y"], n="n", v=Value("n"))
    found = adapter.resolve(soa, spec)
    assert {type(numbers) for numbers in found} == {tuple}
    assert found == [view.strided for view in views(soa, spec)]
    assert found[0] == ("xy", "float32", 4, (6, 2), (1, 64), 3)
    with pytest.raises(BufferError, match="tensor 't': its columns are in reversed order"):
        adapter.resolve(soa, Spec(t=["y", "x"]))


def test_gathers_are_columns():
    """A tensor without a single view comes as its columns, which are views."""
    soa = LAYOUT.allocate(33)
    whole, gather = adapter.views_or_gathers(soa, Spec(xy=["x", "y"], zx=["z", "x"]))
    assert (whole.shape, gather.shape) == ((33, 2), (33, 2))
    assert [part.offset for part in gather.parts] == [128, 0]
    assert isinstance(gather, adapter.Gather)
    assert "let copy=None of an adapter gather them" in gather.why()


def test_the_example_has_dtypes():
    """Where a floating one is named it gathers columns of several, and converts one alone."""
    soa, arrays = LAYOUT.allocate(3), StrictAdapter().adapter.arrays
    soa["x"][:], soa[Value("n")][...] = 1.5, 2
    for copy in (None, True):
        xn, n, x = arrays(soa, Spec(xn=["x", "n"], n="n", x="x"), copy=copy, dtype="float32")
        assert np.from_dlpack(xn).tolist() == [[1.5, 2]] * 3
        assert np.from_dlpack(n).tolist() == [2] * 3
        assert np.shares_memory(np.from_dlpack(x), soa["x"]) is (copy is None)
    with pytest.raises(BufferError, match="tensor 'n': it is of int32, and dtype= is float32"):
        arrays(soa, Spec(n="n"), dtype="float32")


def targets(soa, spec):
    return [
        adapter.Target(view.shape, view.dtype_name, soa.device, [part.numpy() for part in parts])
        for view, parts in adapter.writable_views(soa, spec)
    ]


def given(label, array):
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{label} is no array")
    return array.shape, array.dtype.name, "cpu"


def fits(target, array):
    return array.shape == target.shape and array.dtype.name == target.dtype


def match(soa, spec, arrays):
    return adapter.match(soa, spec, targets(soa, spec), arrays, fits=fits, describe=given)


def test_match_pairs_tensors_with_targets():
    """Each has its own; a target of several parts takes a tensor column by column."""
    soa = LAYOUT.allocate(3)
    spec = Spec(zx=["z", "x"], y="y")
    arrays = [np.arange(6, dtype="f4").reshape(3, 2), np.ones(3, "f4")]
    for target, array in match(soa, spec, arrays):
        for part, piece in adapter.parts_of(target, array):
            part[...] = piece
    assert (soa["z"].tolist(), soa["x"].tolist()) == ([0, 2, 4], [1, 3, 5])
    assert soa["y"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ([], ValueError, "got 0 tensors, but the spec has 1"),
        ([np.ones(3, "f8")], TypeError, "tensor 'x': got dtype float64, expected float32"),
        ([np.ones(4, "f4")], ValueError, "tensor 'x': got shape"),
        ([np.ones(32, "f4")], ValueError, "tensor 'x': got 32 padded rows, expected 3"),
        ([np.ones((3, 1), "f4")], ValueError, "tensor 'x': got shape .* drop the last axis"),
        ([np.ones(3, "f4")] * 2, ValueError, "got 2 tensors, but the spec has 1"),
    ],
)
def test_match_refuses_what_does_not_fit(arrays, error, message):
    """The message names the tensor, what was got and what is expected."""
    soa = LAYOUT.allocate(3)
    with pytest.raises(error, match=message):
        match(soa, Spec(x="x"), arrays)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (Spec(a="x", b=["y", "x"]), ValueError, "'x' would be written twice"),
        (Spec(n="n"), ValueError, "scalar 'n' has one value"),
        (Spec(x="w"), KeyError, "no column 'w'"),
        ({"x": "x"}, TypeError, "spec must be a Spec"),
    ],
)
def test_what_cannot_be_written(spec, error, message):
    """It is refused before there is any target."""
    with pytest.raises(error, match=message):
        adapter.writable_views(LAYOUT.allocate(3), spec)


def test_read_only_memory_has_no_targets():
    """Nor has what is no SoA."""
    soa = LAYOUT.wrap(bytes(LAYOUT.nbytes(3)), 3)
    with pytest.raises(BufferError, match="read-only and cannot be written to"):
        adapter.writable_views(soa, Spec(x="x"))
    with pytest.raises(TypeError, match="soa must be an SoA"):
        adapter.writable_views(soa.buffer, Spec(x="x"))


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        ((0, 128), (128, 1), False),
        ((0, 129), (128, 1), True),
        ((128, 1), (0, 128), False),
        ((128, 1), (0, 129), True),
        ((64, 8), (0, 256), True),
        ((0, 0), (0, 128), False),
    ],
)
def test_overlaps(one, other, common):
    """Memory that touches has no byte in common."""
    assert adapter.overlaps(*one, *other) is common
    assert adapter.overlaps(*other, *one) is common


@pytest.mark.parametrize(
    ("shape", "strides", "dense"),
    [
        ((3, 2), (1, 3), True),
        ((3, 2), (2, 1), True),
        ((3, 2), (1, 4), False),
        ((3, 1), (1, 99), True),
        ((0, 2), (5, 7), True),
        ((), (), True),
        ((3,), (0,), False),
        ((2, 3, 4), (12, 1, 3), True),
        ((2, 3, 4), (12, 4, 2), False),
    ],
)
def test_is_dense(shape, strides, dense):
    """Elements fill one stretch of memory, in any order of the axes that are longer than one."""
    assert adapter.is_dense(shape, strides) is dense


def test_what_the_host_answers():
    """A buffer of the host has its bytes in every form, and nobody has to be waited for."""
    soa = LAYOUT.allocate(3)
    buffer, [view] = soa.buffer, views(soa, Spec(y="y"))
    assert isinstance(buffer, adapter.HostBuffer)
    assert buffer.on_host
    assert not buffer.piecewise
    assert buffer.bytes_in("torch") is buffer.root
    assert buffer.waiter("torch", None) is None
    assert buffer.locate(view.strided) == (buffer, view.strided)
    buffer.check_imported(buffer.address)
    with pytest.raises(BufferError, match="is not where it was"):
        buffer.check_imported(buffer.address + 1)
    with pytest.raises(TypeError, match="abstract"):
        adapter.Buffer()


def test_what_a_device_answers():
    """Its memory is known by address, and never read here."""
    soa = LAYOUT.from_pointer(1 << 40, 3, device="cuda:1")
    buffer, [view] = soa.buffer, views(soa, Spec(y="y"))
    assert isinstance(buffer, adapter.DeviceBuffer)
    assert (buffer.on_host, buffer.device, buffer.address) == (False, "cuda:1", 1 << 40)
    for read in (
        lambda: buffer.root,
        lambda: buffer.words,
        lambda: buffer.unguarded,
        lambda: buffer.array(view.strided),
        lambda: soa["y"],
    ):
        with pytest.raises(BufferError, match="cuda:1, which NumPy does not read"):
            read()
    with pytest.raises(BufferError, match="how other takes memory on cuda:1"):
        buffer.bytes_in("other")
    assert buffer.waiter("other", None) is None
    with pytest.raises(BufferError, match="on cuda:1 is not where it was"):
        buffer.check_imported(0)


@pytest.mark.parametrize(
    ("rows", "size"),
    [
        (range(0, 10, 2), 5),
        (range(38, 44), 6),
        (range(-1, 3), 4),
        (range(5, 3), 0),
        (range(5), 4),
    ],
)
def test_rows_that_cannot_be_copied(rows, size):
    """They follow each other, are there, and have room; or else nothing is copied."""
    soa = LAYOUT.allocate(40)
    soa.buffer.root[:] = 1
    target = np.zeros(LAYOUT.nbytes(size) - (size == 4 and rows.start == 0), np.uint8)
    with pytest.raises(ValueError, match="rows must be a range with step 1|too small"):
        adapter.copy_rows(LAYOUT, 40, rows, soa.buffer.root, target)
    with pytest.raises(ValueError, match="too small: got 5 bytes"):
        adapter.copy_rows(LAYOUT, 40, range(3), soa.buffer.root[:5], np.zeros(1000, np.uint8))
    assert not target.any()


def test_batches_that_are_not_there():
    """A batch is asked for by its number."""
    soa = LAYOUT.allocate(40)
    pairs = [(soa, Spec(x="x"))]
    whole, task = (adapter.work(pairs, pairs, size, False) for size in (None, 10))
    for number in (-1, 4, 99):
        for asked in (task.inputs_of, task.outputs_of, task.rows_of, whole.rows_of):
            with pytest.raises(IndexError, match=rf"there are [14] batches, got number {number}"):
                asked(number)
    for ins, outs in (([], pairs), (pairs, []), ([], [])):
        with pytest.raises(ValueError, match="at least one pair"):
            adapter.work(ins, outs, None, False)


def test_runs_of_odd_row_counts():
    """What is kept for a row count is not given for what only equals it."""
    adapter.runs(LAYOUT, 1)
    for rows in (True, 1.0):
        with pytest.raises(TypeError, match="rows must be an integer"):
            adapter.runs(LAYOUT, rows)
    assert adapter.runs(LAYOUT, np.int64(1)) == adapter.runs(LAYOUT, 1)


def test_lists_of_different_lengths():
    """What belongs to a spec's tensors has one for each of them; so do shapes and strides."""
    soa, spec = LAYOUT.allocate(3), Spec(x="x", y="y")
    found = views(soa, spec)
    given = [((3,), "float32", "cpu")] * 2
    for views_, shapes, message in (
        (found[:1], given, "got 1 views, but the spec has 2"),
        (found, given[:1], "got 1 tensors, but the spec has 2"),
        ([], [], "got 0 tensors, but the spec has 2"),
    ):
        with pytest.raises(ValueError, match=message):
            adapter.check_given(soa, spec, views_, shapes)
    target = adapter.Target((3,), np.dtype("f4"), "cpu", [soa["x"]])
    with pytest.raises(ValueError, match="got 1 targets, but the spec has 2"):
        adapter.match(soa, spec, [target], [np.zeros(3, "f4")], fits=lambda *_: True, describe=None)
    with pytest.raises(ValueError, match="different numbers of axes"):
        adapter.is_dense((3,), (1, 2))
