"""The evolution that a solve runs: phi, and its state split into what is solved for and what follows the step."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._arguments import require_whole
from ._state import called
from ._static import Static, data_of


Phi = Callable[[PyTree, Any, int], PyTree]


@jax.tree_util.register_pytree_node_class
class Evolution:
    """`w[i+1] = phi(w[i], i, 1)`, as the solver's kernels see it.

    The leaves of a state are of three kinds. *Floating* leaves evolve: they are stored at the points of a level,
    corrected and measured. *Clocks* are the other arrays: functions of the step alone, tabulated at the points
    `0, spacing, 2 spacing, …` and looked up wherever a coarse step starts. The rest (functions, strings, flags) is
    constant and is put back before each call of phi.

    A coarse correction may turn any floating leaf negative. Those that phi calls nonnegative (second moments) are therefore
    *stored* as their square roots at the points of a level, and are natural only while phi is applied. Leaves of fewer than 32
    bits are stored in float32, since a correction that is rounded to two digits spoils what it passes through.

    A pytree whose leaves are the arrays of `phi` and the clocks' table, so that one compiled kernel serves all
    evolutions that differ in their data only.
    """

    def __init__(self, phi: Phi, state: PyTree):
        self._aux = (Static(phi), Static(state), _forms(phi, state), 1)
        self._children = (data_of(phi), jax.tree.map(lambda x: x[None], self.split(state)[1]))

    def tree_flatten(self):
        return self._children, self._aux

    @classmethod
    def tree_unflatten(cls, aux, children):
        self = object.__new__(cls)
        self._children, self._aux = tuple(children), aux
        return self

    @property
    def phi(self) -> Phi:
        return self._aux[0].with_data(self._children[0])

    @property
    def data(self) -> tuple[Array, ...]:
        """The arrays of phi."""
        return self._children[0]

    def arrays(self, places: Iterable[int]) -> list[Array]:
        """Those in these places of `data`."""
        return [self.data[place] for place in places]

    def with_arrays(self, places: Iterable[int], arrays: Iterable[Array]) -> "Evolution":
        """The same with others there."""
        data = list(self.data)
        for place, array in zip(places, arrays, strict=True):
            data[place] = array
        return self.tree_unflatten(self._aux, (tuple(data), self._children[1]))

    def with_phi(self, phi: Phi) -> "Evolution":
        """The same states and clocks with another phi."""
        return self.tree_unflatten((Static(phi), *self._aux[1:]), (data_of(phi), self._children[1]))

    def with_clocks(self, table: PyTree[Array], spacing: int) -> "Evolution":
        return self.tree_unflatten((*self._aux[:-1], spacing), (self._children[0], table))

    def split(self, state: PyTree) -> tuple[PyTree[Array], PyTree[Array]]:
        """(floating leaves, clocks) of a state."""
        return eqx.partition(eqx.filter(state, eqx.is_array), eqx.is_inexact_array)

    def merge(self, floating: PyTree[Array], clock: PyTree[Array]) -> PyTree:
        evolving = eqx.combine(floating, clock)
        return self._aux[1].with_data(jax.tree.leaves(evolving))

    def clock(self, start: Array) -> PyTree[Array]:
        """The clocks at step `start`, a multiple of the table's spacing."""
        return jax.tree.map(lambda values: values[start // self._aux[-1]], self._children[1])

    def advance(self, floating: PyTree[Array], clock: PyTree[Array], start: Array, stride: int):
        """One application of phi to the split state. After a coarse step the clocks are those of the fine steps."""
        name, phi = f"phi(state, start, {stride})", self.phi
        after = called(name, "start", lambda state, start: phi(state, start, stride), self.merge(floating, clock), start)
        floating, clock = self.split(after)
        return floating, clock if stride == 1 else self.clock(start + stride)

    def stored(self, floating: PyTree[Array]) -> PyTree[Array]:
        """The form in which a state is kept at the points of a level, and corrected."""
        return self._changed(lambda form, x: form.stored(x), floating)

    def natural(self, stored: PyTree[Array]) -> PyTree[Array]:
        """The form that phi takes."""
        return self._changed(lambda form, x: form.natural(x), stored)

    def _changed(self, change, floating):
        leaves, structure = jax.tree.flatten(floating)
        return jax.tree.unflatten(structure, [change(form, x) for form, x in zip(self._aux[2], leaves, strict=True)])

    def advance_stored(self, stored: PyTree[Array], clock: PyTree[Array], start: Array, stride: int):
        """One application of phi from and to the stored form."""
        floating, clock = self.advance(self.natural(stored), clock, start, stride)
        return self.stored(floating), clock

    def params(self, floating: PyTree[Array], clock: PyTree[Array]) -> PyTree[Array]:
        """The floating leaves in which distances are measured: `phi.params(state)` if phi has it, else all of them."""
        state = self.merge(floating, clock)
        params = optional(self.phi, "params")
        found = self.split(state if params is None else params(state))[0]
        if not jax.tree.leaves(found):
            raise ValueError("phi.params(state) has no floating-point array: distances are measured in it.")
        return found

    def trained(self, floating: PyTree[Array]) -> PyTree[Array]:
        """The leaves that steps are there to move, None for others: `phi.trained(state)` if phi has it, else all of them."""
        trained = optional(self.phi, "trained")
        return floating if trained is None else self.split(trained(self.merge(floating, self.clock(jnp.int32(0)))))[0]

    def solved_for(self, floating: PyTree[Array], clock: PyTree[Array]) -> PyTree[Array]:
        """The leaves whose precision limits the answer: trained ones, or else those in which distances are measured."""
        return self.params(floating, clock) if optional(self.phi, "trained") is None else self.trained(floating)


@dataclass(frozen=True)
class _Form:
    """How a floating leaf is stored: of at least 32 bits, and as its root if phi calls it nonnegative."""

    dtype: jnp.dtype
    is_root: bool

    def stored(self, x: Array) -> Array:
        wide = x.astype(jnp.float32) if jnp.finfo(self.dtype).bits < 32 else x
        return jnp.sqrt(wide) if self.is_root else wide

    def natural(self, x: Array) -> Array:
        return (jnp.square(x) if self.is_root else x).astype(self.dtype)


def _forms(phi: Phi, state: PyTree) -> tuple[_Form, ...]:
    """The form of each floating leaf."""
    nonnegative = optional(phi, "nonnegative")
    flags = nonnegative(state) if nonnegative else jax.tree.map(lambda _: False, state)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(flags), strict=True)
    return tuple(_Form(leaf.dtype, bool(flag)) for leaf, flag in pairs if eqx.is_inexact_array(leaf))


def optional(phi: Phi, name: str) -> Callable | None:
    """The method `name` of phi, if it has one."""
    method = getattr(phi, name, None)
    # A field that happens to have that name, a model's layer say, is none.
    return method if callable(getattr(type(phi), name, None)) or inspect.isroutine(method) else None


def evaluations(phi: Phi, name: str, stride: int) -> int:
    """Network evaluations of one application of phi: `name` is "depth" (in sequence) or "work" (in all)."""
    count = optional(phi, name)
    if count is None:
        return 1
    require_whole(f"phi.{name}({stride})", count(stride), 1)
    return int(count(stride))


def costs(phi: Phi, stride: int, starts: np.ndarray) -> tuple[int, int]:
    """(depth, work) of steps from `starts`, [sequence, lanes]: `phi.cost(stride, starts)` if they differ in what they cost."""
    count, (steps, lanes) = optional(phi, "cost"), starts.shape
    if count is None or stride == 1:
        return steps * evaluations(phi, "depth", stride), steps * lanes * evaluations(phi, "work", stride)
    found = count(stride, starts)
    try:
        depth, work = found
    except (TypeError, ValueError):
        raise ValueError(f"phi.cost(stride, starts) must return (depth, work), two integers, not {found!r}.") from None
    for name, value in (("depth", depth), ("work", work)):
        require_whole(f"the {name} that phi.cost({stride}, starts) returns", value, 1)
    return int(depth), int(work)
