"""What an SoA's own values say: how many rows are in use, and whether its bools are bools."""

from __future__ import annotations

import numpy as np

from ._soa import SoA
from ._spec import Spec, Value
from ._views import views


def count_in(soa: SoA, name: str) -> int:
    """The row count that a scalar of the SoA's holds; see `SoA.counted`."""
    field = soa.layout[name]
    if field.per_row or field.shape or not field.dtype.startswith(("int", "uint")):
        raise TypeError(f"a count is a Scalar of an integer dtype, got {field!r:.200}")
    if soa.rows != soa.capacity:
        raise ValueError(
            f"rows {soa.start}:{soa.start + soa.rows} are a slice of {soa.capacity}, whose "
            f"count is not theirs; take soa.counted({name!r:.80}) of the whole SoA"
        )
    if soa.buffer.on_host:
        count = soa[Value(name)].item()
    else:
        [view] = views(soa, Spec(count=Value(name)))
        buffer, at = view.buffer.locate(view.strided)
        count = buffer.value(at)
    if not 0 <= count <= soa.rows:
        raise ValueError(
            f"scalar {name!r:.80} says {count} rows, and there is room for {soa.rows}; was it "
            f"written, and is this the layout that it was written with?"
        )
    return int(count)


def check_bools(soa: SoA) -> None:
    """Raise unless every bool is stored as 0 or 1; see `SoA.check_bools`."""
    for field in soa.layout.fields:
        if field.dtype != "bool":
            continue
        found = soa[field.name if field.per_row else Value(field.name)].view(np.uint8)
        if found.size and found.max() > 1:
            first = tuple(np.argwhere(found > 1)[0])
            row = f", row {first[0]}" if field.per_row else ""
            raise ValueError(
                f"field {field.name!r:.80}{row}: a bool is stored as 0 or 1, got byte "
                f"{found[first]}; declare it uint8"
            )
