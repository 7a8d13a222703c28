"""How long training steps take on this device: one after the other, and many at once."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from .._evolution import Evolution
from .._hierarchy import Level
from .._points import arrived, everywhere, uniform
from .._relaxation import march, relax_coarse, relax_finest
from .._serial import advance
from .._window import Window


_LANES = 8  # that many times more at each trial
_BETTER = 1.3  # a gain in speed that makes more lanes worth a trial
_MOST_LANES = 2**15
_MEMORY = 2**30
_FACTOR = 8
_LONG = 64
_ENOUGH = 0.03


@dataclass(frozen=True)
class Speeds:
    """Seconds, compiled before.

    - `step`: a training step after another.
    - `lanes`: (how many states, a training step of all of them at once), fewest first.
    - `dispatch`: the call of a compiled program that does next to nothing.
    - `compilation`: that of the serial loop.
    """

    step: float
    lanes: tuple[tuple[int, float], ...]
    dispatch: float
    compilation: float

    @property
    def gain(self) -> float:
        """The most training steps in the time of one."""
        return max(lanes * self.step / seconds for lanes, seconds in self.lanes)

    @property
    def best_lanes(self) -> int | None:
        """So many states at once that more are not a fifth faster; None if that is as many as there are."""
        rates = [lanes / seconds for lanes, seconds in ((1, self.step), *self.lanes)]
        enough = next(i for i, rate in enumerate(rates) if 1.2 * rate >= max(rates))
        return None if enough == len(rates) - 1 else (1, *(lanes for lanes, _ in self.lanes))[enough]

    def of(self, lanes: float) -> float:
        """A training step of so many states at once: between those that were measured by their power law."""
        known = np.log([(1, self.step), *self.lanes])
        x = np.log(lanes)
        if x >= known[-1, 0]:
            return float(lanes / np.exp(known[-1, 0]) * np.exp(known[-1, 1]))
        return float(np.exp(np.interp(x, known[:, 0], known[:, 1])))


def measured(evolution: Evolution, floating: Any, clock: Any, num_steps: int, *, enough: float | None = None) -> Speeds:
    """Of the training step of this evolution, on states like this one.

    More lanes are tried for as long as they are faster, the steps of the run allow them and their states fit. With `enough`
    trials also end once a gain that large is out of reach, or found.
    """
    count = min(64, num_steps)
    serial = lambda: advance(evolution, floating, clock, np.int32(count))
    began = time.perf_counter()
    jax.block_until_ready(serial())
    first = time.perf_counter() - began
    taken = seconds(serial)
    while taken < _ENOUGH and count < num_steps:
        count = min(4 * count, num_steps)
        taken = seconds(serial)
    found: list[tuple[int, float]] = []
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((floating, clock)))
    most = max(min(num_steps // _FACTOR, _MOST_LANES, _MEMORY // (4 * size)), 1)
    lanes = min(_LANES, most)
    while True:
        found.append((lanes, _batched(evolution, floating, lanes, taken / count)))
        gains = [each / seconds for each, seconds in found]
        worth = gains[-2] if len(found) > 1 else count / taken
        if lanes == most or gains[-1] < _BETTER * worth:
            break
        if enough is not None and (gains[-1] * taken / count >= enough or _hopeless(found, most, enough * count / taken)):
            break
        lanes = min(_LANES * lanes, most)
    return Speeds(
        taken / count,
        tuple(found),
        seconds(lambda: arrived(Level(0, 1, 1, 1), np.zeros(2, np.float32))),
        max(first - taken, 0.0),
    )


def _hopeless(found, most, enough) -> bool:
    """Whether `enough` states a second are out of reach, though each trial were as much better as the one before."""
    if len(found) < 2:
        return False
    (fewer, slow), (more, fast) = found[-2:]
    rate = np.log((more / fast) / (fewer / slow)) / np.log(more / fewer)
    return (more / fast) * (most / more) ** rate < enough


def _batched(evolution: Evolution, floating: Any, lanes: int, step: float) -> float:
    # Intervals so long that the call does not count, where that does not take long.
    long = min(max(int(_ENOUGH / (lanes * step)), 1), _LONG)
    level = Level(0, lanes * long, 1, long)
    u = evolution.stored(floating)
    c = uniform(level, u, u)
    run = lambda: relax_finest(level, evolution, c, arrived(level, c), np.int32(1))
    jax.block_until_ready(run())
    return seconds(run) / long


@dataclass(frozen=True)
class CoarseSpeed:
    """Seconds of one coarse step of this stride, for so many lanes at once."""

    stride: int
    lanes: int
    seconds: float


def measured_coarse(solved: Window) -> tuple[CoarseSpeed, ...]:
    """Of the coarse levels of a window that was solved, whose programs are compiled."""
    evolution, found = solved.evolution, []
    u = jax.tree.map(lambda x: x[0], solved.c)
    for level in solved.hierarchy.levels[1:]:
        points = everywhere(level, u)
        if level is solved.hierarchy[-1]:
            lanes, steps = 1, level.size
            run = partial(march, level, evolution, *points, np.int32(0))
        else:
            lanes, steps = level.num_intervals, level.factor
            run = partial(relax_coarse, level, evolution, *points, *map(np.int32, (1, steps, 0, 0)))
        jax.block_until_ready(run())
        found.append(CoarseSpeed(level.stride, lanes, seconds(run) / steps))
    return tuple(found)


def seconds(run: Callable[[], Any]) -> float:
    """The least of three."""
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - began)
    return min(taken)
