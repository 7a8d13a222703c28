r"""Training of a linearised network, step by step or at once, without the network.

An optimizer that is linear and does to all elements the same commutes with the Jacobian: run on the outputs q = J w in place
of the parameters w, with the gradients K c, it gives the outputs of all steps, and so every c.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._optimizer import updated
from ._function_space import FunctionSpace, only
from ._lapack import eigh, solve_unit_lower
from ._linear import LinearOptimizer


_STABLE = 0.95


class LinearisedTraining:
    """`optimizer`, linear and of the given kind, on the outputs in `space`; `scale` is what its gradients are multiplied by.

    `groups` are parameter leaves that it treats alike: their outputs are added up, and stand in the place of the first.
    """

    def __init__(
        self, space: FunctionSpace, optimizer: Any, kind: LinearOptimizer, opt_state: PyTree, scale: PyTree | None, length: int
    ):
        self.space, self.optimizer, self.kind, self.length = space, optimizer, kind, length
        self._state = space.params, opt_state
        self._scale = scale
        self._num_params = len(jax.tree.leaves(space.params))
        self.groups = alike(kind, self._num_params)
        self.grams = space.gram(self.groups, scale)

    def outputs(self, member: int) -> list[Array]:
        """J times the members of this index in each family, [step, row] for each group; of zeros where there is none."""
        leaves = jax.tree.leaves(self._state)
        scale = jax.tree.leaves(self._scale)

        def of_leaf(f):
            found = self.kind.members(f)
            u = leaves[found[member]] if member < len(found) else jnp.zeros_like(leaves[f])
            # Moments are in units of the gradient.
            return u * scale[f] if member and scale else u

        all_leaves = [of_leaf(f) for f in range(self._num_params)]
        tree = jax.tree.unflatten(jax.tree.structure(self.space.params), all_leaves)
        return [self.space.push(only(tree, group)) for group in self.groups]

    def output_gradients(self) -> Array:
        """c of all steps, [step, row]."""
        if self.space.is_affine and not self.space.same_data:
            return self._at_once()
        return self._one_by_one()

    def _one_by_one(self) -> Array:
        """Each step with the derivative at its own outputs, whatever the criterion."""
        space, rows = self.space, self.space.values.shape[1]
        before = [q.ravel() for q in self.outputs(0)]

        def gradient(j, q):
            first = 0 if space.same_data else j * rows
            own = lambda x: jax.lax.dynamic_slice_in_dim(x, first, rows, axis=-1)
            moved = sum(own(now - start) for now, start in zip(q, before, strict=True))
            c = space.output_gradient(space.values[0 if space.same_data else j] + moved, space.start + j)
            return [own(gram) @ c for gram in self.grams], c

        return self._run(self._members(), gradient)

    def _at_once(self) -> Array:
        r"""For a c that is affine, $c_k = b_k + S_k o_k$: a block-triangular system, since $o_k$ depends on earlier c alone."""
        space, (length, rows) = self.space, self.space.values.shape
        before = [q.reshape(length, rows) for q in self.outputs(0)]
        none = [jnp.zeros_like(gram[0]) for gram in self.grams]

        def without_gradients(j, q):
            return none, sum(now.reshape(length, rows)[j] - start[j] for now, start in zip(q, before, strict=True))

        moved = self._run(self._members(), without_gradients)
        steps, values = space.steps, space.values
        slopes = jax.vmap(lambda o, k: jax.jacfwd(lambda o: space.output_gradient(o, k))(o))(values, steps)
        right = jax.vmap(space.output_gradient)(values, steps) + jnp.einsum("kab,kb->ka", slopes, moved)
        blocks = [gram.reshape(length, rows, length, rows) for gram in self.grams]
        by_step = zip(self._responses(), blocks, strict=True)
        coupled = sum(response[:, None, :, None] * block for response, block in by_step)
        system = jnp.eye(length * rows, dtype=values.dtype) - jnp.einsum("kab,kbjc->kajc", slopes, coupled).reshape(
            length * rows, length * rows
        )
        solution = solve_unit_lower(system, right.ravel())
        return solution.reshape(length, rows)

    def _responses(self) -> list[Array]:
        """For each group [k, j]: what w at step k has of the gradient of step j."""
        nothing = [None if family is None else jnp.zeros(self.length, leaf.dtype) for family, leaf in self._leaves()]

        def pulse(j, q):
            return [jnp.zeros(self.length, x.dtype).at[j].set(1) for x in q], q

        return self._run(nothing, pulse)

    def _leaves(self):
        return zip(self.kind.families, jax.tree.leaves(self._state), strict=True)

    def _members(self) -> list[Array | None]:
        """For each leaf of (parameters, optimizer state) its outputs, in the first leaf of its group; None for integers."""
        found: list[Array | None] = [None] * len(self.kind.families)
        for member in range(max(len(self.kind.members(f)) for f in range(self._num_params))):
            for group, q in zip(self.groups, self.outputs(member), strict=True):
                if member < len(own := self.kind.members(group[0])):
                    found[own[member]] = q.ravel()
        return found

    def _run(self, start: list[Array | None], gradient: Callable) -> Any:
        """What `gradient(j, q) -> (gradients of the groups, out)` gave out, over all steps of the optimizer from `start`."""
        structure = jax.tree.structure(self._state)
        empty = [leaf if family is None else jnp.zeros(0, leaf.dtype) for family, leaf in self._leaves()]
        first = jax.tree.unflatten(structure, [x if q is None else q for x, q in zip(empty, start, strict=True)])
        params_structure = jax.tree.structure(self.space.params)

        def step(carry, j):
            params, opt_state = carry
            q = jax.tree.leaves(params)
            gradients, out = gradient(j, [q[group[0]] for group in self.groups])
            filled = [jnp.zeros_like(x) for x in q]
            for group, g in zip(self.groups, gradients, strict=True):
                filled[group[0]] = g.astype(q[group[0]].dtype)
            filled = jax.tree.unflatten(params_structure, filled)
            return updated(self.optimizer, filled, opt_state, params, jnp.zeros(())), out

        return jax.lax.scan(step, first, jnp.arange(self.length, dtype=jnp.int32))[1]


def alike(kind: LinearOptimizer, num_params: int) -> list[list[int]]:
    """The parameter leaves in groups that the optimizer treats alike."""
    groups: dict[tuple, list[int]] = {}
    for f in range(num_params):
        groups.setdefault(tuple(kind.sums[i] for i in kind.members(f)), []).append(f)
    return list(groups.values())


def least_squares(training: LinearisedTraining, transfer: np.ndarray, weights: np.ndarray) -> tuple[Array, list[Array]]:
    r"""(T^M - 1, the weighted sums y of c of each member), for a c affine in the outputs and the same data at all steps.

    One step of one family u takes $u_i \leftarrow \sum_j T_{ij} u_j + A_i g$: `transfer` and `weights`. In the eigenvectors of
    the Gram matrix, with the slope of c in it, modes do not meet. So M steps are the M-th power of one small matrix a mode, by
    squaring. For $\frac12 \sum r^2$ and gradient descent this is $y = (1 - (1 - \alpha L)^M) / L \; c$.
    """
    space, d = training.space, len(weights)
    values, gram = space.values.ravel(), training.grams[0]
    dual = lambda o: space.output_gradient(o, space.start)
    slope, c = jax.jacfwd(dual)(values), dual(values)
    sizes, vectors = eigh(slope)
    # A least-squares criterion has no negative slope; of what it does not see, c is constant.
    seen = sizes > len(values) * jnp.finfo(values.dtype).eps * jnp.max(sizes)
    roots = jnp.sqrt(jnp.where(seen, sizes, 0))
    to_modes = roots[:, None] * vectors.T
    curvatures, q = eigh(to_modes @ gram @ to_modes.T)
    to_modes, from_modes = q.T @ to_modes, to_modes.T @ q
    c_modes = q.T @ (jnp.where(seen, 1 / jnp.where(seen, roots, 1), 0) * (vectors.T @ c))
    c_rest = c - from_modes @ c_modes
    p = jnp.stack([to_modes @ training.outputs(member)[0].ravel() for member in range(d)], axis=1)
    # A linearised network may be stiffer than training bears, which the network itself soon leaves: a mode is to end at rest.
    most = _STABLE * largest_stable(transfer, weights)
    share = jnp.minimum(1, most / jnp.maximum(curvatures, most))[:, None]
    # A mode has the outputs p of the members, their sums y of c, the sums of 1 in its place, and 1.
    size, one = 3 * d + 1, 3 * d
    change, fixed = transfer - np.eye(d), np.zeros((size, size))
    for part in range(3):
        fixed[part * d : part * d + d, part * d : part * d + d] = change
    fixed[2 * d : 3 * d, one] = weights
    whole = jnp.asarray(weights, values.dtype)
    own = share * whole[None]
    curvatures, c_moved = curvatures[:, None], (c_modes - p[:, 0])[:, None]
    step = jnp.broadcast_to(jnp.asarray(fixed, values.dtype), (len(values), size, size))
    step = step.at[:, :d, 0].add(curvatures * own)
    step = step.at[:, d : 2 * d, 0].add(own)
    step = step.at[:, :d, one].add(curvatures * c_moved * own + (to_modes @ (gram @ c_rest))[:, None] * whole[None])
    step = step.at[:, d : 2 * d, one].add(c_moved * own)
    first = jnp.concatenate(
        [p, jnp.zeros((len(values), 2 * d), values.dtype), jnp.ones((len(values), 1), values.dtype)], axis=1
    )
    last = jnp.einsum("rij,rj->ri", power(step, training.length), first)
    sums = [(from_modes @ last[:, d + i] + c_rest * last[0, 2 * d + i]).reshape(space.values.shape) for i in range(d)]
    return jnp.asarray(power(change, training.length), values.dtype), sums


def largest_stable(transfer: np.ndarray, weights: np.ndarray) -> float:
    """The largest curvature for which steps of a family do not grow: 2 over the learning rate, for gradient descent."""
    curvatures = np.geomspace(1e-3, 1e3, 2000) / np.abs(weights[0])
    steps = transfer + curvatures[:, None, None] * np.outer(weights, np.eye(len(weights))[0])
    grows = np.max(np.abs(np.linalg.eigvals(steps)), axis=1) > 1 + 1e-9
    return float(curvatures[np.argmax(grows) if np.any(grows) else -1])


def power(change: Any, exponent: int) -> Any:
    r"""$(1 + E)^n - 1$ of square matrices E, arrays of NumPy or JAX, by squaring.

    The 1 is left out, for in it the small changes of slow modes would lose their digits.
    """
    result = change
    for bit in f"{exponent:b}"[1:]:
        result = 2 * result + result @ result
        if bit == "1":
            result = result + change + result @ change
    return result
