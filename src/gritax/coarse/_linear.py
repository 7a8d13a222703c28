"""Optimizers that are linear in their gradients, such as heavy ball: many of their steps are one small matrix.

For one parameter array w, the floating arrays that its gradient moves (w itself, its velocity, an average of it) are a *family*
u. If the optimizer is linear, and does to all elements the same, then R steps with the gradients g_0, …, g_{R-1} give

    u_i <- sum_j T_ij u_j + sum_k A_ik g_k

with numbers T and A that depend on the step alone. So R gradients are needed only as a few weighted sums.
"""

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, PyTree

from .._optimizer import found_once, updated


logger = logging.getLogger("gritax")

_MOST_SUMS = 2
_COUNTS = (0, 10, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, 1_000_000)


@dataclass(frozen=True)
class LinearOptimizer:
    """How an optimizer that is linear moves its leaves, those of (parameters, optimizer state) in their order.

    `families` has for each leaf the index of the parameter whose gradient moves it, or None for an integer; `sums` the index
    of the weighted sum of gradients that it takes.
    """

    families: tuple[int | None, ...]
    sums: tuple[int | None, ...]

    @property
    def num_sums(self) -> int:
        return 1 + max(index for index in self.sums if index is not None)

    def members(self, family: int | None) -> list[int]:
        return [] if family is None else [i for i, each in enumerate(self.families) if each == family]

    def coefficients(self, optimizer, params: PyTree, opt_state: PyTree, num_steps: int) -> list[tuple[Array, Array]]:
        """(T_i, A_i) of each leaf, by reverse differentiation of the optimizer's own steps on one element a leaf.

        For an integer leaf, its value after the steps, twice.
        """
        members = [self.members(family) for family in self.families]
        leaves, structure = jax.tree.flatten((params, opt_state))

        def after(elements, gradients):
            merged = [leaf if family is None else x for leaf, family, x in zip(leaves, self.families, elements, strict=True)]
            params, opt_state = jax.tree.unflatten(structure, merged)
            gradients = jax.tree.unflatten(jax.tree.structure(params), gradients)
            found = jax.tree.leaves(replay(optimizer, params, opt_state, gradients))
            moved = [None if family is None else x for family, x in zip(self.families, found, strict=True)]
            return moved, found

        elements = [None if family is None else jnp.zeros((), x.dtype) for x, family in zip(leaves, self.families, strict=True)]
        gradients = [jnp.zeros(num_steps, x.dtype) for x in jax.tree.leaves(params)]
        _, pull, found = jax.vjp(after, elements, gradients, has_aux=True)

        def of_member(index):
            # Families do not mix, so one pass serves the members of this index in all of them.
            picked = [bool(m) and len(m) > index and m[index] == i for i, m in enumerate(members)]
            return pull([x if x is None else jnp.full_like(x, pick) for x, pick in zip(elements, picked, strict=True)])

        rows = [of_member(index) for index in range(max(map(len, members)))]

        def of_leaf(i, family):
            if family is None:
                return found[i], found[i]
            own, weights = rows[members[i].index(i)]
            return jnp.stack([own[j] for j in members[i]]), weights[family]

        return [of_leaf(i, family) for i, family in enumerate(self.families)]


class LinearSteps:
    """`num_steps` steps of `optimizer` from a state: its leaves need only `rows` of weights for the gradients of the steps."""

    def __init__(self, kind: LinearOptimizer, optimizer, params: PyTree, opt_state: PyTree, num_steps: int):
        self.kind = kind
        coefficients = kind.coefficients if None in kind.families else partial(_of_steps_alike, kind)
        self.coefficients = coefficients(optimizer, params, opt_state, num_steps)
        self.rows = [self.coefficients[kind.sums.index(index)][1] for index in range(kind.num_sums)]

    def advance(self, params: PyTree, opt_state: PyTree, sums: list[PyTree]) -> tuple[PyTree, PyTree]:
        """(parameters, optimizer state) after the steps, from the sums of their gradients weighted by each of the rows."""
        leaves, structure = jax.tree.flatten((params, opt_state))
        gradients = [jax.tree.leaves(each) for each in sums]

        def new(index):
            family = self.kind.families[index]
            if family is None:
                return self.coefficients[index][0]
            own = self.coefficients[index][0]
            members = [leaves[i] for i in self.kind.members(family)]
            return sum((own[j] * member for j, member in enumerate(members)), gradients[self.kind.sums[index]][family])

        return jax.tree.unflatten(structure, [new(index) for index in range(len(leaves))])


