"""What may jump is told from a program alone: never a miss, and seldom a false alarm in losses that people have."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gritax._jumps import may_jump


pytestmark = pytest.mark.usefixtures("mixed_dtypes")


def _x():
    return jnp.arange(12.0).reshape(4, 3) / 10 - 0.5


def _fixed(z):
    return jax.lax.stop_gradient(z)


def _called_back(z):
    shape = jax.ShapeDtypeStruct(z.shape, z.dtype)
    return jax.pure_callback(lambda v: np.round(np.asarray(v)), shape, z, vmap_method="expand_dims")


def _either(z):
    branch = jax.lax.cond(jnp.arange(3)[1] > 5, lambda: jnp.exp(z), lambda: jnp.full_like(z, -1.0))
    return jnp.where(branch + jnp.exp(z) > 0, z, 2 * z)


_LABELS = [0, 1, 2, 0]
_SCANNED = lambda act: lambda z: jnp.sum(jax.lax.scan(lambda c, _: (act(c @ c.T @ c), None), z, None, length=3)[0])
_CONTINUOUS = {
    "gelu": lambda z: jnp.sum(jax.nn.gelu(z)),
    "softplus": lambda z: jnp.sum(jax.nn.softplus(z)),
    "silu": lambda z: jnp.sum(jax.nn.silu(z)),
    "logistic": lambda z: jnp.mean(optax.sigmoid_binary_cross_entropy(z, jnp.ones_like(z))),
    "labels": lambda z: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z, jnp.asarray(_LABELS))),
    "softmax": lambda z: jnp.sum(jax.nn.softmax(z) ** 2),
    "attention": lambda z: jnp.sum(jax.nn.softmax(z @ z.T) @ z),
    "norm": lambda z: jnp.linalg.norm(z),
    "dropout": lambda z: jnp.sum(jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, z.shape), z, 0.0)),
    "scan": _SCANNED(jnp.tanh),
    "checkpoint": jax.checkpoint(lambda z: jnp.sum(jnp.tanh(z))),
}
_JUMPING = {
    "relu": lambda z: jnp.sum(jax.nn.relu(z)),
    "leaky relu": lambda z: jnp.sum(jax.nn.leaky_relu(z)),
    "absolute": lambda z: jnp.sum(jnp.abs(z)),
    "largest": lambda z: jnp.sum(jnp.max(z, axis=1)),
    "pooling": lambda z: jnp.sum(jax.lax.reduce_window(z, -jnp.inf, jax.lax.max, (2, 2), (1, 1), "VALID")),
    "sorted": lambda z: jnp.sum(jnp.sort(z)[:, 0]),
    "clipped": lambda z: jnp.sum(jnp.clip(z, 0, 1)),
    "chosen branch": lambda z: jax.lax.cond(z[0, 0] > 0, jnp.sum, lambda z: jnp.sum(z**2), z),
    "chosen row": lambda z: jnp.sum(_x()[z[0, 0].astype(int)] * z[0]),
    "until": lambda z: jnp.sum(jax.lax.fori_loop(0, 3, lambda _, c: jax.nn.relu(c), z)),
    "scan": _SCANNED(jax.nn.relu),
    "checkpoint": jax.checkpoint(lambda z: jnp.sum(jax.nn.relu(z))),
    "half precision": lambda z: jnp.sum(jnp.tanh(z.astype(jnp.bfloat16))).astype(z.dtype),
    "rounded": lambda z: jnp.sum(jnp.round(z) * z),
    "straight through a sign": lambda z: jnp.sum((z - _fixed(z) + jnp.sign(_fixed(z))) ** 3),
    "hard examples": lambda z: jnp.sum(z**2 * (_fixed(z) ** 2 > 0.1)),
    "nearest code": lambda z: jnp.sum(_x()[jnp.argmin(_fixed(z), axis=0)] * z[:3]),
    "binarised": lambda z: jnp.sum((z + _fixed(jnp.round(jax.nn.sigmoid(z)) - z)) ** 2),
    "angle": lambda z: jnp.sum(jnp.arctan2(z[0], z[1]) ** 2),
    "cut": lambda z: jnp.sum(jnp.log(z[0] + 1j * z[1]).imag ** 2),
    "iterations": lambda z: jnp.sum(jax.scipy.sparse.linalg.cg(lambda v: z.T @ (z @ v) + v, jnp.ones(3))[0] ** 2),
    "product in half precision": lambda z: jnp.sum(jnp.matmul(z, z.T, preferred_element_type=jnp.float32)).astype(z.dtype),
    "least eigenvalue": lambda z: jnp.linalg.eigvalsh(z.T @ z)[0],
}


@pytest.mark.parametrize("name", _CONTINUOUS)
def test_what_is_continuous_is_seen_to_be(name):
    assert not may_jump(jax.grad(_CONTINUOUS[name]), _x())


@pytest.mark.parametrize("name", _JUMPING)
def test_what_jumps_is_seen_to(name):
    assert may_jump(jax.grad(_JUMPING[name]), _x())


@pytest.mark.parametrize(
    ("optimizer", "jumps"),
    [
        (optax.adam(1e-3), False),
        (optax.adamw(optax.cosine_decay_schedule(1e-3, 10), weight_decay=1e-2), False),
        (optax.sgd(0.1, momentum=0.9, nesterov=True), False),
        (optax.sgd(0.1, momentum=0.9, accumulator_dtype=jnp.bfloat16), True),
        (optax.lion(1e-3), True),
    ],
)
def test_optimizers(optimizer, jumps):
    update = lambda now: optimizer.update(now[0], now[1], now[0])
    assert may_jump(update, (_x(), optimizer.init(_x()))) == jumps


@pytest.mark.parametrize("function", [_called_back, _either, lambda z: jnp.matmul(z, z, preferred_element_type=jnp.float32)])
def test_what_is_not_known_may_jump(function):
    assert may_jump(function, _x()[:3])


def test_integers_do_not_move_and_nothing_is_evaluated():
    assert not may_jump(lambda z: jnp.where(z[1] > 0, z[0], 0.0), (_x(), 3))
