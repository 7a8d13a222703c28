"""A solve whose state or phi is traced by grad, jvp or vmap: primitives that JAX differentiates and maps, and solves run.

`evolve` is the solve. Its derivative is the linear `tangent`, whose transpose is `adjoint`; both look up by its number the run
that they are of. Mapped, each runs for one member after the other. None can be staged: they iterate in Python.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import ShapedArray, Tracer
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import PyTree

from .._evolution import optional
from .._solution import Solution
from .._window import Window
from ._call import Call, places
from ._linear import adjoint, linearised, reversible, tangent


logger = logging.getLogger("gritax")


def traced(solved: Callable[..., tuple[Solution, Window]], phi: Any, state: PyTree, throw: bool, keeps: bool) -> Solution:
    """`solved(phi, state, aim)`, differentiable in those arrays of phi and state that are traced; mappable, unless it `keeps`.

    The figures are those of the run that took the most iterations, where there are several.
    """
    leaves, structure = jax.tree.flatten((phi, state))
    at = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tracer))
    call = Call(solved, leaves, structure, at, throw, keeps)
    *found, _ = evolve_p.bind(*(leaves[i] for i in at), call=call, exactly=False)
    return call.solution(phi, found)


def _evolve(*values, call, exactly):
    return call.run(list(values), exactly)


def _tangent(number, *given, call, which):
    run = call.runs[int(number)]
    phi = run.window.adaptation.evolution.phi
    wrt, in_phi, in_state = places(call, run, phi, which)
    along = linearised(run.window, phi, wrt)
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
    wrt, in_phi, in_state = places(call, run, phi, which)
    along = linearised(run.window, phi, wrt)
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


def _require_differentiable(call: Call, which: tuple[int, ...], backwards: bool) -> None:
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
