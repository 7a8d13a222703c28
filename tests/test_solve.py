"""Against the serial twin and the obvious MGRIT, over drawn methods and problems."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from obvious_mgrit import ObviousMGRIT

import gritax
from gritax._relaxation import relax_finest


def _linear(u, start, stride):
    """Rotation with decay, and a forcing that depends on the step."""
    matrix = jnp.array([[0.0, -0.7], [0.7, 0.0]], u.dtype) - 0.4 * jnp.eye(2, dtype=u.dtype)
    rate = jnp.asarray(0.05 * stride, u.dtype)
    return u + rate * (matrix @ u + jnp.sin(jnp.asarray(start, u.dtype) * 0.3))


def _nonlinear(u, start, stride):
    rate = jnp.asarray(0.04 * stride, u.dtype)
    return u + rate * (jnp.tanh(u[::-1]) - u * u * u + 0.2 * jnp.cos(jnp.asarray(start, u.dtype) * 0.1))


_EVOLUTIONS = {"linear": _linear, "nonlinear": _nonlinear}


@st.composite
def _methods(draw):
    factors = tuple(draw(st.lists(st.integers(2, 5), min_size=1, max_size=3)))
    return gritax.Multigrid(
        coarsening=factors,
        min_coarse=draw(st.integers(1, 4)),
        lanes=draw(st.sampled_from([None, 1, 3])),
        cycle=draw(st.sampled_from("VF")),
        relaxation=tuple(draw(st.integers(0, 2)) for _ in factors),
        c_relaxation_weight=draw(st.sampled_from([1.0, 1.0, 0.8, 1.3])),
        skip_first_down=draw(st.booleans()),
    )


def _state(dtype=jnp.float64):
    return jnp.array([1.0, -0.5], dtype)


@given(method=_methods(), num_steps=st.integers(1, 90), name=st.sampled_from(sorted(_EVOLUTIONS)))
def test_every_iterate_is_that_of_the_obvious_mgrit(method, num_steps, name):
    phi, state, iterations = _EVOLUTIONS[name], _state(), 3
    guess = np.array([0.3, 0.1])
    solution = gritax.solve(
        phi, state, num_steps, method, tolerance=0, max_iterations=iterations, initial_guess=lambda step: jnp.asarray(guess)
    )
    levels = method.hierarchy(num_steps).levels
    if len(levels) == 1:
        np.testing.assert_allclose(solution.state, gritax.solve_serial(phi, state, num_steps), rtol=1e-13)
        return
    obvious = ObviousMGRIT(
        phi=lambda u, start, stride: np.asarray(phi(jnp.asarray(u), start, stride)),
        u0=np.asarray(state),
        guess=lambda step: guess,
        sizes=[level.size for level in levels],
        factors=[level.factor for level in levels[:-1]],
        relaxation=[level.sweeps for level in levels[:-1]],
        weight=method.c_relaxation_weight,
        cycle=method.cycle,
    )
    residuals, relaxed = [obvious.residual()], []
    for k in range(iterations):
        relaxed.append(obvious.iterate(skip_down=method.skip_first_down and k == 0))
        residuals.append(obvious.residual())
    near = {"rtol": 1e-9, "atol": 1e-12 * residuals[0]}
    np.testing.assert_allclose(solution.residuals, residuals, **near)
    np.testing.assert_allclose(solution.relaxed_residuals, relaxed, **near)
    np.testing.assert_allclose(solution.state, obvious.u[0][-1], rtol=1e-9, atol=1e-12)


@pytest.mark.first(1)
@pytest.mark.slow(1)
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32], ids=["float64", "float32"])
@given(method=_methods(), num_steps=st.integers(1, 120), name=st.sampled_from(sorted(_EVOLUTIONS)))
def test_converges_to_the_serial_twin(dtype, method, num_steps, name):
    phi, state = _EVOLUTIONS[name], _state(dtype)
    solution = gritax.solve(phi, state, num_steps, method, max_iterations=2 * num_steps + 2)
    serial = gritax.solve_serial(phi, state, num_steps)
    assert solution.converged
    assert solution.state.dtype == dtype
    distance = np.linalg.norm(serial - state)
    assert np.linalg.norm(solution.state - serial) <= (2e-5 if dtype == jnp.float64 else 1e-4) * distance


@pytest.mark.slow
@given(method=_methods(), num_steps=st.integers(2, 80))
def test_finite_termination(method, num_steps):
    """After k iterations the front of exact steps has moved by (sweeps + 1) k intervals, whatever the coarse steps do."""

    def phi(u, start, stride):
        return _nonlinear(u, start, 1) if stride == 1 else -30.0 * u * stride

    levels = method.hierarchy(num_steps).levels
    intervals = levels[0].num_intervals
    advance = 1 + (levels[0].sweeps if method.c_relaxation_weight == 1 else 0)
    iterations = -(-intervals // advance) + (method.skip_first_down and len(levels) > 1)
    solution = gritax.solve(phi, _state(), num_steps, method, tolerance=0, max_iterations=iterations, initial_guess="constant")
    assert solution.exact_steps == num_steps
    serial = gritax.solve_serial(phi, _state(), num_steps)
    np.testing.assert_allclose(solution.state, serial, rtol=1e-13)
    assert solution.residuals[-1] <= 1e-13


@pytest.mark.slow(1)
@pytest.mark.parametrize("cycle", ["V", "F"])
@pytest.mark.parametrize("sweeps", [0, 1, 2])
def test_the_exact_solution_as_a_guess_has_no_residual(cycle, sweeps):
    states = [_state()]
    for step in range(101):
        states.append(_nonlinear(states[-1], step, 1))
    table = jnp.stack(states)
    method = gritax.Multigrid(coarsening=3, cycle=cycle, relaxation=sweeps)
    solution = gritax.solve(_nonlinear, _state(), 101, method, initial_guess=lambda step: table[step])
    assert solution.iterations == 0
    assert solution.residuals[0] <= 1e-14 * float(jnp.linalg.norm(table))
    unmoved = gritax.solve(
        _nonlinear, _state(), 101, method, tolerance=0, max_iterations=2, initial_guess=lambda step: table[step]
    )
    assert unmoved.residuals.max() <= 1e-14 * float(jnp.linalg.norm(table))


def test_initial_guesses():
    def first(guess, **method):
        return gritax.solve(
            _linear, _state(), 60, gritax.Multigrid(4, **method), tolerance=0, max_iterations=1, initial_guess=guess
        )

    zeros, constant = first("zeros"), first("constant")
    assert zeros.residuals[0] == first(lambda step: jnp.zeros(2)).residuals[0]
    assert constant.residuals[0] == first(lambda step: _state()).residuals[0]
    nested, skipped = first("nested"), first("zeros", skip_first_down=True)
    np.testing.assert_allclose(nested.residuals[0], skipped.residuals[1], rtol=1e-12)
    assert nested.residuals[0] < constant.residuals[0]
    assert np.isnan(skipped.relaxed_residuals[0])


def test_a_phi_proposes_its_guess():
    class Exact:
        def __call__(self, u, start, stride):
            return u * 0.99**stride

        def initial_guess(self):
            return "nested"

    solve = partial(gritax.solve, Exact(), 1.0, 256)
    proposed = solve()
    assert proposed.iterations == 0 and proposed.depth == solve(initial_guess="nested").depth
    assert proposed.depth < solve(initial_guess="graded").depth
    with pytest.raises(ValueError, match=r"phi.initial_guess\(\) must return one of 'graded', .*, not 3"):
        Exact.initial_guess = lambda self: 3
        solve()


def test_nothing_is_spent_on_a_guess_that_is_replaced():
    method = gritax.Multigrid(4, skip_first_down=True)
    solve = partial(gritax.solve, _nonlinear, _state(), 256, method, tolerance=0, max_iterations=2)
    default, graded = solve(), solve(initial_guess="graded")
    np.testing.assert_array_equal(default.residuals[1:], graded.residuals[1:])
    assert default.depth < graded.depth and default.exact_steps == graded.exact_steps


def _graded(phi, state, size, factor, num_levels):
    """The guess at the points `factor, 2 factor, …`, step by step."""
    known, here = {0: state}, 0
    coarsest = num_levels - 1
    for level in range(num_levels):
        stride = factor**level
        next_factor = size // factor**coarsest if level == coarsest - 1 else factor
        alone = max(min(2, next_factor - 1), 1) * stride * factor
        while here + stride <= (size if level == coarsest else alone):
            known[here + stride] = phi(known[here], here, stride)
            here += stride
    for stride in [factor**index for index in reversed(range(1, num_levels - 1))]:
        for step in range(stride, size + 1, stride):
            if step not in known:
                known[step] = phi(known[step - stride], step - stride, stride)
    return jnp.stack([known[step] for step in range(factor, size + 1, factor)])


@pytest.mark.slow(1)
@pytest.mark.parametrize(("size", "factor", "num_levels"), [(83, 3, 4), (70, 4, 2), (20, 4, 1)])
def test_a_graded_guess_begins_in_short_strides(size, factor, num_levels):
    method = gritax.Multigrid(factor, max_levels=num_levels, min_coarse=2)
    solve = partial(gritax.solve, _nonlinear, _state(), size, method, tolerance=0, max_iterations=0)
    if num_levels == 1:
        assert solve(initial_guess="graded").exact_steps == size
        return
    expected = _graded(_nonlinear, _state(), size, factor, num_levels)
    called = solve(initial_guess=lambda step: expected[step // factor - 1])
    graded = solve(initial_guess="graded")
    np.testing.assert_allclose(graded.residuals[0], called.residuals[0], rtol=1e-12)
    np.testing.assert_allclose(graded.state, called.state, rtol=1e-14)
    if num_levels > 2:
        assert graded.residuals[0] < solve(initial_guess="nested").residuals[0]


def test_parareal_is_two_levels_and_f_relaxation():
    fine, state, factor, intervals = _nonlinear, _state(), 5, 8

    def interval(u, k):
        for j in range(factor):
            u = fine(u, k * factor + j, 1)
        return u

    def coarse(u, k):
        return fine(u, k * factor, factor)

    u = [state]
    for k in range(intervals):
        u.append(coarse(u[-1], k))
    for _ in range(3):
        new = [state]
        for k in range(intervals):
            new.append(coarse(new[-1], k) + interval(u[k], k) - coarse(u[k], k))
        u = new
    method = gritax.Multigrid(coarsening=factor, max_levels=2, relaxation=0)
    solution = gritax.solve(fine, state, factor * intervals, method, tolerance=0, max_iterations=3, initial_guess="nested")
    np.testing.assert_allclose(solution.state, u[-1], rtol=1e-13)


def test_any_pytree_and_flags():
    def phi(state, start, stride):
        assert state["name"] == "kept"
        rate = 0.02 * stride
        return {**state, "a": (state["a"][0] * (1 - rate),), "b": state["b"] - rate * jnp.tanh(state["b"])}

    state = {"a": (np.ones((2, 3)),), "b": 2.0, "name": "kept", "flag": True}
    solution = gritax.solve(phi, state, 50)
    serial = gritax.solve_serial(phi, state, 50)
    assert solution.state["name"] == "kept" and solution.state["flag"] is True
    assert jax.tree.structure(solution.state) == jax.tree.structure(serial)
    np.testing.assert_allclose(solution.state["a"][0], serial["a"][0], rtol=1e-5)
    np.testing.assert_allclose(solution.state["b"], serial["b"], rtol=1e-5)


def test_complex_states():
    def phi(u, start, stride):
        return u * jnp.exp(jnp.asarray((-0.01 + 0.1j) * stride, u.dtype) * 0.999**stride)

    solution = gritax.solve(phi, jnp.array([1.0 + 0.5j]), 200)
    np.testing.assert_allclose(solution.state, gritax.solve_serial(phi, jnp.array([1.0 + 0.5j]), 200), rtol=1e-5)


def test_all_is_compiled_before_the_first_iteration_and_once(compilations):
    def phi(params, start, stride):
        return jax.tree.map(lambda w: w - 0.01 * stride * jnp.tanh(w), params)

    class CountAtBegin(gritax.Progress):
        def iteration(self, iteration):
            counts.append(len(compilations))

    counts = []
    gritax.solve(phi, {"w": np.ones(3)}, 61, gritax.Multigrid(2, cycle="F"), tolerance=1e-12, progress=CountAtBegin())
    assert counts[0] > 0
    assert set(counts) == {counts[0]}
    gritax.solve(phi, {"w": np.full(3, 0.5)}, 61, gritax.Multigrid(2, cycle="F"), tolerance=1e-12)
    assert len(compilations) == counts[0]


@pytest.mark.slow
def test_programs_of_earlier_phis_are_forgotten(monkeypatch):
    """A process that solves many problems must not run out of memory maps."""
    monkeypatch.setattr("gritax._kernel._MOST_RUNS", 2)
    sizes = []
    for rate in (0.1, 0.2, 0.3, 0.4, 0.5):
        solution = gritax.solve(lambda u, start, stride, rate=rate: u / (1 + rate * stride), 1.0, 6)
        np.testing.assert_allclose(solution.state, (1 + rate) ** -6.0, rtol=1e-6)
        sizes.append(relax_finest._full._cache_size())
    assert max(sizes) <= 2
