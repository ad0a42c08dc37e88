"""Batches of an SoA's rows, epoch after epoch, of one shape."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from soaview import SoA, Spec
from soaview.adapter import check_soa, exact_int, views_or_gathers

from ._arrays import arrays, check_width
from ._leaves import Leaves
from ._rows import check_count
from ._settings import host_device, x64
from ._take import take


def loader(
    soa: SoA,
    spec: Spec,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
) -> Loader:
    """Batches of an SoA's rows: an iterable with a length, each pass over which is an epoch.

    A batch is a list of arrays, in spec order; inputs and labels stand in one spec. All batches
    have one shape, for `jit` compiles for each. So a last one that is short is filled up with rows
    of the epoch's beginning, and every batch has one array more: bool, shape `(batch_size,)`, False
    for those. With `drop_last=True` there is neither.

    XLA chooses a batch's rows where the SoA is, into arrays of their own, which nothing writes
    afterwards: one copy, in order and shuffled. The memory itself is read until a batch is ready,
    so do not write into the SoA while an epoch lasts; where XLA cannot import it, it is copied when
    an epoch begins.

    An epoch's order follows from the seed and its number alone: `loader.epoch(n)` is one, and
    iterating gives epoch 0, 1, ... A part of it comes by `itertools.islice`.

    Args:
        soa: any that is not traced.
        spec: the arrays; those of `Value(name)` are the same in each batch.
        batch_size: rows of each.
        shuffle: draw the rows' order anew in each epoch.
        seed: for that; at least 0.
        drop_last: leave out what would have to be filled up.

    Raises:
        KeyError, TypeError, ValueError: as `arrays` and `SoA.batches`.

    >>> from soaview import Column, Layout, Spec
    >>> soa = Layout([Column("x", "float32"), Column("y", "float32")]).allocate(10)
    >>> for x, y, valid in loader(soa, Spec(x=["x"], y="y"), 4, shuffle=True):
    ...     print(x.shape, y.shape, valid.sum())
    (4, 1) (4,) 4
    (4, 1) (4,) 4
    (4, 1) (4,) 2
    """
    check_soa(soa)
    check_count(soa)
    if isinstance(soa.buffer, Leaves) and soa.buffer.traced:
        raise TypeError("soa is traced: a loader is made outside of jit, and gives its arguments")
    for view in views_or_gathers(soa, spec):
        if not x64():
            check_width(view)
    if not spec:
        raise ValueError("the spec has no tensors, and a batch of nothing has no rows")
    if shuffle is not True and shuffle is not False:
        raise TypeError(f"shuffle must be True or False, got {shuffle!r:.60}")
    seed = exact_int(seed, "seed")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    count = len(soa.batches(batch_size, drop_last=drop_last))
    return Loader(soa, spec, (int(batch_size), count), seed if shuffle else None, not drop_last)


class Loader:
    """Batches of an SoA's rows; `loader` makes it."""

    def __init__(
        self, soa: SoA, spec: Spec, shape: tuple[int, int], seed: int | None, filled: bool
    ) -> None:
        self._soa, self._spec = soa, spec
        self._size, self._count = shape
        self._seed, self._filled = seed, filled
        self._epochs = itertools.count()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[jax.Array]]:
        return self.epoch(next(self._epochs))

    def __repr__(self) -> str:
        order = "in order" if self._seed is None else f"shuffled by seed {self._seed}"
        return f"Loader({self._count} batches of {self._size} rows {order}: {self._soa!r})"

    def epoch(self, number: int) -> Iterator[list[jax.Array]]:
        """The batches of one epoch, the same each time.

        Args:
            number: which one, from 0 on.
        """
        number = exact_int(number, "the epoch's number")
        rows = self._soa.rows
        order = np.arange(rows, dtype=np.int64 if x64() else np.int32)
        if self._seed is not None:
            np.random.default_rng((self._seed, number)).shuffle(order)
        wanted = self._count * self._size
        return self._batches(_there(self._soa), np.resize(order, wanted))

    def _batches(self, there: SoA, order: NDArray[Any]) -> Iterator[list[jax.Array]]:
        for first in range(0, len(order), self._size):
            index = order[first : first + self._size]
            batch, valid = _batch(there, index, there.rows - first, self._spec)
            yield [*batch, valid] if self._filled else batch


@functools.partial(jax.jit, static_argnames="spec")
def _batch(soa: SoA, index: jax.Array, left: int, spec: Spec) -> tuple[list[jax.Array], jax.Array]:
    """The arrays of these rows, and which of them come before the rows that are left end."""
    return arrays(take(soa, index), spec), jnp.arange(len(index)) < left


def _there(soa: SoA) -> SoA:
    """The SoA in arrays of JAX's, over its memory itself where XLA takes that."""

    def leaf_there(leaf: object) -> jax.Array:
        return leaf if isinstance(leaf, jax.Array) else jax.device_put(leaf, host_device())

    found: SoA = jax.tree.map(leaf_there, soa)
    for leaf in jax.tree.leaves(found):
        leaf.block_until_ready()
    return found
