"""Linear recurrences along a sequence, in parallel: gated layers, and what they remember."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._arguments import require_whole
from .._validation import is_concrete


def linear_recurrence(gates: Array, inputs: Array) -> Array:
    r"""$h_t = g_t h_{t-1} + x_t$, $h_{-1} = 0$, at all times by one associative scan of depth $\log_2 T$.

    Differentiable forwards and backwards, by scans as well. Rounding is that of another order of the same operations: a few
    units in the last place of the largest terms.

    **Arguments**

    - `gates`, `inputs`: arrays of one shape and dtype, time along the first axis. Gates lie between 0 and 1.

    Raises `ValueError` for a sequence of length 0, shapes or dtypes that differ, and gates out of range (where they are known
    when it is called: not within jit).

    Martin and Cundy 2018, arXiv 1709.04057, section 2.

    >>> import jax.numpy as jnp
    >>> from gritax.problems import linear_recurrence
    >>> linear_recurrence(jnp.full(4, 0.5), jnp.array([8.0, 0.0, 0.0, 1.0])).tolist()
    [8.0, 4.0, 2.0, 2.0]
    """
    gates, inputs = jnp.asarray(gates), jnp.asarray(inputs)
    if gates.shape != inputs.shape or gates.dtype != inputs.dtype:
        raise ValueError(f"gates are {_told(gates)} and inputs {_told(inputs)}: they must be alike.")
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ValueError(f"gates and inputs must be floating-point arrays, not {inputs.dtype}.")
    _require_a_sequence("inputs", inputs)
    if is_concrete(gates) and not (np.all(np.asarray(gates) >= 0) and np.all(np.asarray(gates) <= 1)):
        raise ValueError(
            "gates must lie between 0 and 1: pass them through a sigmoid. Others forget nothing, or grow without end."
        )

    def after(first, then):
        return then[0] * first[0], then[0] * first[1] + then[1]

    return jax.lax.associative_scan(after, (gates, inputs))[1]


class GILR(eqx.Module):
    r"""$h_t = g_t h_{t-1} + (1 - g_t) \tanh(V x_t + c)$, $g_t = \sigma(U x_t + b)$: a gated impulse linear recurrence.

    Gates and impulses do not depend on the state before, so that all times are computed at once.

    - `size_in`, `size`: of $x_t$ and $h_t$. `key`: of the weights, normal with variance 1 / `size_in`.
    - `memory`: how many times it remembers at first: $\sigma(b) = 1 - 1 / \mathrm{memory}$.

    Called with x, [T, size_in], it returns h, [T, size]. Raises `ValueError` for sequences of length 0 or of another size.

    Martin and Cundy 2018, arXiv 1709.04057, section 3.

    >>> import gritax, jax
    >>> layer = gritax.problems.GILR(3, 5, jax.random.key(0))
    >>> layer(jax.numpy.ones((1000, 3))).shape
    (1000, 5)
    """

    gate_weights: Array
    gate_bias: Array
    weights: Array
    bias: Array

    def __init__(self, size_in: int, size: int, key: Array, *, memory: float = 2.0, dtype=None):
        require_whole("size_in", size_in, 1)
        require_whole("size", size, 1)
        _require_memory(memory)
        gate_key, key = jax.random.split(key)
        self.gate_weights, self.weights = (_normal(each, (size_in, size), dtype) for each in (gate_key, key))
        self.gate_bias = jnp.full(size, np.log(memory - 1), dtype)
        self.bias = jnp.zeros(size, dtype)

    def __call__(self, x: Array) -> Array:
        _require_inputs(x, len(self.weights))
        gates = jax.nn.sigmoid(x @ self.gate_weights + self.gate_bias[None])
        return linear_recurrence(gates, (1 - gates) * jnp.tanh(x @ self.weights + self.bias[None]))


class GILRLSTM(eqx.Module):
    r"""An LSTM whose gates see a linear surrogate of the state before, so that all times are computed at once.

    $\tilde h$ is a `GILR` of x; $c_t = f_t c_{t-1} + i_t z_t$ and $h_t = o_t c_t$, where $f$, $i$, $o$ are sigmoids and $z$ a
    tanh of affine functions of $\tilde h_{t-1}$ and $x_t$.

    Arguments, shapes and errors as for `GILR`; `memory` is that of both recurrences.

    Martin and Cundy 2018, arXiv 1709.04057, section 3.

    >>> import gritax, jax
    >>> layer = gritax.problems.GILRLSTM(3, 5, jax.random.key(0))
    >>> layer(jax.numpy.ones((1000, 3))).shape
    (1000, 5)
    """

    surrogate: GILR
    state_weights: Array
    weights: Array
    bias: Array

    def __init__(self, size_in: int, size: int, key: Array, *, memory: float = 2.0, dtype=None):
        surrogate_key, state_key, key = jax.random.split(key, 3)
        self.surrogate = GILR(size_in, size, surrogate_key, memory=memory, dtype=dtype)
        self.state_weights = _normal(state_key, (size, 4 * size), dtype)
        self.weights = _normal(key, (size_in, 4 * size), dtype)
        forget = jnp.full(size, np.log(memory - 1), dtype)
        # What it does not forget it takes in as slowly.
        self.bias = jnp.concatenate([forget, -forget, jnp.zeros(2 * size, dtype)])

    def __call__(self, x: Array) -> Array:
        surrogate = self.surrogate(x)
        before = jnp.concatenate([jnp.zeros_like(surrogate[:1]), surrogate[:-1]])
        found = before @ self.state_weights + x @ self.weights + self.bias[None]
        forget, take, out, new = jnp.split(found, 4, axis=1)
        forget, take, out = map(jax.nn.sigmoid, (forget, take, out))
        return out * linear_recurrence(forget, take * jnp.tanh(new))


def _normal(key, shape, dtype):
    return jax.random.normal(key, shape, jnp.zeros(0, dtype).dtype) / jnp.asarray(np.sqrt(shape[0]), dtype)


def _require_memory(memory) -> None:
    if isinstance(memory, bool) or not isinstance(memory, int | float) or not 1 < memory < np.inf:
        raise ValueError(f"memory must be a number of times above 1, not {memory!r}.")


def _require_a_sequence(name: str, x: Array) -> None:
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"{name} must be a sequence of at least one time along the first axis, not {_told(x)}.")


def _require_inputs(x: Array, size: int) -> None:
    if x.ndim != 2 or x.shape[1] != size:
        raise ValueError(f"x must be [times, {size}], not {list(x.shape)}; batches by jax.vmap.")
    _require_a_sequence("x", x)


def _told(x: Array) -> str:
    return f"{x.dtype}{list(x.shape)}"
