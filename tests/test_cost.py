"""Depth and work against counts made by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

import gritax
from gritax._continuity import jumps
from gritax._cycle import Cycle
from gritax._evolution import Evolution
from gritax._expected import expected_depth


def _phi(u, start, stride):
    return u / (1 + 0.01 * stride)


def _solve(num_steps, iterations, guess="zeros", phi=_phi, **method):
    options = {"coarsening": 2, "min_coarse": 1} | method
    return gritax.solve(
        phi, 1.0, num_steps, gritax.Multigrid(**options), tolerance=0, max_iterations=iterations, initial_guess=guess
    )


# Sizes 16, 8, 4 with m = 2. On level 0: the sweep that measures the guess, m = 2; then each iteration relaxes (sweeps m), and
# measures its result, m. On level 1: right-hand side 1, relaxation (sweeps + 1) m less the first step, which the right-hand
# side knows, F-points on the way up m - 1 = 1. On level 2, the coarsest: right-hand side 1, those of its 4 steps that are not
# known by relaxation, which makes sweeps + 1 intervals of a level right beyond the last C-point that was: 0 + 1, 0 + 2, 1 + 3.
@pytest.mark.slow(2)
@pytest.mark.parametrize(
    ("sweeps", "depth", "work"),
    [
        (0, 2 + (0 + 2) + (1 + 1 + 1) + (1 + 3), 16 + (0 + 16) + (8 + 4 + 4) + (4 + 3)),
        (1, 2 + (2 + 2) + (1 + 3 + 1) + (1 + 2), 16 + (16 + 16) + (8 + 12 + 4) + (4 + 2)),
        (2, 2 + (4 + 2) + (1 + 5 + 1) + (1 + 0), 16 + (32 + 16) + (8 + 20 + 4) + (4 + 0)),
    ],
)
@pytest.mark.parametrize("cycle", ["V", "F"])
def test_three_levels(cycle, sweeps, depth, work):
    solution = _solve(16, 1, cycle=cycle, relaxation=sweeps, max_levels=3)
    assert solution.level_sizes == (16, 8, 4)
    if cycle == "F":  # a V-cycle from level 1 in place of the F-points on its way up, which it ends with
        marched = (3, 1, 0)[sweeps]  # the second visit knows what the first has solved
        depth += (sweeps + 1) * 2 + (1 + marched)
        work += (sweeps + 1) * 8 + (4 + marched)
    assert (solution.depth, solution.work) == (depth, work)
    assert solution.potential_speedup == 16 / depth


@pytest.mark.parametrize("cycle", ["V", "F"])
def test_four_levels(cycle):
    """Sizes 32, 16, 8, 4. An F-cycle descends once and adds V-cycles from level 2 and from level 1."""
    solution = _solve(32, 1, cycle=cycle, max_levels=4)
    depth, work = 2 + (2 + 2), 32 + (32 + 32)
    # Each visit relaxes with a sweep and an FC sweep; each descent to a level costs one right-hand side; filling F-points
    # ends every V-cycle part on its level: once for a V-cycle, and in an F-cycle once for each V-cycle that passes through.
    # The first step after a descent is known; on the coarsest level the first two are, and three when it is
    # reached again.
    relaxations = {"V": (1, 1), "F": (2, 3)}[cycle]
    descents = {"V": (1, 1, 1), "F": (1, 2, 3)}[cycle]
    fills = {"V": (1, 1), "F": (1, 2)}[cycle]
    sizes = (16, 8, 4)
    for level in (0, 1):
        depth += relaxations[level] * 4 - descents[level] + fills[level] * 1
        work += relaxations[level] * 2 * sizes[level] + (fills[level] - descents[level]) * sizes[level] // 2
    depth += sum(descents) + {"V": 2, "F": 2 + 1 + 1}[cycle]
    work += sum(n * size for n, size in zip(descents, sizes, strict=True)) + {"V": 2, "F": 2 + 1 + 1}[cycle]
    assert (solution.depth, solution.work) == (depth, work)


def test_parareal():
    # m = 4 on 20 steps: a sweep of 4 for the guess; right-hand side 1, coarse solve 5 less the steps that are known, one more
    # every iteration, and a sweep of 4 for the result.
    solution = _solve(20, 3, coarsening=4, relaxation=0, max_levels=2)
    assert (solution.depth, solution.work) == (4 + 3 * (1 + 4) + (4 + 3 + 2), 20 + 3 * (5 + 20) + (4 + 3 + 2))


def test_skipped_first_down_sweep_and_nested_guess():
    # Sizes 16, 8, 4: solve level 2 in 4, fill level 1 in 1 for each of its 4 intervals.
    up = {"depth": 4 + 1, "work": 4 + 4}
    skipped = _solve(16, 1, skip_first_down=True, max_levels=3)
    assert (skipped.depth, skipped.work) == (2 + up["depth"] + 2, 16 + up["work"] + 16)
    nested = _solve(16, 0, guess="nested", max_levels=3)
    assert (nested.depth, nested.work) == (up["depth"] + 2, up["work"] + 16)


def test_a_graded_guess():
    # Sizes 16, 8, 4: an interval of level 0; of level 1 the second step of the first interval and both of the next; 2 steps of
    # level 2 from its point 2; and 1 to fill level 1.
    graded = _solve(16, 0, guess="graded", max_levels=3)
    assert (graded.depth, graded.work, graded.exact_steps) == (2 + 1 + 2 + 2 + 1 + 2, 16 + 4 + 8 + 2 + 4 + 16, 2)
    # Factors of 4: two intervals of each level, as many as FCF-relaxation makes exact.
    graded = _solve(256, 0, guess="graded", max_levels=3, coarsening=4)
    assert (graded.depth, graded.work, graded.exact_steps) == (8 + 2 + 4 + 14 + 3 + 4, 512 + 32 + 64 + 14 + 48 + 256, 8)
    # F-relaxation makes one exact.
    graded = _solve(256, 0, guess="graded", max_levels=3, coarsening=4, relaxation=0)
    assert (graded.depth, graded.work, graded.exact_steps) == (4 + 3 + 15 + 3 + 4, 256 + 48 + 15 + 48 + 256, 4)


def test_trailing_points_are_one_more_lane_of_the_same_depth():
    even, trailing = (_solve(n, 1, coarsening=4, max_levels=2) for n in (20, 23))
    assert trailing.depth == even.depth
    assert trailing.work - even.work == 3 * 4


@pytest.mark.slow
def test_the_depth_of_the_published_method():
    # XOR, m = 4, 7 levels, FCF, V: 2m + 5 (1 + 2m + m - 1) + 1 + 6 = 75 an iteration, but for the first step on each of the 5
    # levels between, and the first two on the coarsest.
    solution = _solve(25_600, 2, coarsening=4, min_coarse=5)
    assert solution.depth == 4 + 2 * (75 - 5 - 2)


def test_the_cost_that_phi_states_is_counted():
    class Stages:
        def __call__(self, u, start, stride):
            return _phi(u, start, stride)

        def depth(self, stride):
            return 1 if stride == 1 else 10 * stride

        def work(self, stride):
            return 3 if stride == 1 else 7

    solution = _solve(20, 1, phi=Stages(), coarsening=4, relaxation=0, max_levels=2)
    assert solution.depth == 4 + 40 * (1 + 4) + 4
    assert solution.work == 3 * 20 + 7 * (5 + 4) + 3 * 20


@pytest.mark.slow(1)
@pytest.mark.parametrize(("early", "more"), [(8, 0), (12, 9 + 9), (16, 9 + 9 + 9)])
def test_coarse_steps_where_the_solution_is_known_are_not_taken(early, more):
    """Sizes 64, 16, 4: relaxation solves two intervals of level 0, so the steps from points 0 and 1 of level 1 are never taken.

    That from point 2, at the start 8, is taken twice: for the right-hand side and in the first sweep; that from point 3 only in
    the sweep, while that from 2 is the dearest of the right-hand sides.
    """

    class Dear:
        def __call__(self, u, start, stride):
            return _phi(u, start, stride)

        def cost(self, stride, starts):
            depth = np.where(starts < early, 10, 1).max(axis=1).sum()
            return int(depth), int(depth) * starts.shape[1]

    plain, dear = (_solve(64, 1, phi=phi, coarsening=4, max_levels=3) for phi in (_phi, Dear()))
    assert dear.level_sizes == (64, 16, 4)
    assert dear.depth - plain.depth == more
    assert dear.state == plain.state


def test_steps_that_are_not_taken_are_not_asked_for():
    """Four intervals of FCF-relaxation: after two iterations nothing is left for the coarsest level."""

    class Costly:
        def __call__(self, u, start, stride):
            return _phi(u, start, stride)

        def cost(self, stride, starts):
            assert starts.min() >= 0 and starts.max() < 20
            return len(starts), starts.size

    solutions = [_solve(20, 4, phi=phi, coarsening=5, max_levels=2) for phi in (Costly(), _phi)]
    assert solutions[0].depth == solutions[1].depth and solutions[0].work == solutions[1].work


def test_one_level_is_the_serial_solve():
    solution = _solve(7, 1, max_levels=1)
    assert (solution.depth, solution.residuals[1]) == (14, 0.0)
    assert jnp.allclose(solution.state, 1.01**-7)


@pytest.mark.parametrize("iterations", [0, 3])
def test_one_level_is_expected_to_be_solved_by_its_guess(iterations):
    hierarchy = gritax.Multigrid(max_levels=1).hierarchy(7)
    assert expected_depth(hierarchy, lambda stride: 1, iterations) == _solve(7, 0, guess="graded", max_levels=1).depth


def test_depth_on_few_devices():
    # As in test_parareal, with 5 intervals on 2 devices: 3 rounds of a sweep of 4, 3 of the right-hand sides.
    solution = _solve(20, 3, coarsening=4, relaxation=0, max_levels=2)
    assert solution.depth_on(2) == 3 * 4 + 3 * (3 * 1 + 3 * 4) + (4 + 3 + 2)
    assert solution.depth_on(1) == solution.work
    assert solution.depth_on(5) == solution.depth_on(10**6) == solution.depth
    with pytest.raises(ValueError, match="devices must be a whole number of at least 1"):
        solution.depth_on(0)


def test_looking_for_a_jump_counts():
    """Two ends and 26 halvings, between eight pairs of neighbours at once."""
    method, c = gritax.Multigrid(8), 0.9 ** jnp.arange(33.0)
    smooth, jumping = (
        Cycle(Evolution(phi, jnp.ones(())), method.hierarchy(256), method)
        for phi in (_phi, lambda u, start, stride: u - 0.01 * jnp.sign(u - 0.95))
    )
    assert not jumps(smooth, c)
    assert (smooth.cost.depth, smooth.cost.work) == (28, 8 * 28)
    assert jumps(jumping, c)


def test_an_update_that_is_the_same_at_both_ends_is_no_jump():
    """Neighbours to the left and the right of the middle of a smooth update, as where training oscillates."""
    c = 0.95 + 1e-9 + 0.05 * jnp.array([1.0, -1.0] * 16 + [1.0])
    method = gritax.Multigrid(8)
    found = {}
    for name, phi in {
        "smooth": lambda u, start, stride: u - 0.1 * jnp.square(u - 0.95),
        "jumping": lambda u, start, stride: u - 0.1 * jnp.square(u - 0.95) - 5e-4 * jnp.sign(u - 0.97),
    }.items():
        found[name] = jumps(Cycle(Evolution(phi, jnp.ones(())), method.hierarchy(256), method), c)
    assert found == {"smooth": False, "jumping": True}