@found_once
def one_step(of: tuple[LinearOptimizer, Any], params: PyTree) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """For each family (T, A), of a step of an optimizer of this kind that counts nothing, so that all its steps are alike."""
    kind, optimizer = of
    params, opt_state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (params, jax.eval_shape(optimizer.init, params)))
    found = jax.jit(lambda params, opt_state: kind.coefficients(optimizer, params, opt_state, 1))(params, opt_state)
    stacked = lambda part, family: np.stack([np.asarray(found[i][part], float) for i in kind.members(family)])
    return {family: (stacked(0, family), stacked(1, family)[:, 0]) for family in set(kind.families) if family is not None}


def _of_steps_alike(kind, optimizer, params, opt_state, num_steps) -> list[tuple[Array, Array]]:
    """As `LinearOptimizer.coefficients`, but from those of one step, by doubling: numbers, not loops over the steps."""
    leaves = jax.tree.leaves((params, opt_state))
    found: list = [None] * len(leaves)
    for family, (step, weights) in one_step((kind, optimizer), params).items():
        transfer, rows = np.eye(len(step)), np.zeros((len(step), 0))
        for bit in f"{num_steps:b}":
            transfer, rows = transfer @ transfer, np.concatenate([transfer @ rows, rows], axis=1)
            if bit == "1":
                transfer, rows = transfer @ step, np.concatenate([(transfer @ weights)[:, None], rows], axis=1)
        for i, *own in zip(kind.members(family), transfer, rows, strict=True):
            found[i] = tuple(jnp.asarray(x, leaves[i].dtype) for x in own)
    return found


def replay(optimizer: optax.GradientTransformation, params: PyTree, opt_state: PyTree, gradients: PyTree, value=0.0):
    """(parameters, optimizer state) after the optimizer's steps with the gradients, all at the loss `value`."""
    value = jnp.asarray(value)

    def step(carry, gradient):
        params, opt_state = carry
        return updated(optimizer, gradient, opt_state, params, value), None

    return jax.lax.scan(step, (params, opt_state), gradients)[0]


@found_once
def linear(optimizer: optax.GradientTransformation, params: PyTree) -> LinearOptimizer | None:
    """The optimizer's families, if it is linear, treats all elements alike and needs two sums at most; else None."""
    families = _families(optimizer, params)
    try:
        return None if families is None else _measured(optimizer, params, families)
    except Exception as error:
        # Masks and labels that go by shape, say: what does not run on one number a leaf does not treat all elements alike.
        logger.debug("not an optimizer of single numbers", exc_info=error)
        return None


def _families(optimizer, params) -> tuple[int | None, ...] | None:
    """For each leaf the parameter whose gradient alone moves it; None if the optimizer is not linear or mixes parameters."""
    state = (params, jax.eval_shape(optimizer.init, params))
    leaves, structure = jax.tree.flatten(state)
    floating = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    num_params = len(jax.tree.leaves(params))

    def step(gradients, values, others, loss):
        merged = [values[floating.index(i)] if i in floating else others[i] for i in range(len(leaves))]
        params, opt_state = jax.tree.unflatten(structure, merged)
        gradients = jax.tree.map(lambda g: g[None], jax.tree.unflatten(jax.tree.structure(params), gradients))
        after = jax.tree.leaves(replay(optimizer, params, opt_state, gradients, loss))
        return [after[i] for i in floating]

    def tangents(loss, gradients, values, others, gradients_dot, values_dot):
        return jax.jvp(lambda g, v: step(g, v, others, loss), (gradients, values), (gradients_dot, values_dot))[1]

    gradients, values = leaves[:num_params], [leaves[i] for i in floating]
    jaxpr = jax.make_jaxpr(tangents)(jnp.zeros(()), gradients, values, leaves, gradients, values).jaxpr
    reached: list[set[int]] = []
    for index in range(len(floating)):
        used = dce_jaxpr(jaxpr, [i == index for i in range(len(floating))])[1]
        # Neither gradients and state nor the loss may be in the coefficients.
        primal, used = used[: 1 + num_params + len(values)], used[-(num_params + len(values)) :]
        if any(primal):
            return None
        own = {floating[i] for i, is_used in enumerate(used[num_params:]) if is_used} | {floating[index]}
        reached.append({i for i, is_used in enumerate(used[:num_params]) if is_used} | {i for i in own if i < num_params})
    families: list[int | None] = [None] * len(leaves)
    for index, found in zip(floating, reached, strict=True):
        if (
            len(found) != 1
            or leaves[index].shape != leaves[min(found)].shape
            or leaves[index].dtype != leaves[min(found)].dtype
        ):
            return None
        families[index] = min(found)
    return tuple(families)


