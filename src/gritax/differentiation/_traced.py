"""A solve whose state or phi is traced by grad, jvp or vmap: primitives that JAX differentiates and maps, and solves run.

`evolve` is the solve. Its derivative is the linear `tangent`, whose transpose is `adjoint`; both look up by its number the run
that they are of. Mapped, each runs for one member after the other. None can be staged: they iterate in Python.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import ShapedArray, Tracer
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, PyTree

from .._convergence import ConvergenceError
from .._evolution import Phi, optional
from .._solution import Solution
from .._validation import CLOSES_OVER_TRACED
from .._window import Window
from ._linear import adjoint, linearised, reversible, tangent


logger = logging.getLogger("gritax")


def traced(solved: Callable[..., tuple[Solution, Window]], phi: Any, state: PyTree, throw: bool, keeps: bool) -> Solution:
    """`solved(phi, state, aim)`, differentiable in those arrays of phi and state that are traced; mappable, unless it `keeps`.

    The figures are those of the run that took the most iterations, where there are several.
    """
    leaves, structure = jax.tree.flatten((phi, state))
    at = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tracer))
    call = _Call(solved, leaves, structure, at, throw, keeps)
    *found, _ = evolve_p.bind(*(leaves[i] for i in at), call=call, exactly=False)
    return call.solution(phi, found)


@dataclass
class _Run:
    solution: Solution
    window: Window
    values: list[Array]


@dataclass(eq=False)
class _Call:
    """One call of `solve`, with the runs that were made for it. `at`: which leaves of (phi, state) are traced."""

    solved: Callable[..., tuple[Solution, Window]]
    leaves: list[Any]
    structure: Any
    at: tuple[int, ...]
    throw: bool
    keeps: bool
    runs: list[_Run] = field(default_factory=list)

    def run(self, values: list[Any], exactly: bool) -> list[Array]:
        """The arrays of the final state, and the number of the run."""
        # Each is an array of its own, for it is by its identity that it is found again in phi; JAX may pass Python's numbers.
        values = [jnp.array(value, copy=True) for value in values]
        leaves = list(self.leaves)
        for i, value in zip(self.at, values, strict=True):
            leaves[i] = value
        try:
            solution, window = self.solved(*jax.tree.unflatten(self.structure, leaves), exactly)
        except jax.errors.UnexpectedTracerError as error:
            raise ValueError(CLOSES_OVER_TRACED) from error
        self.runs.append(_Run(solution, window, values))
        return [*_arrays(solution.state), jnp.float32(len(self.runs) - 1)]

    def solution(self, phi: Any, found: list[Array]) -> Solution:
        slowest = max((run.solution for run in self.runs), key=lambda solution: solution.iterations)
        fresh = iter(found)
        state = jax.tree.map(lambda x: next(fresh) if eqx.is_array(x) else x, slowest.state)
        params = optional(phi, "params")
        return replace(
            slowest,
            state=state,
            params=state if params is None else params(state),
            converged=all(run.solution.converged for run in self.runs),
            _losses=_no_losses if slowest._losses else None,
        )

    @property
    def floats(self) -> list[Array]:
        """The floating arrays of the final state."""
        return [x for x in _arrays(self.runs[0].solution.state) if eqx.is_inexact_array(x)]

    def like(self, which: tuple[int, ...]) -> list[ShapedArray]:
        """What these of the traced leaves look like."""
        avals = [jax.typeof(self.leaves[self.at[i]]) for i in which]
        return [ShapedArray(aval.shape, aval.dtype) for aval in avals]

    def told(self, failure: str, what: str) -> None:
        if not failure:
            return
        if self.throw:
            raise ConvergenceError(f"the {what} is {failure}.", self.runs[0].solution)
        logger.warning("the %s is %s", what, failure)


# JAX remembers what a primitive gives for its parameters, and with them every call and its C-points, unless told otherwise.
try:
    from jax._src.util import weakref_cache_key_types
except ImportError:  # a JAX that keeps no such set: memory grows with the number of gradients then
    logger.debug("calls are remembered as long as JAX remembers their derivatives")
else:
    weakref_cache_key_types.add(_Call)


def _arrays(state: PyTree) -> list[Array]:
    return jax.tree.leaves(eqx.filter(state, eqx.is_array))


def _no_losses():
    raise ValueError("losses are not kept by a solve under grad, jvp or vmap: evaluate the loss on the states you ask for.")


def _places(call: _Call, run: _Run, phi: Phi, which: tuple[int, ...]):
    """Of these of the traced leaves: (places in the arrays of `phi`, indices in these, index in the leaves of a state)."""
    num_phi = len(jax.tree.leaves(jax.tree.unflatten(call.structure, call.leaves)[0]))
    kept = run.window.evolution.with_phi(phi).data
    floating = [i for i, leaf in enumerate(call.leaves[num_phi:]) if eqx.is_inexact_array(leaf)]
    places, in_phi, in_state = [], [], []
    for i in which:
        leaf = call.at[i]
        if leaf >= num_phi:
            in_phi.append([])
            in_state.append(floating.index(leaf - num_phi))
            continue
        found = [place for place, array in enumerate(kept) if array is run.values[i]]
        if not found:
            raise ValueError(
                "phi cannot be differentiated by an array that its method prepared(num_steps) replaces: what it computes for a "
                "run must not depend on floating-point arrays."
            )
        in_phi.append(list(range(len(places), len(places) + len(found))))
        in_state.append(None)
        places += found
    return tuple(places), in_phi, in_state


def _evolve(*values, call, exactly):
    return call.run(list(values), exactly)


def _tangent(number, *given, call, which):
    run = call.runs[int(number)]
    phi = run.window.adaptation.evolution.phi
    places, in_phi, in_state = _places(call, run, phi, which)
    along = linearised(run.window, phi, places)
    v = [jnp.zeros_like(x) for x in call.floats]
    direction = [jnp.zeros_like(x) for x in along.arrays]
    for x, phi, state in zip(given, in_phi, in_state, strict=True):
        for place in phi:
            direction[place] = x
        if state is not None:
            v[state] = x
    floating = run.window.evolution.split(run.solution.state)[0]
    found, failure = tangent(run.window, along, jax.tree.unflatten(jax.tree.structure(floating), v), direction)
    call.told(failure, "tangent")
    return [*jax.tree.leaves(found), jnp.float32(0)]


def _adjoint(number, *given, call, which):
    run = call.runs[int(number)]
    phi = reversible(run.window)
    places, in_phi, in_state = _places(call, run, phi, which)
    along = linearised(run.window, phi, places)
    floating = run.window.evolution.split(run.solution.state)[0]
    mu, by_arrays, failure = adjoint(run.window, along, jax.tree.unflatten(jax.tree.structure(floating), list(given)))
    call.told(failure, "adjoint")
    mu = jax.tree.leaves(mu)
    return [
        sum(by_arrays[place] for place in phi) if state is None else mu[state]
        for phi, state in zip(in_phi, in_state, strict=True)
    ]


def _primitive(name, impl):
    found = Primitive(name)
    found.multiple_results = True
    found.def_impl(impl)
    batching.primitive_batchers[found] = lambda args, dims, **params: _one_by_one(found, args, dims, params)
    mlir.register_lowering(found, _staged)
    return found


def _one_by_one(primitive, args, dims, params):
    size = next(x.shape[dim] for x, dim in zip(args, dims, strict=True) if dim is not None)
    if size == 0:
        raise ValueError("vmap of gritax.solve over no members: there is nothing to solve.")
    if params["call"].keeps:
        raise ValueError("checkpoint and resume are not for a solve under vmap, whose members would share the directory.")
    members = [
        primitive.bind(*(x if dim is None else jnp.take(x, b, axis=dim) for x, dim in zip(args, dims, strict=True)), **params)
        for b in range(size)
    ]
    return [jnp.stack(each) for each in zip(*members, strict=True)], [0] * len(members[0])


def _staged(*_, **__):
    raise ValueError(
        "gritax.solve iterates in Python until its residual is small, and cannot be part of a compiled program: call it, and "
        "take its gradient, outside of jit, scan and the like. What it calls is compiled. grad, jvp and vmap around it work."
    )


evolve_p = _primitive("evolve", _evolve)
tangent_p = _primitive("evolve_tangent", _tangent)
adjoint_p = _primitive("evolve_adjoint", _adjoint)
evolve_p.def_abstract_eval(_staged)
tangent_p.def_abstract_eval(
    lambda number, *given, call, which: [*(ShapedArray(x.shape, x.dtype) for x in call.floats), ShapedArray((), jnp.float32)]
)
adjoint_p.def_abstract_eval(lambda number, *given, call, which: call.like(which))


def _is_zero(tangent) -> bool:
    return isinstance(tangent, ad.Zero) or jax.dtypes.result_type(tangent) == jax.dtypes.float0


def _is_on_the_way_back(tangent) -> bool:
    """Whether this tangent is one that grad follows; those of jacfwd are only mapped."""
    while type(tangent).__name__ == "BatchTracer":
        tangent = tangent.val
    return isinstance(tangent, Tracer)


def _require_differentiable(call: _Call, which: tuple[int, ...], backwards: bool) -> None:
    """Raises `ValueError` if a step, or a coarse one, cannot be differentiated by these of the traced leaves."""

    def after(stride, *given):
        leaves = list(call.leaves)
        for i, x in zip(which, given, strict=True):
            leaves[call.at[i]] = x
        phi, state = jax.tree.unflatten(call.structure, leaves)
        return jax.tree.leaves(eqx.filter(phi(state, jnp.int32(0), stride), eqx.is_inexact_array))

    def derivative(stride, *given):
        if not backwards:
            return jax.jvp(partial(after, stride), given, given)
        found, pull = jax.vjp(partial(after, stride), *given)
        return pull(found)

    given, phi = call.like(which), jax.tree.unflatten(call.structure, call.leaves)[0]
    # Coarse steps that are to be replaced for a derivative are not asked for one.
    for stride in (1, 2) if optional(phi, "reversible") is None else (1,):
        try:
            jax.eval_shape(partial(after, stride), *given)
        except Exception:  # what is wrong with phi itself is told by its first step
            return
        try:
            jax.eval_shape(partial(derivative, stride), *given)
        except Exception as error:
            named, way = getattr(phi, "__qualname__", type(phi).__name__), " backwards" if backwards else ""
            cause = str(error).strip().splitlines()[0]
            raise ValueError(
                f"phi, {named}, cannot be differentiated{way}: phi(state, start, {stride}) raises {cause}"
            ) from error


def _evolve_jvp(values, tangents, call, exactly):
    which = tuple(i for i, each in enumerate(tangents) if not _is_zero(each))
    _require_differentiable(call, which, any(_is_on_the_way_back(tangents[i]) for i in which))
    found = evolve_p.bind(*values, call=call, exactly=True)
    *moved, mark = tangent_p.bind(found[-1], *(tangents[i] for i in which), call=call, which=which)
    moved = iter(moved)
    # The number moves too, by zero: by that a second derivative is recognised.
    return found, [
        *(next(moved) if eqx.is_inexact_array(x) else ad.Zero(jax.typeof(x).to_tangent_aval()) for x in found[:-1]),
        mark,
    ]


def _linear_jvp(primitive):
    def rule(values, tangents, call, which):
        if not _is_zero(tangents[0]):
            raise ValueError("gritax.solve has first derivatives only: grad, jvp and jacobians, but no Hessians of it.")
        given = [ad.instantiate_zeros(each) for each in tangents[1:]]
        both = [primitive.bind(values[0], *each, call=call, which=which) for each in (values[1:], given)]
        return both[0], both[1]

    return rule


def _tangent_transpose(cotangents, number, *given, call, which):
    mu = [ad.instantiate_zeros(each) for each in cotangents[:-1]]
    return [None, *adjoint_p.bind(number, *mu, call=call, which=which)]


def _adjoint_transpose(cotangents, number, *given, call, which):
    v = [ad.instantiate_zeros(each) for each in cotangents]
    return [None, *tangent_p.bind(number, *v, call=call, which=which)[:-1]]


ad.primitive_jvps[evolve_p] = _evolve_jvp
ad.primitive_jvps[tangent_p] = _linear_jvp(tangent_p)
ad.primitive_jvps[adjoint_p] = _linear_jvp(adjoint_p)
ad.primitive_transposes[tangent_p] = _tangent_transpose
ad.primitive_transposes[adjoint_p] = _adjoint_transpose
