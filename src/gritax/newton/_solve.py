"""A run of sweeps from the first step to the last, a few of them a call."""

import time
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree

from .._convergence import DEFAULT_TOLERANCE
from .._jumps import may_jump
from .._kernel import kernel, make_room, quickly_compiled
from .._layout import AXIS, local, replicated
from .._method import Options, Task
from .._sharing import require_agreement
from ..training import TrainStep
from ._chain import Chain, Training, chain_of
from ._flight import Aim, Flight, Shape, begun, block_of, enlarged
from ._fronts import Fronts, Reached
from ._method import Newton
from ._response import members, understood
from ._saving import Saved, nothing_saved, with_front
from ._sweep import swept


# Sweeps a call: the host hears of progress after each, and nothing of what is between.
_CALL = 32
# A run begins with few places, for which a sweep is cheap; one of up to 4,096 parameters with more of them, since
# it would take longer to compile a program for fewer than to sweep over places that are empty. Digits with Adam, 8,192 steps,
# take a quarter less once compiled with twice the places, once 512 are too few, than with four times as many.
_FIRST_WINDOW, _LARGER = 32, 2
_CAPACITY, _OF_SMALL, _SMALL = 128, 512, 4096
_MEMORY, _COPIES = 2**31, 8
# The longest window, where none is asked for: 2,048 steps, or a sixteenth of a longer run.
_WINDOWS, _LONG = 16, 2048
# The model has at most half as many directions as there are parameters, but these where there are few parameters.
_FEW = 8
_ROUNDINGS = 32.0  # of the parameters: no less can be asked for


@dataclass(frozen=True)
class Run:
    """The end of a run, once all steps are taken, or one of them, number `taken`, was not `finite`.

    `error` estimates the distance of the state from serial training's, `moved` is that from the first state, `size` its norm.
    `doubt` says why that is no estimate, or nothing.
    `history` has a row for each sweep: the front before it, the steps in flight, the norm of their residuals.
    """

    state: PyTree
    taken: int
    finite: bool
    error: float
    doubt: str
    growth: float
    moved: float
    size: float
    history: np.ndarray
    losses: np.ndarray | None
    states: PyTree


