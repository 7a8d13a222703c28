"""Where a user's call comes in: what holds for all of them."""

import os
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax


P = ParamSpec("P")
R = TypeVar("R")

_processes: set[int] = set()


def entry(function: Callable[P, R]) -> Callable[P, R]:
    """A public function whose own small transfers, of step numbers and norms, are none that a transfer guard is meant for.

    It raises `RuntimeError` in a process that was forked from one that has used gritax, where JAX would hang.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if _processes and os.getpid() not in _processes:
            raise RuntimeError(
                "this process was forked from one that had used gritax, and the threads of JAX do not survive a fork: it would "
                'hang. Start processes by multiprocessing.get_context("spawn"), or before the first call.'
            )
        _processes.add(os.getpid())
        with jax.transfer_guard("allow"):
            return function(*args, **kwargs)

    return call
