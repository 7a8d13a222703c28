"""What of a loss, a batch or a state is no array: told apart where programs differ, and compared by what it holds."""

import functools
import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import sparse

import gritax
from gritax._kernel import recorded
from gritax._relaxation import relax_finest
from gritax._static import Static


pytestmark = pytest.mark.filterwarnings("ignore:A JAX array is being set as static")


class Scaled:
    """A loss that can be compared, and so not hashed."""

    def __init__(self, factor):
        self.factor = factor

    def __eq__(self, other):
        return self.factor == other.factor

    def __call__(self, w, b):
        return self.factor[0] * jnp.sum((w - b) ** 2)


class Module(eqx.Module):
    factor: list = eqx.field(static=True)
    about: dict = eqx.field(static=True)
    table: object = eqx.field(static=True)

    def __call__(self, w, b):
        return self.factor[0] * jnp.sum((w - b) ** 2)


@jax.tree_util.register_pytree_node_class
class Box:
    """A pytree without `==` that takes nothing but arrays."""

    def __init__(self, value):
        self.value = value

    def tree_flatten(self):
        return (self.value,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def _partial(factor):
    return functools.partial(lambda factor, w, b: factor[0] * jnp.sum((w - b) ** 2), factor)


def _trained(loss, batch=lambda step: jnp.ones(2), goal="time", steps=8):
    return gritax.train(loss, optax.sgd(0.1), batch, jnp.zeros(2), steps, goal=goal).params


@pytest.mark.parametrize(
    "make",
    [
        Scaled,
        _partial,
        lambda factor: jax.tree_util.Partial(Scaled(factor)),
        lambda factor: Module(factor, {"names": ["w"]}, {1, 2}),
    ],
)
def test_a_loss_that_cannot_be_hashed_may_change(make):
    factor = [1.0]
    loss = make(factor)
    for factor[0] in (1.0, 0.5):
        np.testing.assert_allclose(_trained(loss), 1 - (1 - 0.2 * factor[0]) ** 8, rtol=1e-12)
    np.testing.assert_allclose(_trained(make([2.0])), 1 - 0.6**8, rtol=1e-12)


def test_such_a_loss_is_solved_in_parallel():
    np.testing.assert_allclose(_trained(Scaled([0.05]), goal="depth", steps=600), 1 - 0.99**600, rtol=1e-6)


def test_the_first_call_with_a_tree_of_bools(monkeypatch):
    monkeypatch.setattr("gritax._program._known", {})
    loss = lambda p, b: jnp.sum((p["a"][0] - b * p["a"][1]) ** 2)
    params = {"a": [jnp.zeros(2), jnp.ones(2)]}
    trainable = {"a": [True, False]}
    trained = gritax.train(loss, optax.sgd(0.1), lambda step: jnp.ones(2), params, 8, trainable=trainable).params
    np.testing.assert_allclose(trained["a"][0], 1 - 0.8**8, rtol=1e-12)
    np.testing.assert_array_equal(trained["a"][1], 1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        (Scaled([1]), Scaled([1])),
        ([1], [1.0]),
        ({"a": np.ones(2)}, {"a": np.zeros(2)}),
        (_partial([1]), functools.partial(_partial([1]).func, [1])),
    ],
)
def test_what_programs_may_tell_apart_is_not_the_same(one, other):
    static = lambda value: Static(Module([value], {}, ()))
    assert static(one) != static(other)
    assert static(one) == static(one) and hash(static(one)) == hash(static(one))


def test_what_is_alike_is_compiled_once(compilations):
    loss = lambda options, w, b: options["factor"] * jnp.sum((w - b) ** 2)
    batch, optimizer, first = lambda step: jnp.ones(2), optax.sgd(0.1), jnp.zeros(2)
    train = lambda: gritax.train(functools.partial(loss, {"factor": 1.0}), optimizer, batch, first, 8)
    train()
    before = len(compilations)
    train()
    assert len(compilations) == before


def test_arrays_that_a_function_closes_over_may_change_in_place():
    factor = np.full(2, 0.5)
    phi = lambda u, start, stride: u * factor
    for factor[:] in (0.5, 0.25):
        np.testing.assert_array_equal(gritax.solve_serial(phi, jnp.ones(2), 3), factor**3)


