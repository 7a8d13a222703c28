"""The frozen-gradient coarse step: gradients in parallel at frozen parameters, replayed through the optimizer."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._arguments import require_whole
from .._hierarchy import Multigrid
from ._curvature import kappas_along
from ._linear import linear
from ._replay import Replay
from ._slow import memory


_KAPPA = 1.5
_LARGEST = 1024
_FACTOR = 4


@dataclass(frozen=True)
class FrozenGradient:
    r"""$w_{k+1} = w_k + U_k(g_k)$, $g_k = \nabla \mathrm{loss}(w_*, \mathrm{batch}(k))$, $w_*$ renewed every `refresh` steps.

    The gradients of all minibatches that a coarse step replaces are evaluated at once, at the parameters it starts a block
    from, and then go through the optimizer's own updates $U_k$, one after the other: its schedule, moments, decay and clipping
    are those of training. An optimizer that is linear in its gradients (SGD, heavy ball, Nesterov) needs only one or two
    weighted sums of them, which cost one or two passes backward and no memory.

    A depth of `stride / refresh` evaluations, rounded up, and a work of `stride`.

    **Arguments**

    - `refresh`: training steps between two evaluations at new parameters; `math.inf` for one evaluation a coarse step.
      `None` chooses from the curvature: the largest power of two with $\kappa \le 1.5$, where $\kappa$ is `refresh` times
      effective learning rate times largest curvature of the loss, at the initial state and along the guess. A solve that
      then diverges is started again with half of it.
    - `chunk`: at most so many gradients of a coarse step are held at a time; those of one chunk are evaluated as one batch.
      `None` for 16 on a CPU, whose cache holds them, and for all of them elsewhere: the longer coarse steps are, the fewer
      there are at a time.

    Raises `ValueError` for a `refresh` or `chunk` below 1 or not whole.

    >>> import gritax
    >>> coarse = gritax.FrozenGradient(refresh=64)
    >>> coarse.depth(8), coarse.depth(512), coarse.work(512)
    (1, 8, 512)
    """

    usual_iterations: ClassVar[int] = 4

    refresh: int | float | None = None
    chunk: int | None = None
    _chosen: "_Chosen | None" = field(default=None, repr=False)

    def __post_init__(self):
        if self.refresh is not None and not (isinstance(self.refresh, float) and self.refresh == math.inf):
            require_whole("refresh", self.refresh, 1)
        require_whole("chunk", 1 if self.chunk is None else self.chunk, 1)

    def length(self, stride: int) -> int:
        """Training steps on one evaluation, in a coarse step of this stride."""
        refresh = self.refresh if self.refresh is not None else self._chosen.refresh if self._chosen else math.inf
        return int(min(refresh, stride))

    def depth(self, stride: int) -> int:
        return -(-stride // self.length(stride))

    def work(self, stride: int) -> int:
        return stride

    def method(self, num_steps: int) -> Multigrid:
        """Factors of 4 up to the refresh, beyond which coarser levels save nothing; the first as long as the momentum.

        Two FC sweeps a level: the sweep of the coarsest level is what takes time, so that iterations are to be few.
        """
        factors, refresh = [self._chosen.m_0 if self._chosen else _FACTOR], self.length(_LARGEST)
        while (stride := math.prod(factors)) < refresh:
            factors.append(min(_FACTOR, -(-refresh // stride)))
        return Multigrid(coarsening=tuple(factors), relaxation=2)

    def __call__(self, step: Any, state: PyTree, start: Array, stride: int) -> PyTree:
        length = self.length(stride)
        whole, rest = divmod(stride, length)
        if whole == 1:
            state = self._block(step, state, start, length)
        else:
            # Loops carry arrays only; a model may hold functions as well.
            arrays, constants = eqx.partition(state, eqx.is_array)

            def advance(arrays, j):
                after = self._block(step, eqx.combine(arrays, constants), start + j * length, length)
                return eqx.filter(after, eqx.is_array), None

            state = eqx.combine(jax.lax.scan(advance, arrays, jnp.arange(whole, dtype=jnp.int32))[0], constants)
        return self._block(step, state, start + whole * length, rest) if rest else state

    def _block(self, step, state, start, length):
        """`length` steps with the gradients at `state`."""
        return Replay(step, state, start, length, self.chunk)(step.split(state.params)[0])

    def adapted(
        self,
        step: Any,
        states: PyTree,
        starts: np.ndarray,
        num_steps: int,
        iteration: int | None,
        kappas: np.ndarray | None = None,
    ) -> tuple["FrozenGradient", int, int]:
        """(this step with a refresh for these states, depth and work spent); never a longer refresh than before.

        `kappas`, if they are known already, are not measured again.
        """
        if self.refresh is not None or iteration:
            return self, 0, 0
        most = min(_LARGEST, max(num_steps // 8, 1))
        found, depth, work = (kappas, 0, 0) if kappas is not None else kappas_along(step, states, starts, num_steps, self.chunk)
        if np.all(np.isfinite(found)):
            refresh = 2 ** int(min(math.log2(most), max(math.log2(_KAPPA / max(np.max(found), 1e-9)), 0)))
        else:
            # A guess that overflows was made by steps far too long, and says of others only that they are to be shorter.
            refresh = max(self._chosen.refresh // 4, 1) if self._chosen else 1
        if self._chosen:
            refresh, m_0 = min(refresh, self._chosen.refresh), self._chosen.m_0
        else:
            params = jax.tree.map(lambda x: x[0], step.split(states.params)[0])
            lasting = memory(step.optimizer, params) if linear(step.optimizer, params) else 1
            m_0 = max(_FACTOR, 2 ** math.ceil(math.log2(lasting)))
        chosen = _Chosen(refresh, min(m_0, max(most, 2)))
        return (self if chosen == self._chosen else replace(self, _chosen=chosen)), depth, work

    def finer(self) -> "FrozenGradient | None":
        """With half the refresh, if it was not the caller's and there is something left to halve."""
        if self._chosen is None or self._chosen.refresh == 1:
            return None
        return replace(self, _chosen=replace(self._chosen, refresh=self._chosen.refresh // 2))

    def __str__(self) -> str:
        if self.refresh is not None:
            return f"FrozenGradient(refresh={self.refresh})"
        return (
            f"FrozenGradient(refresh={self._chosen.refresh}), chosen from the curvature" if self._chosen else "FrozenGradient()"
        )


@dataclass(frozen=True)
class _Chosen:
    refresh: int
    m_0: int
