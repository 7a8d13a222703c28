"""How long training steps take on this device: one after the other, and many at once."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from .._evolution import Evolution
from .._hierarchy import Level
from .._relaxation import arrived, everywhere, relax_finest
from .._serial import advance


_LANES = 8  # that many times more at each trial
_BETTER = 1.3  # a gain in speed that makes more lanes worth a trial
_MOST_LANES = 2**15
_MEMORY = 2**30
_FACTOR = 8
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
    taken = _seconds(serial)
    while taken < _ENOUGH and count < num_steps:
        count = min(4 * count, num_steps)
        taken = _seconds(serial)
    found: list[tuple[int, float]] = []
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((floating, clock)))
    most = max(min(num_steps // _FACTOR, _MOST_LANES, _MEMORY // (4 * size)), 1)
    lanes = min(_LANES, most)
    while True:
        found.append((lanes, _batched(evolution, floating, lanes)))
        gains = [each / seconds for each, seconds in found]
        if lanes == most or (len(found) > 1 and gains[-1] < _BETTER * gains[-2]):
            break
        if enough is not None and (gains[-1] * taken / count >= enough or _hopeless(found, most, enough * count / taken)):
            break
        lanes = min(_LANES * lanes, most)
    return Speeds(taken / count, tuple(found), _seconds(lambda: arrived(np.zeros(2, np.float32))), max(first - taken, 0.0))


def _hopeless(found, most, enough) -> bool:
    """Whether `enough` states a second are out of reach, though each trial were as much better as the one before."""
    if len(found) < 2:
        return False
    (fewer, slow), (more, fast) = found[-2:]
    rate = np.log((more / fast) / (fewer / slow)) / np.log(more / fewer)
    return (more / fast) * (most / more) ** rate < enough


def _batched(evolution: Evolution, floating: Any, lanes: int) -> float:
    level = Level(0, lanes * _FACTOR, 1, _FACTOR)
    c = everywhere(lanes + 1, evolution.stored(floating))
    run = lambda: relax_finest(level, evolution, c, arrived(c), np.int32(1))
    jax.block_until_ready(run())
    return _seconds(run) / _FACTOR


def _seconds(run: Callable[[], Any]) -> float:
    """The least of three."""
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - began)
    return min(taken)
