"""Models of torch's in an event loop: prepared once, and run on every event's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from soaview.adapter import Memories, Sides, check_copy, check_model, check_sides, resolve, soas_of

from ._event import at_once, of_arrays, of_soas
from ._forward import forward


def prepare(
    model: Callable[..., Any], inputs: Sides, outputs: Sides, *, copy: bool | None = False
) -> Callable[[Memories, Memories], None]:
    """What runs a model on one event after another: `forward`, with its checks done beforehand.

    Of new memory of the host, whatever its row count, a call takes little more than the model; of
    all other memory it is `forward`. The promises and errors are those of `forward`.

    Args:
        model: any function of tensors; it is called in inference mode.
        inputs: a pair `(layout, spec)`, or a list of pairs: what every event brings.
        outputs: likewise: what the results are written to.
        copy: of the inputs, as in `forward`: `None` for events that may be read-only.

    Returns:
        A function of `(inputs, outputs)`: for each pair an SoA of that layout, or `(buffer, rows)`,
        what `layout.wrap` takes; in a list, where there are several.

    Raises:
        BufferError: with `copy=False`, a tensor that cannot be a view.
        TypeError, KeyError, ValueError: layouts and specs that do not go together, columns that
            cannot be written, a model that cannot be called.

    >>> import numpy as np
    >>> from soaview import Column, Layout, Spec
    >>> layout = Layout([Column("x", "float32"), Column("y", "float32")])
    >>> run = prepare(lambda x: 2 * x, (layout, Spec(x="x")), (layout, Spec(y="y")))
    >>> for rows in (3, 100):
    ...     buffer = np.ones(layout.nbytes(rows) // 4, "float32").view("uint8").copy()
    ...     run((buffer, rows), (buffer, rows))
    >>> layout.wrap(buffer, rows)["y"][:3]
    array([2., 2., 2.], dtype=float32)
    """
    check_copy(copy)
    check_model(model)
    ins, outs = check_sides("inputs", inputs), check_sides("outputs", outputs)
    if copy is False:
        for layout, spec in ins:
            resolve(layout.allocate(1), spec)  # raises where columns have no single strided view
    known = of_soas(ins, outs) if copy is False else None

    def by_soas(inputs: Memories, outputs: Memories) -> None:
        given, written = soas_of("inputs", ins, inputs), soas_of("outputs", outs, outputs)
        if not at_once(known, model, given, written):
            forward(model, given, written, copy=copy)

    at_once_of_arrays = of_arrays(model, ins, outs, by_soas) if copy is False else None
    return at_once_of_arrays or by_soas