def most_in_flight(floating: PyTree[Array]) -> int:
    """Steps whose states fit into 2 GiB."""
    return max(_MEMORY // (_COPIES * sum(leaf.nbytes for leaf in jax.tree.leaves(floating))), 16)


def require_room(method: Newton, floating: PyTree[Array]) -> None:
    """Raises `ValueError` for a window that is larger than 2 GiB, naming one that is not."""
    most = most_in_flight(floating)
    if method.window is not None and method.window > most:
        raise ValueError(
            f"window: {method.window:,} steps in flight, each with {_COPIES} copies of its state, need more than 2 GiB; "
            f"{most:,} fit."
        )


def _shape(method: Newton, options: Options, size: int, fit: int, num_steps: int) -> Shape:
    """The shape of a run's programs, without places yet, for `size` parameters. `fit` steps in flight fit into memory."""
    most = method.window or min(fit, max(num_steps // _WINDOWS, _LONG))
    rank = min(method.rank, size, max(size // 2, _FEW))
    most = min(most, max(num_steps, 16))
    return Shape(0, block_of(size), most, rank, num_steps, _CALL, options.save_every or 0, options.mesh)


def run(method: Newton, task: Task, options: Options, keep: Fronts | None) -> Run:
    """Sweeps until all steps are final. The tolerance is absolute, on the error of the final state."""
    tolerance = options.tolerance
    evolution, floating, clock, num_steps = task.evolution, task.floating, task.clock, task.num_steps
    make_room((jax.tree.structure(evolution), num_steps))
    chain = chain_of(evolution, floating, clock)
    members(chain)  # looks at the optimizer, which would take longer while a program is traced
    eps = chain.eps
    aim = Aim(float(method.sweeps), max(DEFAULT_TOLERANCE, _ROUNDINGS * eps) if tolerance is None else 0.0, tolerance or 0.0)
    given = evolution, floating, clock
    anywhere = _shape(method, options, chain.first.size, most_in_flight(floating), num_steps)
    few = _OF_SMALL if chain.first.size <= _SMALL else _CAPACITY

    def begun(places: int) -> Reached:
        window = min(_FIRST_WINDOW, anywhere.holding(few).room)
        return Reached.nothing(*_begin(*given, shape=anywhere.holding(places), window=window))

    at = (keep and keep.latest(begun)) or begun(few)
    require_agreement(options.mesh, at.taken)
    began, taken, finite = time.perf_counter() - at.seconds, at.taken, at.finite
    everywhere, at = replicated(given, options.mesh), replicated(at, options.mesh)
    try:
        while taken < num_steps and finite:
            shape = anywhere.holding(len(at.flight.rows.x))
            (flight, saved), told = _sweeps(*everywhere, aim, at[:2], shape=shape)
            at = at._replace(flight=flight, saved=saved)
            taken, live, sweeps, finite = (int(x) for x in np.asarray(told))
            at = at._replace(seconds=time.perf_counter() - began).recorded()
            options.progress.front(taken, num_steps, live, sweeps, at.seconds)
            if keep:
                keep.save(local(at, options.mesh), at_once=taken >= num_steps or not finite)
            if live >= shape.capacity < shape.most:
                at = at._replace(flight=_enlarged(at.flight, anywhere.holding(_LARGER * shape.capacity).capacity))
    except (KeyboardInterrupt, SystemExit):
        if keep:
            keep.interrupted(local(at, options.mesh))
        raise
    return _ended(*given, local(at, options.mesh), bool(finite))


@partial(kernel, static_argnames=("shape", "window"))
def _begin(evolution, floating, clock, shape: Shape, window: int) -> tuple[Flight, Saved | None]:
    chain = chain_of(evolution, floating, clock)
    return begun(chain, shape, window), nothing_saved(evolution, chain, shape)


@partial(kernel, static_argnames="places")
def _enlarged(flight: Flight, places: int) -> Flight:
    return enlarged(flight, places)


@partial(quickly_compiled, static_argnames="shape", donate_argnums=4)
def _sweeps(evolution, floating, clock, aim, given: tuple[Flight, Saved | None], shape: Shape):
    """(the flight after at most as many sweeps as are recorded, until it ends or has no room; what the host asks of it).

    With the flight, the states that are asked for. The devices of a mesh compute the same, and share what is evaluated.
    """
    some = partial(_some_sweeps, shape)
    if shape.mesh is not None:
        everywhere = PartitionSpec()
        some = jax.shard_map(
            some, mesh=shape.mesh, in_specs=everywhere, out_specs=everywhere, axis_names={AXIS}, check_vma=False
        )
    return some(evolution, floating, clock, aim, given)


def _some_sweeps(shape: Shape, evolution, floating, clock, aim, given: tuple[Flight, Saved | None]):
    chain, most = chain_of(evolution, floating, clock), given[0].tally.sweeps + shape.sweeps
    wanted = Aim(*(jnp.asarray(x, chain.first.dtype) for x in aim))

    def goes_on(given: tuple[Flight, Saved | None]) -> Array:
        flight, _ = given
        has_room = (flight.rows.live < shape.capacity) | (shape.capacity >= shape.most)
        return (flight.front.taken < shape.num_steps) & (flight.tally.sweeps < most) & flight.finite & has_room

    def sweep(given: tuple[Flight, Saved | None]) -> tuple[Flight, Saved | None]:
        flight, saved = swept(chain, shape, wanted, given[0]), given[1]
        return flight, with_front(evolution, chain, shape, saved, flight)

    flight, saved = jax.lax.while_loop(goes_on, sweep, given)
    front, rows, tally = flight.front, flight.rows, flight.tally
    return (flight, saved), jnp.stack([front.taken, rows.live, tally.sweeps, flight.finite.astype(jnp.int32)])


def _error(flight: Flight) -> float:
    """With that of the last block, over which the model alone has taken what was there."""
    tangents = flight.tangents
    return float(jnp.linalg.norm(flight.units * tangents.members[1, 0] * tangents.size[1] + tangents.added))


@kernel
def _reads(evolution, floating, clock, x: Array) -> Array:
    chain = chain_of(evolution, floating, clock)
    return chain.reads_statistics(x) if isinstance(chain, Training) and chain.size < x.size else jnp.asarray(False)


def _doubt(chain: Chain, reads: bool) -> str:
    if reads:
        return "the loss reads the running statistics, which the tangents do not"
    start, nothing = jnp.int32(0), jnp.zeros((), chain.first.dtype)
    if may_jump(lambda x: chain.evaluate(x, start)[0], chain.first):
        return "gradients may jump as parameters change, as ReLU's do"
    if may_jump(lambda now: chain.follow(now[0], now[0], nothing, now[1], start), (chain.first, chain.memory)):
        return "the optimizer may jump as gradients change, as signs and moments in bfloat16 do"
    return "" if understood(chain) else "the optimizer is no linear recurrence with frozen second moments"


def _ended(evolution, floating, clock, at: Reached, finite: bool) -> Run:
    flight, front, chain = at.flight, at.flight.front, chain_of(evolution, floating, clock)
    x, num_steps = flight.rows.x[0], len(flight.tally.losses) - len(flight.rows.x)
    return Run(
        state=chain.state(x, front.memory),
        taken=int(front.taken),
        finite=finite,
        error=_error(flight),
        doubt=_doubt(chain, x.size > chain.size and bool(_reads(evolution, floating, clock, x))),
        growth=float(front.growth),
        moved=float(jnp.linalg.norm((x - chain.first)[: chain.size])),
        size=float(jnp.linalg.norm(x[: chain.size])),
        history=at.history,
        losses=np.asarray(flight.tally.losses[:num_steps]) if isinstance(evolution.phi, TrainStep) else None,
        states=None if at.saved is None else evolution.merge(*at.saved),
    )
