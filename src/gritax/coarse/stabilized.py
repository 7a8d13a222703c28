"""The stabilised coarse step: stages of gradient descent on the union of the minibatches that it stands for."""

import math
from dataclasses import replace
from numbers import Real
from typing import Any, ClassVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PyTree

from .._arguments import require_whole
from .._hierarchy import Multigrid
from ._curvature import SPAN, kappas_along
from ._known_run import KnownRun
from ._linear import linear
from ._replay import Replay
from ._slow import at_rest, memory
from ._stages import chebyshev, stages
from ._stiffest import Stiffest, stiffest_directions


_EARLY = 1.15
_MARGIN = 1.15
_MORE = 1.5
_FACTOR = 4
_LARGEST_MARGIN = 6.0
_LONGEST = 512  # stride of an optimizer that is not linear in its gradients


class Stabilized(eqx.Module):
    r"""$z' = -\sum_k \nabla \mathrm{loss}(z, \mathrm{batch}(k))$ by damped Runge-Kutta-Chebyshev stages, for any stride.

    A coarse step of M training steps is one long step along the gradients of all M minibatches. Its length is limited by the
    largest curvature, $\kappa$ a training step, to $M \kappa \le 1.87 s^2$ with s evaluations, where `FrozenGradient` reaches
    2 s with as many. So the depth of a solve grows like the root of the number of training steps.

    What takes the long step is not the parameters but the *slow variable* z of the optimizer: where they come to rest if no
    more gradients come. For heavy ball that is $w - \alpha \beta / (1 - \beta) v$, which descends by itself; for any
    optimizer it is found by steps with gradients of zero. Each stage replays the optimizer's own M updates with gradients at
    the stage. The moments after the step, and how far the parameters are from z, are those of the last stage's replay: wrong
    to first order in M, and forgotten within the first interval of training steps. Without momentum z is w.

    Second moments change within a long step as the gradients of one stage say, which is wrong beyond half the memory of
    Adam. So strides of an optimizer that is not linear in its gradients end at 512, and the coarsest level grows instead.

    Where one stage is enough, the step is that of `FrozenGradient`. The number of stages is that of the largest
    curvature within the coarse step, measured at the initial state and again along the initial guess (after the first iteration
    if that is not the graded one), where it usually has fallen. From then on the stiffest directions, found at the same time,
    are taken exactly (as far as the loss is quadratic), and the curvature that counts is that of the others. With momentum
    directions wait for the first iteration, with second moments the curvature does too.

    A depth of s; a work of `stride` for each evaluation.

    **Arguments**

    - `kappa`: learning rate times largest curvature, of one training step (over $1 - \beta$ with momentum, with the
      root of the second moment in it for Adam). `None` measures it, and tries half as much again if the solve diverges.
    - `directions`: how many of the stiffest to take exactly, at most half as many as there are parameters, at a memory of 8
      states each; 0 for none. None if `kappa` is given.
    - `chunk`: at most so many gradients of a coarse step are held at a time; those of one chunk are evaluated as one batch.
      `None` for 16 on a CPU, whose cache holds them, and for all of them elsewhere: the longer coarse steps are, the fewer
      there are at a time.

    Raises `ValueError` for a `kappa` that is not positive, for `directions` below 0 and a `chunk` below 1.

    >>> import gritax
    >>> coarse = gritax.Stabilized(kappa=0.1)
    >>> [coarse.depth(stride) for stride in (4, 16, 64, 1024)]
    [1, 1, 2, 8]
    """

    usual_iterations: ClassVar[int] = 5
    reversible: ClassVar[bool] = False  # as many stages as the curvature at hand asks for

    kappa: float | None = eqx.field(static=True)
    directions: int = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)
    _margin: float = eqx.field(static=True)
    _known: KnownRun
    _stiffest_directions: Stiffest | None

    def __init__(
        self,
        kappa: float | None = None,
        *,
        directions: int = 64,
        chunk: int | None = None,
        _margin: float = _MARGIN,
        _known=None,
        _stiffest_directions=None,
    ):
        if kappa is not None and (isinstance(kappa, bool) or not isinstance(kappa, Real) or not 0 < kappa < math.inf):
            raise ValueError(f"kappa, the learning rate times the largest curvature, must be positive, not {kappa!r}.")
        require_whole("directions", directions, 0)
        require_whole("chunk", 1 if chunk is None else chunk, 1)
        self.kappa, self.directions, self.chunk, self._margin = kappa, directions, chunk, _margin
        self._known, self._stiffest_directions = _known or KnownRun.of(kappa), _stiffest_directions

    def _with(self, chosen: KnownRun, directions: Stiffest | None, margin: float | None = None) -> "Stabilized":
        return Stabilized(
            self.kappa,
            directions=self.directions,
            chunk=self.chunk,
            _margin=margin or self._margin,
            _known=chosen,
            _stiffest_directions=directions,
        )

    def depth(self, stride: int) -> int:
        """Where the curvature is largest; see `cost`."""
        return self.cost(stride, self._stiffest)[0]

    def work(self, stride: int) -> int:
        return self.cost(stride, self._stiffest)[1]

    @property
    def largest_kappa(self) -> float:
        """Of one training step, with the margin that stages are chosen for; 0 while it is unknown."""
        return self._known.curvature.largest

    @property
    def _stiffest(self) -> np.ndarray:
        curvature = self._known.curvature
        return np.full((1, 1), curvature.steps[np.argmax(curvature.kappas)], np.int64)

    def cost(self, stride: int, starts: np.ndarray) -> tuple[int, int]:
        """(depth, work) of coarse steps from `starts`, [sequence, lanes]: lanes wait for the one with most stages."""
        if stride <= self._known.single:
            return len(starts), starts.size * stride
        depth = int(np.sum(np.max(stages(self._known.within(starts, stride)[0] * stride), axis=1)))
        return depth, depth * starts.shape[1] * stride

    def method(self, num_steps: int) -> Multigrid:
        """Factors of 4 to a few steps on the coarsest level; the first by the optimizer's memory, or less than 4 for one stage.

        An optimizer with a memory needs FCF-relaxation everywhere: coarse steps leave it wrong, and an interval mends it. For
        others F-relaxation will do on the last level that has any, whose steps are the dearest.
        """
        factors = tuple(self._known.factors(num_steps)) or (_FACTOR,)
        return Multigrid(factors, relaxation=(*[1] * (len(factors) - 1), int(len(factors) == 1 or self._known.lasting > 1)))

    def __call__(self, step: Any, state: PyTree, start: Array, stride: int) -> PyTree:
        replay = Replay(step, state, start, stride, self.chunk)
        params, others = step.split(state.params)
        if stride <= self._known.single:
            return replay(params)
        lasting = self._known.lasting

        def slow(state):
            return at_rest(step, state, 3 * lasting) if lasting > 1 else step.split(state.params)[0]

        z = slow(state)

        directions = self._stiffest_directions
        kappa, growth = self._known.within(start, stride)
        count = stages(kappa * stride)

        def evaluate(y):
            after = replay(y)
            change = jax.tree.map(lambda x, y: x - y, slow(after), z)
            if directions is not None:
                change = directions.corrected(change, start, stride, count, growth)
            return change, eqx.filter(after, eqx.is_array)

        end, after = chebyshev(evaluate, z, count)
        after = eqx.combine(after, eqx.filter(state, eqx.is_array, inverse=True))
        if lasting > 1:
            end = jax.tree.map(lambda z, w, rest: z + (w - rest), end, step.split(after.params)[0], slow(after))
        return after._replace(params=eqx.combine(end, others))

    def adapted(
        self,
        step: Any,
        states: PyTree,
        starts: np.ndarray,
        num_steps: int,
        iteration: int | None,
        kappas: np.ndarray | None = None,
    ) -> tuple["Stabilized", int, int]:
        """(this step with the curvature at these states, depth and work spent).

        The `kappas` of the initial state, if they are known already, are not measured again.
        """
        if iteration is None:
            self = self._begun(step, states, num_steps)
        known, directions = self._known, self._stiffest_directions
        # In a guess velocities are too far from the trajectory for directions, and second moments for anything.
        in_motion = iteration == 0 and known.lasting > 1
        if self.kappa is not None or (in_motion and linear(step.optimizer, _initial(step, states)) is None):
            return self, 0, 0
        if iteration and known.is_measured and (directions is None or directions.anywhere):
            return self, 0, 0
        if iteration is None or in_motion or directions is None:
            measure = lambda: kappas_along(step, states, starts, num_steps, self.chunk)
            found, depth, work = measure() if kappas is None else (kappas, 0, 0)
            rest = found
        else:
            span = min(SPAN, max(num_steps // 2, 1))
            where = np.clip(starts, 0, max(num_steps - 2 * span, 0))
            directions, found, rest, depth, work = stiffest_directions(step, states, where, span, self.chunk, directions)
        if iteration is None:
            found = np.nan_to_num(found * self._margin, nan=1.0, posinf=1.0)
            known = replace(known, initial_kappa=np.asarray(found[0] / self._margin))
            return self._with(known.along(starts, found * _EARLY), directions), depth, work
        if not np.all(np.isfinite(found)):  # the solve diverges, and is started again
            return self, depth, work
        found, rest = (np.append(known.initial_kappa, each) * self._margin for each in (found, rest))
        return self._with(known.along(np.append(0, starts), found, rest), directions), depth, work

    def _begun(self, step: Any, states: PyTree, num_steps: int) -> "Stabilized":
        """What depends on the optimizer and the sizes alone."""
        params = _initial(step, states)
        lasting = memory(step.optimizer, params)
        # A velocity is to have decayed within an interval; where it is divided by the root of a second moment, it is small.
        is_linear = linear(step.optimizer, params) is not None
        first = 1 if lasting == 1 else 2 * lasting if is_linear else 2 * _FACTOR
        directions = Stiffest.nowhere(params, self.directions)
        known = KnownRun.of(self.kappa, lasting, first, num_steps, num_steps if is_linear else _LONGEST)
        return self._with(known, directions if directions.count and self.kappa is None else None)

    def of_quadratic(self, curvatures: Array, start: Array, stride: int) -> "Stabilized":
        """What this coarse step is for a quadratic loss with these curvatures, one for each parameter."""
        if self._stiffest_directions is None:
            return self
        rest = self._known.rest.within(start + stride // 2, 1) / self._margin
        return self._with(self._known, Stiffest.of_quadratic(curvatures, rest))

    def finer(self) -> "Stabilized | None":
        """For half as much curvature again as was found, if it was not the caller's; the second time without directions."""
        if self.kappa is not None or self._margin > _LARGEST_MARGIN:
            return None
        more = self._known.along(np.zeros(1, np.int32), np.full(1, _MORE * self.largest_kappa)).with_new_levels()
        known = self._stiffest_directions if self._margin == _MARGIN else None
        return self._with(more, known and known.forgotten(), _MORE * self._margin)

    def __str__(self) -> str:
        if not self.largest_kappa:
            return "Stabilized()"
        used = self._known.rest.kappas[self._known.rest.kappas > 0]
        words = f"Stabilized, kappa {used.max():.2g} to {used.min():.2g} a training step"
        known = self._stiffest_directions
        return f"{words} beside {known.count} directions" if known and known.anywhere else words


def _initial(step: Any, states: PyTree) -> PyTree:
    """The trainable parameters of the first of these states."""
    return jax.tree.map(lambda x: x[0], step.split(states.params)[0])
