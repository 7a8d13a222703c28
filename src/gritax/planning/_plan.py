"""What was measured and is predicted of a run, and what follows for it."""

import math
from dataclasses import dataclass, field

from .._expected import applications, expected_depth
from .._hierarchy import Hierarchy, Multigrid
from ..coarse import CoarseStep
from ..training import TrainState, TrainStep
from ._speeds import CoarseSpeed, Speeds


DEVICES = (64, 1024)


@dataclass(frozen=True)
class Pilot:
    """A window that was solved for the plan: its steps, iterations, the factor of its residuals in the last of them.

    `coarse`: how long its coarse steps took. `start`: seconds before its iterations, beside the guess. `overhead`: seconds of
    an iteration on the host. `correction`: the others, over those predicted of it.
    """

    num_steps: int
    iterations: int
    converged: bool
    factor: float
    coarse: tuple[CoarseSpeed, ...] = field(repr=False)
    start: float
    overhead: float
    correction: float


@dataclass(frozen=True)
class Plan:
    """Measured speeds and predictions for a run of `num_steps`; prints as a table and a sentence.

    - `step`, `state`: the training step with the coarse propagator that was chosen, and the first state, for `gritax.solve`.
    - `method`: its levels. `window`: the steps of a window, of which there are `num_steps / window`.
    - `speeds`, `pilot`: what was measured. `coarse_steps` says what coarse steps there are.
    - `chosen`: the name of the propagator that was chosen for `"auto"`; windows of `gritax.train` adapt it for themselves.
    - `depth`, `work`: predicted evaluations in sequence and in all.
    - `seconds`, `serial_seconds`: predicted, without compilation; `call` of the latter is for what is not steps.
      `seconds_on(devices)` has an interval of a level on each, and exchanges nothing.
    - `diverges`: whether training is not finite after the pilot's steps. `asked`: the `coarse` that was asked for.
    - `pays`: whether solving in parallel is to be faster here, on the `devices` that there are.

    >>> import gritax, jax.numpy as jnp, optax
    >>> loss = lambda w, x: 0.5 * jnp.sum((w - x) ** 2)
    >>> plan = gritax.plan(loss, optax.sgd(0.01), lambda step: jnp.ones(2), jnp.zeros(2), 2000)
    >>> plan.depth < 2000
    True
    """

    num_steps: int
    step: TrainStep = field(repr=False)
    state: TrainState = field(repr=False)
    method: Multigrid
    window: int
    speeds: Speeds
    pilot: Pilot
    coarse_steps: str
    chosen: str = ""
    start_depth: int = 0
    call: float = 0.0
    devices: int = 1
    diverges: bool = False
    asked: str = "auto"

    @property
    def hierarchy(self) -> Hierarchy:
        return self.method.hierarchy(self.window)

    @property
    def _windows(self) -> float:
        return self.num_steps / self.window

    @property
    def depth(self) -> int:
        expected = expected_depth(self.hierarchy, self.step.depth, self.pilot.iterations) + self.start_depth
        return round(self._windows * expected)

    @property
    def work(self) -> int:
        each = applications(self.hierarchy, self.pilot.iterations)
        return round(self._windows * sum(a.count * a.lanes * self.step.work(a.stride) for a in each))

    @property
    def seconds(self) -> float:
        return self.seconds_on(self.devices)

    @property
    def serial_seconds(self) -> float:
        return self.call + self.num_steps * self.speeds.step

    def seconds_on(self, devices: int) -> float:
        pilot = self.pilot
        in_all = predicted_seconds(self.hierarchy, self.step, self.speeds, pilot.coarse, pilot.iterations, devices)
        return self._windows * (pilot.start + pilot.iterations * pilot.overhead + pilot.correction * in_all)

    @property
    def pays(self) -> bool:
        return self.pilot.converged and self.seconds < self.serial_seconds

    @property
    def sentence(self) -> str:
        ratio = self.serial_seconds / self.seconds
        if self.diverges:
            return (
                f"Training itself is not finite after {self.pilot.num_steps:,} steps, one after the other: lower the learning "
                "rate, or look at the loss and the data."
            )
        if not self.pilot.converged:
            factor = f", at a factor of {self.pilot.factor:.2g} an iteration" if math.isfinite(self.pilot.factor) else ""
            return f"Serial is the way here: {self.pilot.num_steps:,} steps at once did not converge{factor}."
        here = (
            f"Solving in parallel is {ratio:.2g} times faster here"
            if self.pays
            else f"Serial is faster here: {_time(self.serial_seconds)} for {_time(self.seconds)} in parallel"
        )
        gains = {devices: self.serial_seconds / self.seconds_on(devices) for devices in DEVICES}
        worth = [
            f"on {devices:,} such devices it would be {gain:.2g} times faster" for devices, gain in gains.items() if gain > 1
        ]
        return f"{here}; {worth[0]}." if worth else f"{here}, and on {DEVICES[-1]:,} such devices it would be no faster."

    def __str__(self) -> str:
        lanes = ", ".join(f"{lanes:,}: {_time(seconds)}" for lanes, seconds in self.speeds.lanes)
        rows = [
            (
                "steps",
                f"{self.num_steps:,} in windows of {self.window:,}, levels of {', '.join(map(str, self.hierarchy.sizes))}",
            ),
            ("coarse steps", self.coarse_steps),
            ("a training step", f"{_time(self.speeds.step)}; of many states at once, {lanes}"),
            ("lanes", f"{self.method.lanes or 'all'} at a time; dispatch {_time(self.speeds.dispatch)}"),
            (
                "pilot",
                f"{self.pilot.num_steps:,} steps, {self.pilot.iterations} iterations, "
                + (f"the last by {self.pilot.factor:.2g}" if self.pilot.converged else "not converged"),
            ),
            ("depth, work", f"{self.depth:,} evaluations in sequence, {self.work:,} in all, for {self.num_steps:,} serially"),
            ("serial", _time(self.serial_seconds)),
            ("parallel", f"{_time(self.seconds)}, without compilation"),
            *((f"{devices:,} devices", _time(self.seconds_on(devices))) for devices in DEVICES),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join([*(f"{name.ljust(width)}  {value}" for name, value in rows), "", self.sentence])


def predicted_seconds(
    hierarchy: Hierarchy,
    step: TrainStep | CoarseStep,
    speeds: Speeds,
    coarse: tuple[CoarseSpeed, ...],
    iterations: int,
    devices: int = 1,
) -> float:
    """Of a solve, with coarse steps like those that were timed: longer as they are more evaluations, of more minibatches.

    Without any, as if a coarse step of stride M were M training steps at once for each of its evaluations.
    """

    def once(stride, lanes):
        on_one = -(-lanes // devices)
        if stride == 1:
            return speeds.of(on_one)
        if not coarse:
            return step.depth(stride) * speeds.of(on_one * stride)
        like = min(coarse, key=lambda each: abs(math.log(each.stride / stride)))
        work = step.work(stride) / step.work(like.stride)
        return like.seconds * work * speeds.of(on_one) / speeds.of(like.lanes)

    return sum(a.count * once(a.stride, a.lanes) for a in applications(hierarchy, iterations))


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