def _measured(optimizer, params, families) -> LinearOptimizer | None:
    opt_state = jax.jit(optimizer.init)(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params))
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)
    one_sum = LinearOptimizer(families, tuple(None if f is None else 0 for f in families))
    coefficients = jax.jit(lambda state: one_sum.coefficients(optimizer, params, state, 8))
    found = [coefficients(_later(opt_state, count)) for count in _COUNTS]
    rows = [np.concatenate([np.asarray(each[index][1]).ravel() for each in found]) for index in range(len(families))]
    distinct: list[np.ndarray] = []
    sums: list[int | None] = []
    for family, row in zip(families, rows, strict=True):
        if family is None:
            sums.append(None)
            continue
        same = [i for i, other in enumerate(distinct) if np.allclose(row, other, rtol=1e-5, atol=0)]
        if not same:
            distinct.append(row)
        sums.append(same[0] if same else len(distinct) - 1)
    if len(distinct) > _MOST_SUMS:
        return None
    candidate = LinearOptimizer(families, tuple(sums))
    return candidate if _agrees(candidate, optimizer, params, opt_state) else None


def _later(opt_state, count):
    """With its counters ahead: two schedules may agree for long."""
    return jax.tree.map(lambda x: x + jnp.asarray(count, x.dtype) if jnp.issubdtype(x.dtype, jnp.integer) else x, opt_state)


def _agrees(candidate, optimizer, params, opt_state) -> bool:
    """Whether three steps do what the coefficients say: linear operations need not be by element.

    From a random state without gradients, and from nothing with random gradients: each has a size of its own.
    """

    def random(seed, tree, *axes):
        draw = np.random.default_rng(seed)
        fill = lambda x: jnp.asarray(draw.standard_normal((*axes, *x.shape)), x.dtype)
        return jax.tree.map(lambda x: fill(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)

    state, gradients = (random(0, params), random(1, opt_state)), random(2, params, 3)
    nothing = jax.tree.map(jnp.zeros_like, gradients)

    @jax.jit
    def both(state, gradients):
        params, opt_state = state

        def weighted(row):
            return jax.tree.map(lambda g: jnp.tensordot(row.astype(g.dtype), g, 1), gradients)

        steps = LinearSteps(candidate, optimizer, params, opt_state, 3)
        wanted = replay(optimizer, params, opt_state, gradients)
        return wanted, steps.advance(params, opt_state, [weighted(row) for row in steps.rows])

    def agree(state, gradients):
        wanted, given = both(state, gradients)
        leaves = zip(*map(jax.tree.leaves, (state, wanted, given)), candidate.families, strict=True)
        return all(_same_change(*each) for *each, family in leaves if family is not None)

    return all(
        agree((state[0], _later(state[1], count)), nothing) and agree((params, _later(opt_state, count)), gradients)
        for count in (0, 1000)
    )


def _same_change(before, wanted, given) -> bool:
    rounding = 16 * jnp.finfo(before.dtype).eps * np.max(np.abs(before), initial=0)
    change = np.max(np.abs(wanted - before), initial=0)
    return bool(np.max(np.abs(wanted - given), initial=0) <= 1e-3 * change + rounding)
