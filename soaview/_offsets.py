"""A producer's offsets against a layout's: what lies elsewhere, and what would explain it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from functools import partial

from ._dtypes import INT64_MAX, exact_int
from ._fields import no_such
from ._layout import Layout

_ALIGNMENTS = [1 << power for power in range(13)]


def check_offsets(layout: Layout, offsets: Mapping[str, int], rows: int) -> None:
    """`Layout.check`."""
    if not isinstance(offsets, Mapping):
        raise TypeError(f"offsets must be a mapping from field to byte, got {offsets!r:.60}")
    if not offsets:
        raise ValueError("no offsets to compare; pass those that the producer knows, by field")
    found = {name: exact_int(at, f"field {name!r:.80}: the offset") for name, at in offsets.items()}
    apart, unknown = {}, []
    for name, at in found.items():
        if name not in layout:
            unknown.append(name)
        elif at != (here := layout.offset(name, rows)):
            apart[name] = at - here
    if not apart and not unknown:
        return
    said = []
    if unknown:
        said.append(f"{no_such('column', unknown[0], layout)}")
        theirs = [f"{name!r:.80} at byte {found[name]}" for name in unknown]
        said.append(f"the producer has, and the layout lacks, {', '.join(theirs)}")
    if apart:
        lie = "lies" if len(apart) == 1 else "lie"
        fields = [
            f"{name!r:.80} at byte {found[name]}, here at {found[name] - by} "
            f"({abs(by)} {'more' if by > 0 else 'less'})"
            for name, by in apart.items()
        ]
        said.append(f"{len(apart)} of {len(found)} fields {lie} elsewhere: {', '.join(fields)}")
    # What lies elsewhere comes first: it settles most of what is tried.
    known = {**dict.fromkeys(apart, 0), **found}
    known = {name: found[name] for name in known if name in layout}
    why = _explained(layout, known, apart, rows) if apart else ""
    raise ValueError(f"at {rows} rows {'; '.join(said)}{why}")


def _explained(layout: Layout, offsets: dict[str, int], apart: dict[str, int], rows: int) -> str:
    """What would make the layout's offsets the producer's, where something simple does."""
    others = [
        Layout(layout.fields, alignment=alignment)
        for alignment in _ALIGNMENTS
        if alignment >= layout.itemsize and alignment != layout.alignment
    ]
    for other in others:
        if all(other.offset(name, rows) == at for name, at in offsets.items()):
            return f"; this would be so with alignment={other.alignment}"
    for other in (layout, *others):
        counts = _row_counts(other, offsets)
        if counts is not None:
            least, most = counts
            span = str(least) if least == most else f"{least} to {most}"
            with_it = f" and alignment={other.alignment}" if other is not layout else ""
            return f"; this would be so at {span} rows{with_it}"
    return _shifted(layout, offsets, apart, rows)


def _row_counts(layout: Layout, offsets: dict[str, int]) -> tuple[int, int] | None:
    """At which row counts, the least and the most, the fields have just these offsets."""
    least, most, within = 0, INT64_MAX, range(INT64_MAX)
    for name, at in offsets.items():
        # An offset never decreases with the rows, and so it is right between two that are.
        at_rows = partial(layout.offset, name)
        if at_rows(least) == at_rows(most) == at:
            continue
        least = bisect_left(within, at, least, most, key=at_rows)
        most = bisect_left(within, at + 1, least, most, key=at_rows) - (at_rows(most) > at)
        if least > most or at_rows(least) != at:
            return None
    return least, most


def _shifted(layout: Layout, offsets: dict[str, int], apart: dict[str, int], rows: int) -> str:
    """Whether all that follows some field is moved by one distance: a field too many or few."""
    in_memory = sorted(offsets, key=lambda name: layout.offset(name, rows))
    first = next(number for number, name in enumerate(in_memory) if name in apart)
    moved = {apart.get(name, 0) for name in in_memory[first:]}
    if len(moved) > 1:
        return ""
    [by] = moved
    start = in_memory[first]
    if by > 0:
        kinds = [
            f"a column of {size} bytes a row"
            for size in (1, 2, 4, 8, 16)
            if -(-rows * size // layout.alignment) * layout.alignment == by
        ]
        like = f", such as {' or '.join(kinds)}" if kinds else ""
        return (
            f"; this would be so if the producer had {by} bytes before {start!r:.80} that the "
            f"layout lacks{like}"
        )
    before = layout.offset(in_memory[first - 1], rows) if first else -1
    for name in layout:
        at = layout.offset(name, rows)
        size = layout.pitch(name, rows) * layout[name].subcolumns
        if name not in offsets and before < at < layout.offset(start, rows) and size == -by:
            return f"; this would be so if the producer had no field {name!r:.80}"
    return f"; this would be so if the producer had {-by} bytes less before {start!r:.80}"
