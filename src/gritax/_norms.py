"""Norms of an iterate: its residual at the C-points, and how far its final parameters are from the first ones."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._evolution import Evolution
from ._hierarchy import Level
from ._kernel import per_level
from ._points import Points


PROFILE = 512  # points of a profile, at most: as many as a picture can show


@dataclass(frozen=True)
class Norms:
    """Norms of one iterate.

    `scale` is that of the states in place of their residuals. `floor` and `relative_floor` are what rounding leaves of the
    residuals, about: the leaves of each dtype, with the rounding of that dtype, are held against what is left of them, and the
    worst of them decides: a stall in float32 stays one although some other leaf is in bfloat16. `travelled` is the distance of
    the final parameters from the first; `moved` is that from the final parameters of the iterate before, divided by it.
    """

    residual: float
    relative: float
    scale: float
    floor: float
    relative_floor: float
    travelled: float
    moved: float


def norm(tree: PyTree[Array]) -> Array:
    """2-norm over all leaves, in float32 at least; scaled, so that squares neither overflow nor vanish."""
    magnitudes = [jnp.abs(leaf) for leaf in jax.tree.leaves(tree)]
    widest = max((_at_least_float32(x.dtype) for x in magnitudes), key=lambda dtype: jnp.finfo(dtype).bits)
    magnitudes = [x.astype(widest) for x in magnitudes]
    largest = jnp.max(jnp.stack([jnp.max(x, initial=0) for x in magnitudes]))
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, jnp.ones_like(largest))
    return scale * jnp.sqrt(jnp.sum(jnp.stack([jnp.sum(jnp.square(x / scale)) for x in magnitudes])))


def _at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


@per_level(None, c="intervals", e="intervals")
def residual_norm(level: Level, c: Points, e: Points) -> Array:
    """2-norm over the C-points of `Phi(u[c-1]) - u[c]`, all floating leaves.

    That of the norms at single points, in their order, whichever devices have them.
    """
    return norm(_at_ends(level, jax.vmap(norm)(_difference(level.layout.arrivals(c, e), c))))


@per_level(None, c="intervals", e="intervals")
def residuals_along(level: Level, c: Points, e: Points) -> Array:
    """The norms at single points of which `residual_norm` is that; of more than `PROFILE` the largest of each group.

    Groups have `group_size(level)` neighbouring points, the last one what is left.
    """
    found, size = _at_ends(level, jax.vmap(norm)(_difference(level.layout.arrivals(c, e), c))), group_size(level)
    return jnp.max(jnp.pad(found, (0, -len(found) % size)).reshape(-1, size), axis=1)


def group_size(level: Level) -> int:
    return -(-level.num_intervals // PROFILE)


def _difference(x, y):
    return jax.tree.map(jnp.subtract, x, y)


def _at_ends(level, values):
    """What is known at each C-point, of all but the first, on every device."""
    return jax.tree.map(lambda x: x[1:], level.layout.collected(values))


@per_level(None, c="intervals", e="intervals")
def measure(
    level: Level,
    evolution: Evolution,
    c: Points,
    e: Points,
    final: PyTree[Array],
    final_before: PyTree[Array],
    origin: PyTree[Array],
) -> Array:
    """The fields of `Norms` as one array: a single transfer to the host an iteration. `origin` is where the run begins."""

    def params(u, start):
        return evolution.params(u, evolution.clock(start))

    def at(given, wanted, start):
        natural = evolution.natural(wanted)
        pairs = [(wanted, given, natural)]
        pairs.append((params(natural, start), params(evolution.natural(given), start), params(natural, start)))
        return [
            (norms_by_dtype(_difference(wanted, given), like), norms_by_dtype(wanted, like)) for wanted, given, like in pairs
        ]

    # Padded points are past the end of the clocks' table.
    starts = jnp.minimum(level.layout.index(), level.num_intervals) * level.factor
    found = _at_ends(level, jax.vmap(at)(c, level.layout.arrivals(c, e), starts))
    (residual, scale), (mismatch, params_scale) = found
    over_points = lambda reduce, by_dtype: {eps: reduce(x) for eps, x in by_dtype.items()}
    residual, scale = over_points(norm, residual), over_points(norm, scale)
    params_scale, left = over_points(jnp.max, params_scale), over_points(jnp.max, mismatch)
    end = jnp.int32(level.num_intervals * level.factor)
    first = params(origin, jnp.int32(0))
    last, last_before = params(final, end), params(final_before, end)
    travelled = norm(_difference(last, first))

    def relative(x):
        # No distance travelled: zero is zero, any other figure is infinitely large.
        return jnp.where(travelled > 0, x / jnp.where(travelled > 0, travelled, 1), jnp.where(x == 0, x, jnp.inf))

    largest = jnp.max(jax.vmap(norm)(mismatch))
    moved = relative(norm(_difference(last, last_before)))
    floor, relative_floor = _floor(norm(residual), residual, scale), relative(_floor(largest, left, params_scale))
    found = norm(residual), relative(largest), norm(scale), floor, relative_floor, travelled, moved
    return jnp.stack(jnp.broadcast_arrays(*found))


def norms_by_dtype(tree: PyTree[Array], like: PyTree[Array]) -> dict[float, Array]:
    """The norm of those leaves that have the same dtype in `like`, by the rounding of that dtype."""
    leaves: dict[float, list[Array]] = {}
    for leaf, each in zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True):
        leaves.setdefault(float(jnp.finfo(each.dtype).eps), []).append(leaf)
    return {eps: norm(each) for eps, each in leaves.items()}


def _floor(residual: Array, left: dict[float, Array], scale: dict[float, Array]) -> Array:
    """What rounding leaves of `residual`, about, if that of each dtype leaves its share of what is `left`."""
    rounding = {eps: eps * x for eps, x in scale.items()}
    ratios = [jnp.where(left[eps] > 0, left[eps] / rounding[eps], 0).astype(residual.dtype) for eps in left]
    worst = jnp.max(jnp.stack(ratios))
    return jnp.where(worst > 0, residual / worst, norm(rounding))


@per_level((None, None), c="intervals", e="intervals")
def converged_until(
    level: Level, evolution: Evolution, c: Points, e: Points, origin: PyTree[Array], aim: Array
) -> tuple[Array, Array]:
    """(how many intervals from the first on are left with mismatches that add up to at most `aim`; what they add up to).

    Those of the parameters in units of their distance from `origin`, those of all leaves in units of their size.
    """
    starts = jnp.minimum(level.layout.index(), level.num_intervals) * level.factor

    def at(given, wanted, start):
        clock = evolution.clock(start)
        params = lambda stored: evolution.params(evolution.natural(stored), clock)
        off = lambda a, b: norm(_difference(a, b))
        travelled = off(params(given), evolution.params(origin, clock))
        return off(params(wanted), params(given)), travelled, off(wanted, given), norm(given)

    found = jax.vmap(at)(c, level.layout.arrivals(c, e), starts)
    mismatch, travelled, residual, size = _at_ends(level, found)
    error = jnp.maximum(jnp.cumsum(mismatch) / jnp.where(travelled > 0, travelled, 1), jnp.cumsum(residual) / size)
    # Not a number is not within the aim.
    within = jnp.cumprod((error <= aim.astype(error.dtype)).astype(jnp.int32))
    count = jnp.sum(within)
    return count, jnp.where(count > 0, error[jnp.maximum(count - 1, 0)], 0)