def test_batch_normalisation_of_equinox():
    norm, first = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, axis_name="batch", mode="batch", dtype=jnp.float64)
    x = jax.random.normal(jax.random.key(1), (8, 3))

    def loss(params, state, batch):
        normed = jax.vmap(params["norm"], axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        z, state = normed(batch, state)
        return jnp.mean((z @ params["w"] - batch.sum(axis=1)) ** 2), state

    params = {"norm": norm, "w": jnp.ones(3)}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        trained = gritax.train(loss, optax.sgd(0.01), lambda step: x, params, 16, has_aux=True, stats=first)
        arrays, functions = eqx.partition((params, first), eqx.is_inexact_array)

        def step(carry, _):
            params, stats = eqx.combine(carry, functions)
            split = eqx.partition(params, eqx.is_inexact_array)
            evaluate = lambda trained: loss(eqx.combine(trained, split[1]), stats, x)
            gradient, stats = jax.grad(evaluate, has_aux=True)(split[0])
            params = eqx.apply_updates(params, jax.tree.map(lambda g: -0.01 * g, gradient))
            return eqx.filter((params, stats), eqx.is_inexact_array), None

        wanted = jax.jit(lambda: jax.lax.scan(step, arrays, length=16)[0])()
    for found, expected in zip(
        jax.tree.leaves(eqx.filter((trained.params, trained.state.stats), eqx.is_inexact_array)),
        jax.tree.leaves(wanted),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.slow(2)
@pytest.mark.parametrize("where", ["params", "batch", "stats", "sparse batch"])
def test_pytrees_without_equality(where):
    x, one, adam = jnp.ones(3), lambda step: jnp.ones(3), optax.adam(1e-3)
    plain = lambda w, b: jnp.sum((w - b) ** 2)
    matrix = sparse.BCOO.fromdense(jnp.eye(3))
    arguments = {
        "params": (lambda p, b: plain(p.value, b), adam, one, Box(jnp.zeros(3))),
        "batch": (lambda p, b: plain(p, b.value), adam, lambda step: Box(x), jnp.zeros(3)),
        "stats": (lambda p, s, b: (plain(p, b), s), adam, one, jnp.zeros(3)),
        "sparse batch": (lambda p, b: plain(b @ p, x), adam, lambda step: matrix, jnp.zeros(3)),
    }[where]
    options = {"has_aux": True, "stats": Box(x)} if where == "stats" else {}
    with jax.numpy_dtype_promotion("standard"):
        found = gritax.train(*arguments, 8, **options).params
        wanted = gritax.train(plain, adam, one, jnp.zeros(3), 8).params
    np.testing.assert_allclose(getattr(found, "value", found), wanted, rtol=1e-12)


def test_the_leaf_that_differs_is_named():
    loss = lambda p, s, b: (jnp.sum((p - b) ** 2), Box({"mean": s.value["mean"].astype("float32"), "n": s.value["n"]}))
    step = gritax.TrainStep(loss, optax.sgd(0.1), lambda step: jnp.ones(2), has_aux=True)
    with pytest.raises(ValueError, match=r"leaf .*\['mean'\] from float64\[2\] to float32\[2\]"):
        step.init(jnp.zeros(2), Box({"mean": jnp.zeros(2), "n": 0}))


@pytest.mark.parametrize("goal", ["time", "depth"])
def test_steps_that_cannot_be_mapped_are_trained_serially(goal):
    def batch(step):
        return jax.pure_callback(lambda step: np.full(2, int(step) % 3, float), jax.ShapeDtypeStruct((2,), float), step)

    loss = lambda w, b: jnp.sum((w - b) ** 2)
    trained = gritax.train(loss, optax.sgd(0.01), batch, jnp.zeros(2), 600, goal=goal)
    assert "vmap_method" in trained.reason and {window.kind for window in trained.windows} == {"serial"}
    mapped = gritax.train(loss, optax.sgd(0.01), lambda step: jnp.full(2, step % 3, float), jnp.zeros(2), 600)
    np.testing.assert_allclose(trained.params, mapped.params, rtol=1e-12)
    with pytest.raises(ValueError, match="There is nothing to plan"):
        gritax.plan(loss, optax.sgd(0.01), batch, jnp.zeros(2), 600)


def test_a_loss_without_a_gradient():
    loss = lambda w, b: jax.lax.while_loop(lambda x: x.sum() < -1, lambda x: x * 0.5, w - b).sum()
    with pytest.raises(ValueError, match="loss has no gradient by the parameters: Reverse-mode"):
        gritax.TrainStep(loss, optax.sgd(0.1), lambda step: jnp.ones(2)).init(jnp.zeros(2))


def test_a_program_is_called_by_what_it_does():
    assert relax_finest._full.__name__ == "relax_finest"


def test_recordings_are_of_one_thread():
    with recorded() as calls:
        other = threading.Thread(target=gritax.solve, args=(lambda u, start, stride: u / (1 + 0.01 * stride), 1.0, 40))
        other.start()
        other.join()
    assert calls == []
