"""The states that are asked for along a run: the front stops at each of them, and what it is there is kept on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._evolution import Evolution
from ._chain import Chain
from ._flight import Flight, Shape


Saved = tuple[PyTree[Array], PyTree[Array]]


def nothing_saved(evolution: Evolution, chain: Chain, shape: Shape) -> Saved | None:
    """Places for (floating leaves, clocks) of each state asked for, NaN where there is none; None if none is asked for."""
    if not shape.save_every:
        return None
    count = shape.num_steps // shape.save_every

    def places(x: Array) -> Array:
        x = jnp.full_like(x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.inexact) else x
        return jnp.broadcast_to(x[None], (count, *x.shape))

    return jax.tree.map(places, evolution.split(chain.state(chain.first, chain.memory)))


def with_front(evolution: Evolution, chain: Chain, shape: Shape, saved: Saved | None, flight: Flight) -> Saved | None:
    """`saved` with the state of the front, if that is one of those asked for."""
    if saved is None or shape.save_every > shape.num_steps:
        return saved
    every, taken = shape.save_every, flight.front.taken
    # What is not asked for goes past the end, and is dropped.
    index = jnp.where(taken % every == 0, taken // every - 1, shape.num_steps // every)
    now = evolution.split(chain.state(flight.rows.x[0], flight.front.memory))
    return jax.tree.map(lambda all_, one: all_.at[index].set(one, mode="drop"), saved, now)
