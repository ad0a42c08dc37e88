"""The same suite on bound columns: what every adapter promises of memory that it finds."""

from __future__ import annotations

import places
import pytest
from cases import CASES, SCATTERED, layout_of, wrapped
from test_conformance import (  # noqa: F401 - tests, run once more
    BAD_WRITES,
    gathered,
    take_cases,
    tensors,
    test_a_write_into_a_tensor_is_seen,
    test_a_write_into_memory_is_seen,
    test_bad_copy,
    test_bad_specs,
    test_batches_and_slices,
    test_copy_none_copies_only_what_it_must,
    test_copy_true_is_independent,
    test_forward_to_scattered_columns,
    test_forward_writes_all_or_nothing,
    test_lifetime,
    test_one_refusal_gives_nothing,
    test_order_and_reorder,
    test_read_only_memory,
    test_strides_and_address,
    test_the_empty_spec,
    test_values_shape_and_dtype,
    test_write,
    test_write_of_aliases,
    test_write_scattered_and_sliced,
)
from test_conformance import test_bad_writes_write_nothing as writes_nothing

from soaview import Spec

FEW = ["columns", "matrix", "interleaved-matrix", "scalar", "array-value"]
SOME = [c for c in CASES if c.dtype == "float32"]
SOME += [c for c in CASES if c.dtype in ("bfloat16", "int64") and c.name.split("-", 1)[1] in FEW]


def pytest_generate_tests(metafunc):
    """All kinds of entries, in few dtypes: what lies where is known of all by the suite itself."""
    take_cases(metafunc, SOME)


@pytest.fixture(autouse=True)
def bound(monkeypatch):
    """The SoAs under test are bound ones."""
    monkeypatch.setattr(places, "under_test", places.BoundMemory())


WHY = "(no positive, even distance|its columns have other strides)"


@pytest.mark.parametrize("entry", SCATTERED, ids=str)
def test_scattered_columns(adapter, entry):
    """Columns that no single view covers are refused with the reason; `copy=None` gathers them."""
    gathered(adapter, entry, WHY, (1, 33, 1024))


@pytest.mark.parametrize(
    ("spec", "second", "error", "message"), [b for b in BAD_WRITES if "padded" not in b[-1]]
)
def test_bad_writes_write_nothing(adapter, spec, second, error, message):
    """Everything is checked before the first byte is written."""
    writes_nothing(adapter, spec, second, error, message)


def test_padded(adapter):
    """There are no padded rows, and `padded=True` gives the rows, wherever the tensors are made."""
    layout = layout_of("float32", "int8")
    if adapter.aliases:
        with pytest.raises(ValueError, match=r"padded=True: rows 10:20 are a slice of 100"):
            adapter.tensors(wrapped(layout, 100)[0][10:20], Spec(x="x"), padded=True)
    for rows in adapter.rows:
        soa, expected = wrapped(layout, rows)
        spec = Spec(x="x", t=["x", "z"], p="p", n="n")
        found = tensors(adapter, soa, spec, padded=True) or []
        for tensor in found:
            assert tensor.shape[0] == rows
        if found:
            assert (adapter.to_numpy(found[0]) == expected["x"]).all()
