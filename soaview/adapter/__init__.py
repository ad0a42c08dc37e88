"""What an adapter for a framework needs of the core, and no more.

An adapter turns an SoA and a spec into tensors of its framework, and writes tensors back. The core
has done all arithmetic and every check before: `docs/adapters.md` shows a complete adapter.

| what | names |
|---|---|
| a spec's tensors over an SoA | `resolve`, `views_or_gathers`, `Gather`, `Strided`, `Numbers` |
| the same as text, for event loops | `places`, `Places`, `Place`, `compiled`, `as_tuple` |
| the memory, and what it is asked | `Buffer`, `HostBuffer`, `DeviceBuffer`, `host_array` |
| what is a view, and why not | `announce`, `verdicts`, `Verdict`, `Explain`, `why_copied_in` |
| arguments | `check_soa`, `check_copy`, `exact_int` |
| writing | `writable_views`, `Target`, `Matches`, `match`, `Described`, `parts_of`, `overlaps` |
| the same | `check_writable`, where memory may have become read-only since |
| columns in place of others | `check_given`, `tensor_labels` |
| models, from SoA to SoA | `pairs`, `work`, `Work`, `results`, `check_model` |
| other dtypes, where they are named | `check_dtype`, `check_dtypes` |
| the same, event after event | `event_for`, `events_for`, `check_sides`, `soas_of`, ... |
| rows by events | `check_one_given`, `host_offsets`, `check_integers`, ... |
| chosen rows, and SoAs one after another | `row_numbers`, `gather`, `check_alike`, ... |
| runs | `Run`, `runs`, `run_numbers`, `columns_of`, `copy_rows` |
| the SoA's adapter cache | `keep` |
| dtypes | `ITEMSIZE`, `INT64_MAX`, `numpy_dtype`, `is_dense` |
"""

from .._bind import apart
from .._bound import PLAIN, Allocations, BoundFields
from .._buffer import Buffer, HostBuffer, host_array
from .._compile import Place, Places, as_tuple, compiled, places
from .._device import DeviceBuffer
from .._dtypes import INT64_MAX, ITEMSIZE, exact_int, numpy_dtype
from .._explain import Explain, Verdict, announce, verdicts
from .._frameworks import check_storage
from .._gather import Gather, views_or_gathers
from .._reduce import copy_rows
from .._rows import (
    check_alike,
    check_mask,
    check_present,
    check_same_scalar,
    gather,
    row_numbers,
)
from .._runs import Run, run_numbers, runs
from .._soa import keep
from .._spec import columns_of
from .._strided import Numbers, Strided, is_dense
from .._views import check_copy, check_soa, resolve
from .._why import why_copied_in
from .._write import check_given, check_writable, tensor_labels
from ._dtypes import check_dtype, check_dtypes
from ._forward import (
    BatchSize,
    Pair,
    Pairs,
    Work,
    check_model,
    pairs,
    results,
    work,
)
from ._prepare import (
    EVENT_NAMES,
    MOST_OUTPUTS,
    Memories,
    Side,
    Sides,
    array_lines,
    check_sides,
    event_for,
    events_for,
    in_order,
    soa_lines,
    soas_of,
)
from ._ragged import check_among_rows, check_integers, check_offsets, check_one_given, host_offsets
from ._targets import Described, Matches, Target, match, overlaps, parts_of, writable_views

__all__ = [
    "EVENT_NAMES",
    "INT64_MAX",
    "ITEMSIZE",
    "MOST_OUTPUTS",
    "PLAIN",
    "Allocations",
    "BatchSize",
    "BoundFields",
    "Buffer",
    "Described",
    "DeviceBuffer",
    "Explain",
    "Gather",
    "HostBuffer",
    "Matches",
    "Memories",
    "Numbers",
    "Pair",
    "Pairs",
    "Place",
    "Places",
    "Run",
    "Side",
    "Sides",
    "Strided",
    "Target",
    "Verdict",
    "Work",
    "announce",
    "apart",
    "array_lines",
    "as_tuple",
    "check_alike",
    "check_among_rows",
    "check_copy",
    "check_dtype",
    "check_dtypes",
    "check_given",
    "check_integers",
    "check_mask",
    "check_model",
    "check_offsets",
    "check_one_given",
    "check_present",
    "check_same_scalar",
    "check_sides",
    "check_soa",
    "check_storage",
    "check_writable",
    "columns_of",
    "compiled",
    "copy_rows",
    "event_for",
    "events_for",
    "exact_int",
    "gather",
    "host_array",
    "host_offsets",
    "in_order",
    "is_dense",
    "keep",
    "match",
    "numpy_dtype",
    "overlaps",
    "pairs",
    "parts_of",
    "places",
    "resolve",
    "results",
    "row_numbers",
    "run_numbers",
    "runs",
    "soa_lines",
    "soas_of",
    "tensor_labels",
    "verdicts",
    "views_or_gathers",
    "why_copied_in",
    "work",
    "writable_views",
]
