"""Errors for what a user may get wrong: before any long work, naming the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gritax


def _ok(u, start, stride):
    return u / (1 + 0.01 * stride)


def _pair(a=None, b=None):
    return {"a": jnp.ones(2) if a is None else a, "b": jnp.ones(1) if b is None else b}


@pytest.mark.parametrize("solve", [gritax.solve, gritax.solve_serial, gritax.check])
@pytest.mark.parametrize(
    ("phi", "state", "message"),
    [
        (lambda s, i, m: {"a": s["a"]}, _pair(), r"phi\(state, start, 1\) lacks leaf \['b'\]"),
        (lambda s, i, m: {**s, "c": s["a"]}, _pair(), r"adds leaf \['c'\]"),
        (lambda s, i, m: _pair(jnp.ones(3)), _pair(), r"changes leaf \['a'\] from float64\[2\] to float64\[3\]"),
        (lambda s, i, m: _pair(s["a"].astype(jnp.float32)), _pair(), r"leaf \['a'\] from float64\[2\] to float32\[2\]"),
        (lambda s, i, m: list(s), (jnp.ones(2),), "changes the structure of the state"),
        (lambda s, i, m: None, jnp.ones(2), "lacks the state"),
        (lambda s, i, m: _pair(jnp.log(-s["a"])), _pair(), r"phi\(state, 0, 1\) is not finite at leaf \['a'\]"),
        (_ok, jnp.array([1.0, jnp.inf]), "state is not finite"),
        (lambda s, i, m: s + 1, jnp.asarray(1), "no floating-point array"),
        (_ok, None, "no floating-point array"),
        (3, 1.0, "phi must be callable"),
        (lambda s, i: s, 1.0, r"phi must take three arguments, phi\(state, start, stride\); it is phi\(s, i\)"),
        (lambda s, i, m: s if i > 3 else s * 0.9, 1.0, "needs the value of `start`"),
        (lambda s, i, m: s * np.sin(i), 1.0, "needs the value of `start`"),
        (lambda s, i, m: s * [0.9, 0.8][i], 1.0, "needs the value of `start`"),
        (lambda s, i, m: s if s > 3 else s * 0.9, 1.0, "needs the value of the state"),
    ],
)
def test_phi_and_state(solve, phi, state, message):
    with pytest.raises(ValueError, match=message):
        solve(phi, state, 40)


def test_a_coarse_step_that_changes_the_state_is_named_by_its_stride():
    with pytest.raises(ValueError, match=r"phi\(state, start, 4\) changes the state from float64\[2\] to float64\[3\]"):
        gritax.solve(lambda u, start, stride: u if stride == 1 else jnp.ones(3), jnp.ones(2), 100)


@pytest.mark.parametrize("solve", [gritax.solve, gritax.solve_serial, gritax.check])
@pytest.mark.parametrize("num_steps", [100.5, "100", True, None, float("nan"), float("inf"), 0, 2**31])
def test_num_steps(solve, num_steps):
    with pytest.raises(ValueError, match="num_steps must be "):
        solve(_ok, 1.0, num_steps)


def test_an_optimizer_that_begins_with_infinity():
    best = optax.GradientTransformation(
        lambda params: {"best": jnp.full((), jnp.inf)}, lambda g, state, params=None: (g, state)
    )
    step = gritax.TrainStep(lambda w, x: jnp.sum((w - x) ** 2), optax.chain(optax.sgd(0.1), best), lambda step: jnp.ones(2))
    trained = gritax.train(step.loss, step.optimizer, step.batch, jnp.zeros(2), 40)
    np.testing.assert_allclose(trained.params, 1 - 0.8**40, rtol=1e-12)
    assert "['best']" in trained.reason
    with pytest.raises(ValueError, match=r"\['best'\].*reduce_on_plateau.* a schedule of the step"):
        gritax.solve(step, step.init(jnp.zeros(2)), 40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": -1e-9}, "tolerance must be a number of at least 0"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"tolerance": 10**400}, "tolerance must be a number"),
        ({"tolerance": "tight"}, "tolerance"),
        ({"throw": "x"}, "throw must be True or False"),
        ({"max_iterations": -1}, "max_iterations must be a whole number of at least 0"),
        ({"initial_guess": "random"}, "initial_guess must be"),
        (
            {"initial_guess": lambda step: jnp.zeros(3)},
            r"initial_guess\(step\) changes the state from float64\[\] to float64\[3\]",
        ),
        ({"initial_guess": lambda step: 1.0 if step > 2 else 0.0}, r"initial_guess\(step\) needs the value of `step`"),
    ],
)
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        gritax.solve(_ok, 1.0, 40, **options)


@pytest.mark.parametrize("method", [4, "V", 1e-6, gritax.Multigrid])
def test_a_method_of_another_kind(method):
    with pytest.raises(ValueError, match=r"method must be a gritax\.Multigrid"):
        gritax.solve(_ok, 1.0, 100, method)


def test_progress_of_another_kind():
    with pytest.raises(ValueError, match=r"progress must be a gritax\.Progress"):
        gritax.solve(_ok, 1.0, 100, progress=True)


def test_a_phi_that_closes_over_a_traced_value():
    with pytest.raises(ValueError, match="being traced"):
        jax.jit(lambda a: gritax.solve(lambda u, start, stride: u / (1 + a * stride), 1.0, 40).state)(0.01)


def test_a_constant_that_changes():
    with pytest.raises(ValueError, match=r"changes leaf \['phase'\], the Python constant 'warm'"):
        gritax.solve(lambda s, i, m: {"w": s["w"] * 0.9, "phase": "main"}, {"w": 1.0, "phase": "warm"}, 40)


def test_a_guess_of_python_numbers_takes_the_dtypes_of_the_state():
    def phi(s, i, m):
        return {"w": s["w"] * 0.99, "n": s["n"] + 1}

    state = {"w": jnp.ones(2, jnp.float32)[0], "n": jnp.int32(0)}
    assert gritax.solve(phi, state, 40, initial_guess=lambda step: {"w": 0.5, "n": 0}).converged


def test_a_cost_that_is_no_whole_number():
    class Half:
        def __call__(self, u, start, stride):
            return _ok(u, start, stride)

        def depth(self, stride):
            return stride / 2

    with pytest.raises(ValueError, match=r"phi\.depth\(.*\) must be a whole number"):
        gritax.solve(Half(), 1.0, 40)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (7, r"phi\.cost\(stride, starts\) must return \(depth, work\), two integers, not 7"),
        ((7.5, 8), r"the depth that phi\.cost\(\d+, starts\) returns must be a whole number of at least 1, not 7.5"),
        ((7, 0), r"the work that phi\.cost\(\d+, starts\) returns must be a whole number of at least 1, not 0"),
    ],
)
def test_a_cost_of_steps_that_is_no_pair_of_whole_numbers(returned, message):
    class Odd:
        def __call__(self, u, start, stride):
            return _ok(u, start, stride)

        def cost(self, stride, starts):
            return returned

    with pytest.raises(ValueError, match=message):
        gritax.solve(Odd(), 1.0, 40)


def test_nothing_runs_before_the_arguments_are_known_to_fit():
    def phi(u, start, stride):
        raise AssertionError("phi was called")

    for options in ({"tolerance": -1}, {"max_iterations": 1.5}, {"method": gritax.Multigrid(2, relaxation=(1, 1))}):
        with pytest.raises(ValueError):
            gritax.solve(phi, 1.0, 100, **options)


@pytest.mark.parametrize("leaf", [np.array("x"), np.ones(2, np.longdouble), np.array([None])])
@pytest.mark.parametrize("solve", [gritax.solve, gritax.solve_serial])
def test_what_jax_has_no_arrays_of(solve, leaf):
    with pytest.raises(ValueError, match=r"leaf \['odd'\] is .*, of which JAX has no arrays"):
        solve(lambda s, i, m: {**s, "w": _ok(s["w"], i, m)}, {"w": jnp.ones(2), "odd": leaf}, 40)


def test_what_cannot_be_mapped_is_solved_serially():
    def phi(u, start, stride):
        return jax.pure_callback(lambda x: np.asarray(x) * 0.5, jax.ShapeDtypeStruct((2,), float), u)

    np.testing.assert_array_equal(gritax.solve_serial(phi, jnp.ones(2), 3), np.full(2, 0.125))
    for solve in (gritax.solve, gritax.check):
        with pytest.raises(ValueError, match=r"vmap of phi fails: .*vmap_method.*gritax\.solve_serial"):
            solve(phi, jnp.ones(2), 40)


@pytest.mark.parametrize("save_every", [7, 40, 41, 10**30])
def test_states_are_saved_as_often_as_there_are_steps(save_every):
    states = gritax.solve(_ok, jnp.ones(2), 40, save_every=save_every).states
    assert states.shape == (40 // save_every, 2)


def test_no_transfer_is_the_users():
    step = gritax.TrainStep(lambda w, x: jnp.sum((w - x) ** 2), optax.sgd(0.1), lambda step: jnp.ones(2))
    first = jnp.zeros(2)
    with jax.transfer_guard("disallow"):
        solution = gritax.solve(step, step.init(first), 40)
        trained = gritax.train(step.loss, step.optimizer, step.batch, first, 40)
        assert solution.losses.shape == (40,)
        serial = gritax.solve_serial(step, step.init(first), 40)
    np.testing.assert_array_equal(trained.params, serial.params)


def test_a_process_forked_after_the_first_call(monkeypatch):
    gritax.solve_serial(_ok, 1.0, 1)
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(RuntimeError, match="forked from one that had used gritax"):
        gritax.solve(_ok, 1.0, 40)
