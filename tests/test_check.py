import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import gritax


def _decay(u, start, stride):
    return u / (1 + 0.01 * stride)


def test_the_defect_is_that_of_the_formula():
    report = gritax.check(_decay, 1.0, 1000, strides=(4,))
    fine, coarse = 1.01**-4, 1 / 1.04
    np.testing.assert_allclose(report.consistency[0].defect, (coarse - fine) / (1 - fine), rtol=1e-9)
    assert report.ok and "stride" in str(report)


def test_a_coarse_step_that_is_exact_has_no_defect():
    report = gritax.check(lambda u, start, stride: u + stride, 0.0, 100)
    assert [each.defect for each in report.consistency] == [0, 0, 0, 0]


def test_a_coarse_step_that_is_wrong_is_reported():
    report = gritax.check(lambda u, start, stride: u * 0.99 if stride == 1 else u * 1.5, 1.0, 100)
    assert not report.ok and "no coarse step is useful" in str(report)


def test_the_stride_from_which_coarse_steps_are_worse_than_none():
    # Rate times curvature .05: one step of stride M is 1 - .05 M against .95^M, worse than standing still beyond M = 32.
    report = gritax.check(lambda u, start, stride: u - 0.05 * stride * u, 1.0, 1000)
    assert [each.stride for each in report.consistency] == [2, 4, 8, 16, 32, 64]
    assert not report.ok and "useful up to a stride of 32" in str(report)


def test_a_step_that_does_not_move_is_no_error():
    report = gritax.check(lambda u, start, stride: u if stride == 1 else u + 1, 1.0, 100)
    assert not report.ok and report.consistency[0].defect == np.inf


def test_strides_beyond_the_run_are_left_out():
    assert [each.stride for each in gritax.check(_decay, 1.0, 5, strides=(2, 4, 8)).consistency] == [2, 4]


def test_hidden_randomness_is_found():
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="gave two results for the same arguments"):
        gritax.check(lambda u, start, stride: u * generator.random(), jnp.ones(2), 50)


def test_a_counter_of_its_own_is_found():
    counter = itertools.count()
    with pytest.raises(ValueError, match="never from a counter"):
        gritax.check(lambda u, start, stride: u * 0.9 + next(counter), jnp.ones(2), 50)


def test_a_value_that_changed_after_compilation_is_found():
    rate = {"of": 0.01}

    def phi(u, start, stride):
        return u - rate["of"] * stride * u

    assert gritax.check(phi, 1.0, 40).ok
    for rate["of"] in (0.02, 0.04):
        for solve in (gritax.solve_serial, lambda *arguments: gritax.solve(*arguments).state):
            np.testing.assert_allclose(solve(phi, jnp.ones(()), 40), (1 - rate["of"]) ** 40, rtol=1e-6)


def test_a_coarse_step_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match=r"phi\(state, start, 2\) is not finite"):
        gritax.check(lambda u, start, stride: u * 0.9 if stride == 1 else u * jnp.nan, 1.0, 50)
