"""A step that is evaluated for many states at once must give what it gives for one of them."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.tree_util import tree_leaves_with_path
from jaxtyping import Array, PyTree

from ._evolution import Evolution
from ._norms import norm
from ._state import leaf_name


# JAX maps all other operations by rules under which values stay the same, to rounding.
_CALLBACKS = {"pure_callback", "io_callback", "custom_vmap_call", "ffi_call"}
_GENERATORS = {"rng_bit_generator", "rng_uniform"}
_THREEFRY = "key<fry>"
_STARTS = 4
# Other random numbers change an update as a whole, rounding its last digits: a thousandth of the update lies between the two.
_SAME, _ROUNDINGS = 1e-3, 64


def difference_when_batched(evolution: Evolution, floating: PyTree[Array], clock: PyTree[Array], num_steps: int) -> str:
    """Why steps that are evaluated at once give other values than one by one, as a sentence; "" where they give the same.

    Only a program with callbacks, or with random keys of another kind than threefry2x32, is run for that: from the initial
    state at a few steps, in both ways.
    """

    def after(state, start):
        floating, clock = state
        return evolution.advance(floating, clock, start, 1)

    state = floating, clock
    suspects = set(_suspects(jax.make_jaxpr(after)(state, jnp.int32(0)).jaxpr))
    if not suspects:
        return ""
    starts = jnp.asarray(np.unique(np.linspace(0, num_steps - 1, _STARTS).astype(np.int32)))
    # Copies of the state: what a key in the state draws may depend on whether it is one of many.
    states = jax.tree.map(lambda x: jnp.stack([x] * len(starts)), state)
    one_by_one = jax.jit(partial(jax.lax.map, lambda each: after(*each)))((states, starts))
    at_once = jax.jit(jax.vmap(after))(states, starts)
    for index, start in enumerate(starts.tolist()):
        here = (jax.tree.map(lambda x, i=index: x[i], each) for each in (states, one_by_one, at_once))
        for (path, x), y, z in zip(*map(tree_leaves_with_path, here), strict=True):
            if not _is_same(x, y[1], z[1]):
                return (
                    f"step {start} changes {leaf_name(path[1:])} otherwise when it is evaluated together with other steps, by "
                    f"jax.vmap, than by itself ({', '.join(sorted(suspects))})."
                )
    return ""


def _suspects(program: Any) -> Iterator[str]:
    """What in the program may give other values when it is mapped, in words for the user."""
    for equation in program.eqns:
        yield from _words(equation)
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)):
            if isinstance(part, ClosedJaxpr | Jaxpr):
                yield from _suspects(getattr(part, "jaxpr", part))


def _words(equation: JaxprEqn) -> Iterator[str]:
    name = equation.primitive.name
    if name in _CALLBACKS:
        yield f"{name}: what is called must be a pure function of its arguments, and the same for a batch of them"
    keys = (str(x.aval.dtype) for x in [*equation.invars, *equation.outvars] if hasattr(x.aval, "dtype"))
    if name in _GENERATORS or any(each.startswith("key<") and each != _THREEFRY for each in keys):
        yield (
            "a random key that is not of the threefry2x32 kind draws other numbers there: make it by jax.random.key(seed, "
            'impl="threefry2x32")'
        )


def _is_same(before: Array, one: Array, other: Array) -> bool:
    if not jnp.issubdtype(before.dtype, jnp.inexact):
        if jnp.issubdtype(before.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        return np.array_equal(one, other)
    if np.array_equal(one, other, equal_nan=True):
        return True
    update, apart = float(norm(one - before)), float(norm(one - other))
    return apart <= max(_SAME * update, _ROUNDINGS * float(jnp.finfo(before.dtype).eps) * float(norm(before)))
