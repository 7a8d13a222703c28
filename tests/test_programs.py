"""Compiled programs are kept for as long as they fit and hold."""

import jax
import jax.numpy as jnp
import optax
import pytest
import small_problems as small

import gritax
from gritax._kernel import make_room
from gritax._relaxation import relax_finest


pytestmark = pytest.mark.usefixtures("mixed_dtypes")


@pytest.mark.long
def test_windows_of_another_length_make_room_for_their_programs(monkeypatch):
    class CountPrograms(gritax.Progress):
        def iteration(self, iteration):
            counts.append(relax_finest._full._cache_size())

    found = {}
    for most in (16, 1):
        monkeypatch.setattr("gritax._kernel._MOST_RUNS", most)
        make_room(("nothing of this test", most))
        jax.clear_caches()
        counts = []
        trained = gritax.train(
            small.loss,
            optax.sgd(0.05),
            small.batches(),
            small.params(),
            1300,
            goal="depth",
            window=700,
            progress=CountPrograms(),
        )
        lengths = {window.num_steps for window in trained.windows if window.kind == "parallel"}
        assert len(lengths) > 1
        found[most] = max(counts), trained.params
    assert found[1][0] < found[16][0]
    assert jax.tree.all(jax.tree.map(jnp.array_equal, found[1][1], found[16][1]))


@pytest.mark.first(1)
@pytest.mark.slow(1)
@pytest.mark.parametrize("goal", ["time", "depth"])
def test_what_loss_and_batch_read_from_outside_may_change(goal):
    target, decay, optimizer = jnp.ones(2), 0.0, optax.sgd(0.01)

    def batch(step):
        return target

    def loss(params, batch):
        return 0.5 * jnp.sum((params - batch) ** 2) + 0.5 * decay * jnp.sum(params**2)

    for target, decay in ((jnp.ones(2), 0.0), (jnp.full(2, -5.0), 0.0), (jnp.full(2, -5.0), 1.0)):
        trained = gritax.train(loss, optimizer, batch, jnp.zeros(2), 2000, goal=goal)
        assert jnp.allclose(trained.params, target / (1 + decay), rtol=1e-4)
