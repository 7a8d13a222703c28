"""Losses, optimizers, batches and parameters that cannot be trained are refused in a sentence, before anything is solved."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small

import gritax


class _Growing:
    """An optimizer whose state gets longer."""

    def init(self, params):
        return [jnp.zeros(())]

    def update(self, gradient, state, params=None):
        return gradient, [*state, jnp.zeros(())]


def _of(loss=small.loss, optimizer=None, batch=None, params=None, stats=(), **options):
    step = gritax.TrainStep(loss, optimizer or optax.sgd(0.02), batch or small.batches(), **options)
    return step, step.init(small.params() if params is None else params, stats)


def _impure(make):
    counter = iter(range(100))
    return lambda step: make(next(counter))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _of(loss=lambda p, b: jnp.nan * small.loss(p, b)), r"loss at step 0 is nan"),
        (lambda: _of(loss=lambda p, b: small.loss(p, b) / 0.0), r"loss at step 0 is inf"),
        (lambda: _of(loss=lambda p, b: b[0]), r"scalar, not float64\[8,3\]|scalar, not float64\[8, 3\]"),
        (lambda: _of(batch=_impure(lambda n: tuple(x[: 8 + n] for x in small.data()))), "called again, changes leaf"),
        (lambda: _of(batch=_impure(lambda n: tuple(x[n : n + 8] for x in small.data()))), "two results for the same step"),
        (lambda: _of(batch=_impure(lambda n: (np.full((8, 3), float(n)), np.ones((8, 1))))), "two results for the same step"),
        (lambda: _of(params={"w": jnp.ones(3, int)}), r"params has no leaf to train .*leaf \['w'\]: int64"),
        (
            lambda: _of(params={"n": jnp.ones(3, int)}, trainable=lambda leaf: True),
            r"leaf \['n'\] is to be trained, but it is int64",
        ),
        (lambda: _of(params={"w": jnp.ones(3, jnp.bfloat16)}), "Keep parameters in float32"),
        (lambda: _of(optimizer=_Growing()), r"optimizer\.update adds leaf \[1\]"),
        (lambda: _of(stats=jnp.zeros(2)), "stats were given, but the loss takes none"),
        (lambda: _of(has_aux=True), r"loss must be called as loss\(params, stats, batch\)"),
        (
            lambda: _of(loss=lambda p, s, b: (small.loss(p, b), jnp.zeros(8)), has_aux=True, stats=jnp.zeros(8, "float32")),
            "statistics like those",
        ),
        (lambda: _of(has_aux="yes"), "has_aux must be True or False"),
        (lambda: _of(params={"w": jnp.ones(3, complex)}), "is complex"),
        (lambda: _of(loss=lambda p, b: small.loss(p, b) if p["b"][0] > 0 else 0.0), "loss needs the value of something traced"),
        (lambda: _of(batch=lambda i: tuple(x[8 * i : 8 * i + 8] for x in small.data())), "dynamic_slice_in_dim"),
        (lambda: _of(batch=lambda: small.data()), "must take one argument"),
        (lambda: _of(trainable="w"), "trainable must be"),
        (lambda: (_of()[0], small.params()), r"must come from TrainStep\.init"),
        (lambda: (_of()[0], _of(optimizer=optax.adam(0.1))[1]), "an optimizer state of another optimizer"),
        (lambda: _of(key=3), "key must be one JAX random key"),
        (
            lambda: _of(loss=gritax.CompositeLoss(small.network, jnp.mean), has_aux=True, stats=jnp.zeros(2)),
            "CompositeLoss, which has no statistics",
        ),
        (lambda: _of(params={"w": 1.0}), "make them arrays with jnp.asarray"),
    ],
)
def test_refused(make, message):
    with jax.numpy_dtype_promotion("standard"), pytest.raises(ValueError, match=message):
        gritax.solve(*make(), 64)
