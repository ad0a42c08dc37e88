"""SoAs that are donated to jitted functions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from soas import LAYOUT, STEP, addresses, filled, step

from soaview import Spec
from soaview_jax import arrays, update

NEEDS = ["jit"]


def test_donated_memory_of_xla_changes_in_place():
    """A donated SoA that XLA owns keeps its addresses, also after the host has read it."""
    soa = jax.jit(step)(filled(1000))
    advance = jax.jit(step, donate_argnums=0)
    before = addresses(soa)
    for count in range(2, 6):
        previous, soa = soa, advance(soa)
        assert addresses(soa) == before
        assert soa["x"][0] == arrays(soa, STEP)[0][0] == count
        np.testing.assert_array_equal(soa["d"], filled(1000)["d"])
        assert "on no device: it was donated" in repr(previous)
        for late in (
            lambda s: s["x"],
            lambda s: arrays(s, STEP),
            lambda s: update(s, STEP, [jnp.ones(1000)]),
        ):
            with pytest.raises(RuntimeError, match="'x:y' is deleted: the SoA was donated"):
                late(previous)


def test_what_is_being_read_is_not_changed():
    """While a NumPy view of XLA's memory lives, donation makes new memory."""
    soa = jax.jit(step)(filled(1000))
    kept, eager = soa["x"], arrays(soa, Spec(y="y"))
    soa = jax.jit(step, donate_argnums=0)(soa)
    assert (kept[0], soa["x"][0], eager[0][3]) == (1, 2, 4)


@pytest.mark.parametrize("make", ["itself", "slice", "device_put", "read-only", "forwarded"])
def test_donation_never_writes_the_users_memory(make):
    """Whatever way it went into JAX, no byte of a user's buffer changes."""
    mine = filled(1024)
    if make == "read-only":
        mine.buffer.root.flags.writeable = False
        mine = LAYOUT.wrap(mine.buffer.root, 1024)
    before = mine.buffer.root.copy()
    soa = {
        "itself": lambda: mine,
        "slice": lambda: mine[:512],
        "device_put": lambda: jax.device_put(mine),
        "read-only": lambda: mine,
        "forwarded": lambda: jax.jit(lambda s, y: (s, y + 1))(mine, 1)[0],
    }[make]()
    advance = jax.jit(step, donate_argnums=0)
    for count in range(1, 4):
        soa = jax.block_until_ready(advance(soa))
        assert soa["x"][0] == count
        np.testing.assert_array_equal(mine.buffer.root, before)
    assert arrays(mine, Spec(x="x"))[0][1] == 1
