"""Jumps that a program may have as its input changes, read off its operations before anything is evaluated."""

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


class _Kind(IntEnum):
    """How a value depends on the input: not at all; continuously, above zero or anyhow; by a choice that the input makes."""

    FIXED = 0
    POSITIVE = 1
    SMOOTH = 2
    CHOSEN = 3


_COMPARED = frozenset({"lt", "le", "gt", "ge", "eq", "ne"})
_CHOOSING = frozenset({"argmax", "argmin", "top_k", "sort"})
_JUMPING = frozenset(
    {"sign", "floor", "ceil", "round", "rem", "atan2", "select_and_scatter_add", "select_and_gather_add"}
    | {"eigh", "eig", "svd", "schur", "qr", "geqrf", "householder_product"}
)
# Of complex numbers they have a cut, where they jump.
_CUT = frozenset({"log", "log1p", "sqrt", "rsqrt", "pow"})
# Nothing is known of what they compute.
_OPAQUE = frozenset({"pure_callback", "io_callback", "pallas_call", "ffi_call", "custom_linear_solve", "run_state"})
# What is finite stays so in a run that ends.
_SETTLED = frozenset({"is_finite"})
_MADE_POSITIVE = frozenset({"exp", "exp2", "logistic", "cosh"})
_KEPT_POSITIVE = frozenset(
    {"add", "mul", "div", "max", "sqrt", "rsqrt", "integer_pow", "reduce_sum", "reduce_max", "cumsum", "convert_element_type"}
    | {"copy", "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "slice"}
)


class _Jumps(Exception):
    pass


def may_jump(function: Callable[..., Any], *arguments: Any) -> bool:
    """True if a small change of the first argument's floating leaves may change what `function` returns by more than that.

    It goes by the operations: a choice between values by a comparison, a sign, a rounding to fewer digits. So a choice between
    two values that meet where it is made counts as a jump. A comparison with infinity, of a number with itself, or of what is
    above zero with zero does not.

    >>> import jax, jax.numpy as jnp
    >>> may_jump(jax.grad(jax.nn.leaky_relu), jnp.ones(())), may_jump(jax.grad(jax.nn.gelu), jnp.ones(()))
    (True, False)
    """
    program = jax.make_jaxpr(function)(*arguments)
    moving = [jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in jax.tree.leaves(arguments[0])]
    kinds = [_Kind.SMOOTH if moves else _Kind.FIXED for moves in moving]
    kinds += [_Kind.FIXED] * (len(program.jaxpr.invars) - len(kinds))
    try:
        return _Kind.CHOSEN in _followed(program, kinds)
    except Exception:  # a jump, or an operation that is none of those known here
        return True


def _followed(program: ClosedJaxpr | Jaxpr, kinds: Sequence[_Kind]) -> list[_Kind]:
    """The kinds of what the program returns, for those of its inputs. Raises `_Jumps`."""
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    if jaxpr.effects:
        raise _Jumps
    known = dict(zip(jaxpr.invars, kinds, strict=True))

    def kind(x) -> _Kind:
        return _Kind.FIXED if isinstance(x, Literal) else known.get(x, _Kind.FIXED)

    for each in _needed(jaxpr):
        known.update(zip(each.outvars, _after(each, [kind(x) for x in each.invars]), strict=True))
    return [kind(x) for x in jaxpr.outvars]


def _needed(jaxpr: Jaxpr) -> list:
    """The operations that what it returns is made of: differentiation leaves others behind."""
    wanted, kept = {x for x in jaxpr.outvars if not isinstance(x, Literal)}, []
    for each in reversed(jaxpr.eqns):
        if not wanted.isdisjoint(each.outvars):
            wanted.update(x for x in each.invars if not isinstance(x, Literal))
            kept.append(each)
    return kept[::-1]


def _after(each, given: list[_Kind]) -> list[_Kind]:
    """The kinds of what an operation gives, for those of its operands. Raises `_Jumps`."""
    name, most, count = each.primitive.name, max(given, default=_Kind.FIXED), len(each.outvars)
    if most == _Kind.FIXED or name in _SETTLED:
        return [_Kind.FIXED] * count
    if (within := _WITHIN.get(name)) is not None:
        return within(each, given)
    if name in _OPAQUE:
        raise _Jumps
    inner = next((x for x in each.params.values() if isinstance(x, ClosedJaxpr | Jaxpr)), None)
    if inner is not None:
        return _followed(inner, given)
    if name in _COMPARED:
        return [_Kind.FIXED if _is_settled(each.invars, given) else _Kind.CHOSEN]
    if name in _CHOOSING:
        # The values that are sorted move continuously, but not what is carried with them.
        return [_Kind.SMOOTH if i == 0 and name in ("sort", "top_k") else _Kind.CHOSEN for i in range(count)]
    floating = all(jnp.issubdtype(x.aval.dtype, jnp.inexact) for x in each.outvars)
    if not floating:
        return [_Kind.CHOSEN] * count
    has_sign = name == "sign" and most == _Kind.POSITIVE
    if most == _Kind.CHOSEN or (name in _JUMPING and not has_sign) or _is_cut(each) or _rounds(each, given):
        raise _Jumps
    positive = name in _MADE_POSITIVE or (name in _KEPT_POSITIVE and all(map(_is_positive, each.invars, given)))
    return [_Kind.POSITIVE if positive else _Kind.SMOOTH] * count


def _either(kinds: Sequence[_Kind]) -> _Kind:
    """The kind of a value that has one of these, where it is not known which."""
    return _Kind.SMOOTH if set(kinds) == {_Kind.FIXED, _Kind.POSITIVE} else max(kinds)


def _branched(each, given: list[_Kind]) -> list[_Kind]:
    if given[0] != _Kind.FIXED:
        raise _Jumps
    branches = [_followed(branch, given[1:]) for branch in each.params["branches"]]
    return [_either(found) for found in zip(*branches, strict=True)]


def _scanned(each, given: list[_Kind]) -> list[_Kind]:
    return _looped(each.params["jaxpr"], given, each.params["num_consts"], each.params["num_carry"])


def _until(each, given: list[_Kind]) -> list[_Kind]:
    consts, own = each.params["cond_nconsts"], each.params["body_nconsts"]
    carried = _looped(each.params["body_jaxpr"], given[consts:], own, len(given) - consts - own)
    if _followed(each.params["cond_jaxpr"], [*given[:consts], *carried]) != [_Kind.FIXED]:
        raise _Jumps
    return carried


_WITHIN = {"cond": _branched, "scan": _scanned, "while": _until}


def _looped(body: ClosedJaxpr, given: list[_Kind], consts: int, carry: int) -> list[_Kind]:
    """The kinds of what a loop carries, followed until they change no more, and of what it stacks."""
    while True:
        found = _followed(body, given)
        carried = list(map(_either, zip(given[consts : consts + carry], found[:carry], strict=True)))
        if carried == given[consts : consts + carry]:
            return carried + found[carry:]
        given = [*given[:consts], *carried, *given[consts + carry :]]


def _is_settled(compared: Sequence[Any], given: Sequence[_Kind]) -> bool:
    """A comparison with infinity, of a number with itself, which tells NaN, or of what is above zero with zero."""
    literals = [np.asarray(x.val) for x in compared if isinstance(x, Literal)]
    if compared[0] is compared[1] or any(np.all(np.isinf(x)) for x in literals):
        return True
    return _Kind.POSITIVE in given and any(np.all(x <= 0) for x in literals)


def _is_cut(each) -> bool:
    return each.primitive.name in _CUT and jnp.issubdtype(each.invars[0].aval.dtype, jnp.complexfloating)


def _rounds(each, given: Sequence[_Kind]) -> bool:
    """True for a result of fewer digits than the operands that move."""
    digits = lambda x: float(jnp.finfo(x.aval.dtype).eps) if jnp.issubdtype(x.aval.dtype, jnp.inexact) else 0.0
    moving = [digits(x) for x, kind in zip(each.invars, given, strict=True) if kind != _Kind.FIXED]
    asked = str(each.params.get("precision", "")).upper()
    return "F16" in asked or "TF32" in asked or max(map(digits, each.outvars)) > min(filter(None, moving), default=1.0)


def _is_positive(x: Any, kind: _Kind) -> bool:
    return kind == _Kind.POSITIVE or (isinstance(x, Literal) and bool(np.all(np.asarray(x.val) > 0)))
