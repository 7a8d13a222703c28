"""A traced program as it can be compared with another, and with the one that the same functions gave before."""

import hashlib
import logging
import re
from collections.abc import Hashable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr

from ._kernel import forget
from ._static import key


logger = logging.getLogger("gritax")

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
# Of what was validated last.
_known: dict[Hashable, "Program"] = {}
_MOST = 16


class Program:
    """The operations of a traced program, and the values that it was traced with: those of its functions, too.

    NumPy arrays are known by a digest, since they may be changed in place.
    """

    def __init__(self, traced: ClosedJaxpr):
        self._operations = _ADDRESS.sub("", str(traced.jaxpr))
        self._values = [_known_by(value) for value in _values(traced)]

    @property
    def is_traced(self) -> bool:
        """Whether it closes over values of a derivative that is being taken, which are none to keep."""
        return any(isinstance(value, Tracer) for value in self._values)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Program)
            and self._operations == other._operations
            and len(self._values) == len(other._values)
            and all(map(_same, self._values, other._values))
        )

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def notice_changes(of: Hashable, traced: ClosedJaxpr) -> None:
    """What functions read from outside may have changed since they were compiled: then all programs are forgotten.

    `of` tells the functions, and the shapes that they are traced for, apart from others.
    """
    now = Program(traced)
    if now.is_traced:
        return
    before = _known.pop(of, None)
    if before is not None and before != now:
        logger.info("phi, the loss or the batch reads values that have changed: it is compiled anew")
        forget()
    _known[of] = now
    while len(_known) > _MOST:
        _known.pop(next(iter(_known)))


def _values(traced: ClosedJaxpr | Jaxpr) -> Iterator[Any]:
    yield from getattr(traced, "consts", ())
    for equation in getattr(traced, "jaxpr", traced).eqns:
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)):
            if isinstance(part, ClosedJaxpr | Jaxpr):
                yield from _values(part)


def _known_by(value):
    if isinstance(value, jax.Array):
        return value
    array = np.asarray(value)
    return key(value) if array.dtype.hasobject else (array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest())


def _same(x, y) -> bool:
    if x is y or not (isinstance(x, jax.Array) and isinstance(y, jax.Array)):
        return x is y or (not isinstance(x, jax.Array) and not isinstance(y, jax.Array) and x == y)
    if x.aval != y.aval:
        return False
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x, y = jax.random.key_data(x), jax.random.key_data(y)
    return np.array_equal(*jax.device_get((x, y)), equal_nan=True)
