"""Functions of JAX's in an event loop: prepared once, and run on every event's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from soaview.adapter import Memories, Sides, check_model, check_sides, events_for, soas_of

from ._event import LATER, event_of_arrays, event_of_soas
from ._forward import call_of, forward
from ._row_wise import check_mode


def prepare(
    fn: Callable[..., Any],
    inputs: Sides,
    outputs: Sides,
    *,
    row_wise: bool | Literal["verify"] = False,
) -> Callable[[Memories, Memories], None]:
    """What runs a function on one event after another: `forward`, with its checks done beforehand.

    Of new memory of the host a call takes little more than the function; of all other memory it is
    `forward`. The promises and errors are those of `forward`. The function is compiled for each row
    count: where these never come again, use `row_wise=`.

    Args:
        fn: any function of arrays that can be traced; of one that is a pytree the arrays are those
            that it has now.
        inputs: a pair `(layout, spec)`, or a list of pairs: what every event brings.
        outputs: likewise: what the results are written to.
        row_wise: as in `forward`: compile for capacities, and not for each row count.

    Returns:
        A function of `(inputs, outputs)`: for each pair an SoA of that layout, or `(buffer, rows)`,
        what `layout.wrap` takes; in a list, where there are several.

    Raises:
        TypeError, KeyError, ValueError: layouts and specs that do not go together, columns that
            cannot be written, a function that cannot be called, or be told from others.

    >>> import numpy as np
    >>> from soaview import Column, Layout, Spec
    >>> layout = Layout([Column("x", "float32"), Column("y", "float32")])
    >>> run = prepare(lambda x: 2 * x, (layout, Spec(x="x")), (layout, Spec(y="y")))
    >>> soa = layout.pack({"x": [1.0, 2.0], "y": [0.0, 0.0]})
    >>> run(soa, soa)
    >>> soa["y"]
    array([2., 4.], dtype=float32)
    """
    check_model(fn)
    check_mode(row_wise)
    ins, outs = check_sides("inputs", inputs), check_sides("outputs", outputs)
    arrays = soas = None
    if row_wise is False:
        arrays = events_for("jax.arrays", event_of_arrays, ins, outs)
        soas = events_for("jax.event", event_of_soas, ins, outs)
    by_arrays, by_soas = (None if event is None else call_of(fn, event) for event in (arrays, soas))

    def at_once(inputs: Any, outputs: Any) -> bool:
        if arrays is None:
            return False
        one = (inputs,) if len(ins) == 1 and type(inputs) is tuple else inputs
        other = (outputs,) if len(outs) == 1 and type(outputs) is tuple else outputs
        for what, sides in ((one, ins), (other, outs)):
            if type(what) not in (tuple, list) or len(what) != len(sides):
                return False
        return arrays.run(by_arrays, one, other) is not LATER

    def run(inputs: Memories, outputs: Memories) -> None:
        if at_once(inputs, outputs):
            return
        given, written = soas_of("inputs", ins, inputs), soas_of("outputs", outs, outputs)
        if soas is None or soas.run(by_soas, given, written) is LATER:
            forward(fn, given, written, row_wise=row_wise)

    return run
