import pytest

import gritax


def test_sizes_strides_and_trailing_points():
    levels = gritax.Multigrid(coarsening=(4, 3), min_coarse=1).hierarchy(103).levels
    assert [(level.size, level.stride, level.factor) for level in levels] == [(103, 1, 4), (25, 4, 3), (8, 12, 8)]
    assert [(level.num_intervals, level.tail) for level in levels] == [(25, 3), (8, 1), (1, 0)]


@pytest.mark.parametrize(
    ("options", "num_steps", "sizes"),
    [
        ({"coarsening": 2}, 100, (100, 50, 25, 12, 6)),
        ({"coarsening": 2, "min_coarse": 10}, 100, (100, 50, 25, 12)),
        ({"coarsening": 2, "max_levels": 2}, 100, (100, 50)),
        ({"coarsening": 2, "max_levels": 1}, 100, (100,)),
        ({"coarsening": (16, 2, 2, 2), "min_coarse": 1}, 128, (128, 8, 4, 2, 1)),
        ({"coarsening": (4, 4, 4), "max_levels": 2}, 1000, (1000, 250)),
        ({"coarsening": (4, 4, 4)}, 30, (30, 7)),
        ({"coarsening": 4}, 3, (3,)),
        ({"coarsening": 4}, 1, (1,)),
        ({"coarsening": 4}, 25_600, (25_600, 6_400, 1_600, 400, 100, 25, 6)),
    ],
)
def test_level_sizes(options, num_steps, sizes):
    assert gritax.Multigrid(**options).hierarchy(num_steps).sizes == sizes


def test_relaxation_and_weight_reach_the_levels():
    hierarchy = gritax.Multigrid(2, relaxation=(0, 2, 1), max_levels=4, c_relaxation_weight=1.3).hierarchy(80)
    assert [level.sweeps for level in hierarchy.levels[:-1]] == [0, 2, 1]
    assert {level.weight for level in hierarchy.levels[:-1]} == {1.3}
    assert [row[-1] for row in hierarchy.rows()] == ["relaxation", "F", "FCFCF", "FCF", "serial"]


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"coarsening": 1}, "coarsening"),
        ({"coarsening": 2.5}, "coarsening"),
        ({"coarsening": (4, 0)}, "coarsening"),
        ({"coarsening": ()}, "coarsening"),
        ({"coarsening": True}, "coarsening"),
        ({"max_levels": 0}, "max_levels"),
        ({"coarsening": (4, 4), "max_levels": 4}, "coarsening gives 2 factors, enough for 3 levels, but max_levels is 4"),
        ({"min_coarse": 0}, "min_coarse"),
        ({"relaxation": -1}, "relaxation"),
        ({"cycle": "W"}, "cycle"),
        ({"c_relaxation_weight": 0}, "c_relaxation_weight"),
        ({"c_relaxation_weight": 2.0}, "c_relaxation_weight"),
        ({"skip_first_down": "yes"}, "skip_first_down"),
    ],
)
def test_refused_options(options, argument):
    with pytest.raises(ValueError, match=argument):
        gritax.Multigrid(**options)


@pytest.mark.parametrize("num_steps", [0, -3, 2.5, "10", True])
def test_refused_step_counts(num_steps):
    with pytest.raises(ValueError, match="num_steps must be a whole number of at least 1"):
        gritax.Multigrid().hierarchy(num_steps)


def test_more_steps_than_int32_can_count():
    with pytest.raises(ValueError, match="num_steps must be below 2\\^31"):
        gritax.Multigrid(2**16).hierarchy(2**33)


def test_too_few_relaxation_numbers():
    with pytest.raises(ValueError, match="relaxation gives 2 numbers, but the hierarchy relaxes on 4 levels"):
        gritax.Multigrid(2, relaxation=(1, 1)).hierarchy(100)
