"""Minibatches by step: every epoch a permutation, the same at random access, on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import gritax


_KEY = jax.random.key(3)


@pytest.mark.slow(2)
@pytest.mark.parametrize("tabulated", [False, True])
@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 4), (12, 4), (7, 7), (5, 3)])
def test_dropping_visits_no_example_twice_in_an_epoch(num_examples, batch_size, tabulated):
    batch = gritax.data.Epochs(jnp.arange(num_examples), batch_size, _KEY)
    batch = batch.tabulated(40) if tabulated else batch
    seen = []
    for epoch in range(3):
        steps = [batch(epoch * batch.steps_per_epoch + i) for i in range(batch.steps_per_epoch)]
        used = np.concatenate(steps)
        assert len(set(used.tolist())) == batch.steps_per_epoch * batch_size
        seen.append(tuple(used.tolist()))
    assert num_examples < 6 or len(set(seen)) == 3


@pytest.mark.parametrize("tabulated", [False, True])
@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 4), (7, 7), (5, 3)])
def test_filling_visits_every_example_in_every_epoch(num_examples, batch_size, tabulated):
    batch = gritax.data.Epochs(jnp.arange(num_examples), batch_size, _KEY, remainder="fill")
    batch = batch.tabulated(3 * num_examples) if tabulated else batch
    stream = np.concatenate([batch(step) for step in range(3 * num_examples)])
    for epoch in stream.reshape(-1, num_examples):
        assert sorted(epoch.tolist()) == list(range(num_examples))


@pytest.mark.slow(2)
@pytest.mark.parametrize("remainder", ["drop", "fill"])
@pytest.mark.parametrize("key", [_KEY, jax.random.PRNGKey(3), None])
def test_the_table_gives_the_same_batches(remainder, key):
    batch = gritax.data.Epochs({"x": jnp.arange(22.0).reshape(11, 2), "y": jnp.arange(11)}, 4, key, remainder=remainder)
    table = batch.tabulated(50)
    for step in (0, 1, 7, 49):
        jax.tree.map(np.testing.assert_array_equal, batch(step), table(step))
    many = jax.jit(jax.vmap(batch))(jnp.arange(50))
    one = jax.vmap(table)(jnp.arange(50))
    jax.tree.map(np.testing.assert_array_equal, many, one)


def test_tabulating_again_compiles_nothing(compilations):
    batch = gritax.data.Epochs(jnp.arange(22), 4, _KEY)
    batch.tabulated(50)
    before = len(compilations)
    assert batch.tabulated(50).tabulated(50).tabulated(40)._order.shape == batch.tabulated(50)._order.shape
    assert len(compilations) == before


def test_without_a_key_the_order_stays():
    batch = gritax.data.Epochs(jnp.arange(6), 4, None, remainder="fill")
    assert [batch(step).tolist() for step in range(3)] == [[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5]]


def test_the_same_on_every_number_of_devices():
    batch = gritax.data.Epochs(jnp.arange(100), 8, _KEY)
    steps = jnp.arange(16)
    wanted = jax.jit(jax.vmap(batch))(steps)
    for count in (2, 4):
        mesh = Mesh(np.array(jax.devices()[:count]), ("time",))
        sharded = jax.device_put(steps, NamedSharding(mesh, PartitionSpec("time")))
        np.testing.assert_array_equal(jax.jit(jax.vmap(batch))(sharded), wanted)


def test_far_steps_do_not_overflow():
    batch = gritax.data.Epochs(jnp.arange(1000), 999, _KEY, remainder="fill")
    assert np.all((batch.indices(2**31 - 1) >= 0) & (batch.indices(2**31 - 1) < 1000))


def test_steps():
    assert gritax.data.Epochs(jnp.arange(10), 4, _KEY).steps(epochs=3) == 6
    assert gritax.data.Epochs(jnp.arange(10), 4, _KEY, remainder="fill").steps(epochs=3) == 7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gritax.data.Epochs(jnp.arange(3), 4, _KEY), "batch_size is 4, but there are only 3 examples"),
        (lambda: gritax.data.Epochs(jnp.arange(3), 0, _KEY), "batch_size must be"),
        (lambda: gritax.data.Epochs((jnp.ones(3), jnp.ones(4)), 2, _KEY), "arrays must have as many examples each"),
        (lambda: gritax.data.Epochs((jnp.ones(3), 1.0), 2, _KEY), "is a scalar"),
        (lambda: gritax.data.Epochs((), 2, _KEY), "arrays holds no array"),
        (lambda: gritax.data.Epochs(jnp.arange(3), 2, 0), "key must be one JAX random key"),
        (lambda: gritax.data.Epochs(jnp.arange(3), 2, _KEY, remainder="pad"), 'remainder must be "drop" or "fill"'),
        (lambda: gritax.data.Epochs(jnp.zeros(2**21, bool), 2**10, None, remainder="fill"), "counts in int32"),
        (lambda: gritax.data.Epochs(jnp.arange(3), 2, _KEY).steps(0), "epochs must be"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
