"""A self-test of the user's callbacks before a long solve."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_leaves_with_path
from jaxtyping import Array, PyTree

from ._arguments import require_whole
from ._clocks import tabulate
from ._entry import entry
from ._evolution import Evolution, Phi
from ._hierarchy import Level, Multigrid
from ._kernel import kernel
from ._norms import norm
from ._obstacles import require_no_obstacle
from ._state import at_leaf
from ._validation import validated


@dataclass(frozen=True)
class Consistency:
    """How far one coarse step of `stride` is from the steps it stands for.

    `defect` is `||phi(u, i, stride) - (phi(., ., 1))^stride(u)||` divided by the distance that those steps travel, the
    largest over the starts tried: 0 is exact, 1 is no better than standing still.
    """

    stride: int
    defect: float


@dataclass(frozen=True)
class CheckReport:
    """What `check` found; prints as a table. `ok` is whether every coarse step tried is better than none."""

    consistency: tuple[Consistency, ...]
    advice: str

    @property
    def ok(self) -> bool:
        return not self.advice

    def __str__(self) -> str:
        lines = ["phi keeps the state's structure, is finite, deterministic and pure in its start"]
        lines += ["stride  defect of one coarse step"] if self.consistency else []
        lines += [f"{each.stride:6d}  {each.defect:.3g}" for each in self.consistency]
        return "\n".join([*lines, self.advice or "every coarse step is better than none"])


@entry
def check(phi: Phi, state: PyTree, num_steps: int, *, strides: tuple[int, ...] | None = None) -> CheckReport:
    """Tries `phi` on what a solve asks of it: a state of the same structure, finite, from the same values every time.

    **Arguments**

    - `phi`, `state`, `num_steps`: as for `gritax.solve`.
    - `strides`: at which coarse steps are compared with the steps they stand for; those above `num_steps` are left out.
      `None` for 2, 4, … up to what the levels of a solve have, but no more than 1,024.

    **Returns** a `CheckReport` with the defect of the coarse steps by stride.

    Raises `ValueError`, naming what is wrong, for a phi that changes the structure of the state, that is not finite on its
    first steps, that gives another result when it is traced again (hidden state, unkeyed randomness), or whose result
    depends on anything but its arguments (a counter of its own instead of `start`).

    >>> import gritax
    >>> print(gritax.check(lambda u, start, stride: u / (1 + 0.01 * stride), 1.0, 1000))
    phi keeps the state's structure, is finite, deterministic and pure in its start
    stride  defect of one coarse step
         2  0.00488
         4  0.0143
         8  0.0319
        16  0.0628
        32  0.111
        64  0.172
    every coarse step is better than none
    """
    evolution, floating, clock = validated(phi, state, num_steps)
    require_no_obstacle(evolution, floating, clock, num_steps)
    if strides is None:
        strides = tuple(2**k for k in range(1, 11) if 2**k <= Multigrid().hierarchy(num_steps)[-1].stride)
    if not isinstance(strides, tuple | list):
        raise ValueError(f"strides must be a tuple of whole numbers, not {strides!r}.")
    for stride in strides:
        require_whole("strides", stride, 2)
    strides = tuple(sorted({int(stride) for stride in strides if stride <= num_steps}))
    for stride in (1, *strides):
        _require_repeatable(evolution, floating, clock, stride, num_steps)
    span = max(strides, default=1)
    evolution, _ = tabulate(evolution, floating, clock, Level(0, num_steps, 1, 1))
    starts = sorted({0, (num_steps - span) // 2, num_steps - span})
    found = []
    for stride in strides:
        defects, is_finite = _defects(evolution, floating, jnp.asarray(starts, jnp.int32), stride)
        if not is_finite:
            raise ValueError(f"phi(state, start, {stride}) is not finite: lower the coarse step's rate at that stride.")
        found.append(Consistency(stride, float(jnp.max(defects))))
    return CheckReport(tuple(found), _advice(found))


def _advice(found: list[Consistency]) -> str:
    wrong = [each.stride for each in found if each.defect >= 1]
    if not wrong:
        return ""
    useful = [each.stride for each in found if each.stride < wrong[0]]
    reach = f"coarse steps are useful up to a stride of {useful[-1]}" if useful else "no coarse step is useful"
    return (
        f"{reach}: at {wrong[0]} one is further off than standing still. Limit its rate (for RescaledRate, max_factor), look "
        "at its data, or use fewer levels"
    )


def _require_repeatable(evolution: Evolution, floating, clock, stride: int, num_steps: int) -> None:
    """Two traces of their own, visited in another order, must give the same values."""
    starts = sorted({0, (num_steps // 2) // stride * stride, max(num_steps - stride, 0) // stride * stride})

    def visit(order):
        run = jax.jit(lambda u, clock, start: evolution.advance(u, clock, start, stride)[0])
        return {start: run(floating, clock, jnp.int32(start)) for start in order}

    first, again = visit(starts), visit(reversed(starts))
    for start in starts:
        for (path, x), y in zip(tree_leaves_with_path(first[start]), jax.tree.leaves(again[start]), strict=True):
            if not np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True):
                raise ValueError(
                    f"phi(state, {start}, {stride}) gave two results for the same arguments{at_leaf(path)}. phi must be a pure "
                    "function: take randomness from a key folded with `start`, and data from `start`, never from a counter "
                    "or a generator of its own."
                )


@partial(kernel, static_argnames="stride")
def _defects(evolution: Evolution, floating: PyTree[Array], starts: Array, stride: int) -> tuple[Array, Array]:
    """(defects of one coarse step from the initial state placed at each of the starts, whether they are finite)."""

    def fine(carry, start):
        floating, clock = carry
        return evolution.advance(floating, clock, start, 1), None

    def at(start):
        clock = evolution.clock(start)
        steps = start + jnp.arange(stride, dtype=jnp.int32)
        wanted = evolution.params(*jax.lax.scan(fine, (floating, clock), steps)[0])
        given = evolution.params(*evolution.advance(floating, clock, start, stride))
        travelled = norm(jax.tree.map(jnp.subtract, wanted, evolution.params(floating, clock)))
        error = norm(jax.tree.map(jnp.subtract, given, wanted))
        return jnp.where(error == 0, error, error / travelled), jnp.isfinite(norm(given))

    defects, is_finite = jax.vmap(at)(starts)
    return defects, jnp.all(is_finite)
