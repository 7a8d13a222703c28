"""The steps in flight: what a sweep begins with and leaves."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from .._sharing import count
from ._chain import Chain
from ._curvature import Curvature
from ._response import Recurrence, members, recurrence
from ._tangents import Tangents


_BLOCK, _LARGEST, _NUMBERS = 32, 256, 2**12
_OF_LARGE, _LARGE = 8, 2**14
_AT_ONCE, _MOST_NUMBERS = 1024, 2**22  # on a device that evaluates many rows in the time of one


def block_of(size: int) -> int:
    """How many rows of so many numbers are evaluated together, blocks one after the other.

    On processors few, so that less than a block is padded: 32; up to 256 of small ones, whose operations would take less time
    than it takes to call them; 8 of more than 16,384 numbers, of which few are in flight. Elsewhere 1,024, or as many as hold
    4 million numbers: what is evaluated in sequence counts there, and not what is padded.
    """
    if jax.default_backend() != "cpu":
        return max(_BLOCK, min(_AT_ONCE, _MOST_NUMBERS // size) // _BLOCK * _BLOCK)
    return _OF_LARGE if size > _LARGE else max(_BLOCK, min(_LARGEST, _NUMBERS // size) // _BLOCK * _BLOCK)


@dataclass(frozen=True)
class Shape:
    """The static facts that a program is compiled for.

    `capacity` places for steps in flight, a multiple of the rows of a `block`, of which at most `most` are taken; the rank of
    the model; the steps of the run; the sweeps that it records; after how many steps each a state is asked for, 0 for none; the
    `mesh` whose devices share the evaluation.
    """

    capacity: int
    block: int
    most: int
    rank: int
    num_steps: int
    sweeps: int
    save_every: int = 0
    mesh: Mesh | None = None

    def holding(self, places: int) -> "Shape":
        """With as few blocks as hold so many places, 32 of them at least."""
        unit = max(self.block, _BLOCK)
        return replace(self, capacity=-(-min(places, self.most) // unit) * unit)

    @property
    def devices(self) -> int:
        return count(self.mesh)

    @property
    def room(self) -> int:
        """Steps that may be in flight."""
        return min(self.capacity, self.most)

    @property
    def new(self) -> int:
        """Directions that a sweep adds to the model at most."""
        return max(self.rank * 3 // 8, 1)

    @property
    def groups(self) -> int:
        """Neighbouring secant pairs are added up to so many."""
        return max(self.rank * 3 // 4, 2 * self.new, 8)


class Aim(NamedTuple):
    """The aims of a run: how many `sweeps` a step is to stay in flight, and the error at the end.

    That is `relative` to the distance travelled, or `absolute`; the other one is 0.
    """

    sweeps: Array | float
    relative: Array | float
    absolute: Array | float


class Front(NamedTuple):
    """The last final state: the steps `taken` to it, and the optimizer's `memory` there.

    `drift` [P] estimates how far it is from that of serial training, `growth` is how small changes have grown on the way,
    `travelled` is the largest distance from the first state so far, and `rate` by how much corrections shrink from the first to
    the second of a step, as far as steps have had two.
    """

    taken: Array
    memory: PyTree
    drift: Array
    growth: Array
    travelled: Array
    rate: Array

    def grown(self, by: Array, drift: Array) -> "Front":
        """Once the steps behind the front are found to have amplified what was there `by`, and to have made errors `drift`."""
        return self._replace(drift=drift, growth=jnp.maximum(by * self.growth, 1))


class Rows(NamedTuple):
    """The window, a row for each step from the front on, of which `live` are in flight; row 0 is the front.

    - `x` [capacity, P]: the state before the step; `before` and `gradients` are the state and the gradient of the last sweep.
    - `age`: sweeps that have corrected x; `moved`: how far the last of them did.
    """

    x: Array
    before: Array
    gradients: Array
    age: Array
    moved: Array
    live: Array


class Tally(NamedTuple):
    """Sweeps so far, and what the last of them were like, [sweeps, 3].

    That is the front before it, the live rows, and the norm of their residuals, at the number of the sweep modulo so many.
    `losses` are those of all steps taken.
    """

    sweeps: Array
    history: Array
    losses: Array


class Flight(NamedTuple):
    front: Front
    rows: Rows
    tangents: Tangents
    model: Curvature
    known: Recurrence
    units: Array
    window: Array
    tally: Tally
    finite: Array


def begun(chain: Chain, shape: Shape, window: int) -> Flight:
    """Before the first sweep: every step in flight begins at the first state."""
    # A copy: the flight is given away to the next program, and what the user gave is not.
    memory, x, places = jax.tree.map(jnp.copy, chain.memory), chain.first, shape.capacity
    known = recurrence(chain, shape.num_steps)
    zero, rows = jnp.zeros((), x.dtype), jnp.zeros((places, x.size), x.dtype)
    return Flight(
        Front(jnp.int32(0), memory, jnp.zeros_like(x), jnp.ones((), x.dtype), zero, jnp.ones((), x.dtype)),
        Rows(
            rows + x[None],
            rows,
            rows,
            jnp.zeros(places, jnp.int32),
            jnp.full(places, jnp.inf, x.dtype),
            jnp.int32(min(window, shape.num_steps)),
        ),
        Tangents.begun(known, members(chain), shape.rank, x.dtype),
        Curvature.none(x.size, shape.rank, x.dtype),
        known,
        jnp.ones_like(x),
        jnp.asarray(window, x.dtype),
        Tally(
            jnp.int32(0),
            jnp.zeros((shape.sweeps, 3), x.dtype),
            jnp.zeros(shape.num_steps + places, x.dtype),
        ),
        jnp.asarray(True),
    )


def enlarged(flight: Flight, places: int) -> Flight:
    """The same flight with room for more steps."""
    more = places - len(flight.rows.x)
    last = flight.rows.x[-1:]

    def pad(x: Array, fill: float = 0) -> Array:
        return jnp.concatenate([x, jnp.full((more, *x.shape[1:]), fill, x.dtype)])

    x, before, gradients, age, moved, live = flight.rows
    x = jnp.concatenate([x, jnp.broadcast_to(last, (more, last.shape[1]))])
    rows = Rows(x, pad(before), pad(gradients), pad(age), pad(moved, jnp.inf), live)
    return flight._replace(rows=rows, tally=flight.tally._replace(losses=pad(flight.tally.losses)))
