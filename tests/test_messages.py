"""What the programs of a solve on several devices send to each other, and the memory that each holds."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problems as small
from jax.sharding import Mesh, PartitionSpec

import gritax
from gritax._compilation import kernels_of
from gritax._cycle import Cycle
from gritax._evolution import Evolution
from gritax._layout import replicated
from gritax._sharing import shared


_V = gritax.Multigrid(4)


def _compiled(mesh, steps=4096, phi=small.decay, state=None, only=None, method=_V):
    u0 = replicated(jnp.ones(3) if state is None else state, mesh)
    cycle = Cycle(replicated(Evolution(phi, u0), mesh), shared(method.hierarchy(steps), mesh, phi), method)
    found = {}
    u0 = cycle.evolution.split(u0)[0]
    for kernel, arguments in kernels_of(cycle, u0):
        if only in (None, kernel.__name__):
            found[kernel.__name__, arguments[0].index] = kernel.lower(*arguments).compile()
    return cycle.hierarchy, found


def _messages(program):
    return dict(Counter(re.findall(r" (all-to-all|all-gather|all-reduce|collective-permute)(?:-start)?\(", program.as_text())))


@pytest.mark.slow(1)
@pytest.mark.parametrize(("count", "steps", "groups"), [(4, 2700, [1, 1, 1, 4, 4, 4]), (8, 150, [1, 1, 2, 8])])
def test_messages_of_an_iteration(count, steps, groups):
    """One state to the neighbour a sweep; gathered are a number for each C-point, and right-hand sides within larger groups."""
    hierarchy, programs = _compiled(small.mesh(count), steps, method=gritax.Multigrid(4, min_coarse=2))
    assert [level.layout.group for level in hierarchy] == groups
    to_all = "all-gather"
    expected = {
        "relax_finest": {"collective-permute": 1, "all-reduce": 1},  # the last is the final state
        "relax_coarse": {"collective-permute": 1},
        "keep_exact": {"collective-permute": 1},
        "residual_norm": {"collective-permute": 1, to_all: 1},
        "measure": {"collective-permute": 1, to_all: 2},  # four, where parameters are not all of the state
        "change_first": {"all-reduce": 1},  # the first and the last state
        "lengths": {to_all: 2, "all-reduce": 1},
    }
    for (name, index), program in programs.items():
        counts = _messages(program)
        level = hierarchy[index]
        if name == "restrict":
            assert counts == ({to_all: 3} if level.points.is_shared and level.layout.group > level.points.group else {})
        elif not level.layout.is_shared:
            assert counts == {}
        elif name in ("arrival", "interval_points"):
            assert counts == {"all-reduce": 1}
        else:
            assert counts == expected.get(name, {}), name


@pytest.mark.long
@pytest.mark.slow
def test_minibatches_on_an_axis_of_their_own():
    """Devices of a row share the examples of a minibatch, those of a column the intervals."""
    mesh, batch = Mesh(np.array(jax.devices()).reshape(4, 2), ("time", "data")), small.batches()

    def halves(step):
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec("data")), batch(step))

    step, spread = (gritax.TrainStep(small.loss, optax.sgd(0.02), batch, gritax.FrozenGradient(8)) for batch in (batch, halves))
    state = step.init(small.params())
    alone = gritax.solve(step, state, 301, gritax.Multigrid(4))
    with jax.set_mesh(mesh):
        together = gritax.solve(spread, state, 301, gritax.Multigrid(4), mesh=mesh)
        messages = _messages(_compiled(mesh, 301, spread, state, "relax_finest")[1]["relax_finest", 0])
    assert small.distance(together.params, alone.params) <= 10 * small.rounding(step, state, 301)
    assert messages["collective-permute"] == 3 and "all-to-all" not in messages  # one for each array of the state
    assert (
        messages["all-reduce"]
        > _messages(_compiled(mesh, 301, step, state, "relax_finest")[1]["relax_finest", 0])["all-reduce"]
    )


@pytest.mark.long
def test_a_share_of_the_memory():
    def held(count):
        memory = _compiled(small.mesh(count), 65_536, only="relax_finest")[1]["relax_finest", 0].memory_analysis()
        return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes

    alone = held(1)
    for count in (2, 4, 8):
        assert held(count) <= 1.05 * alone / count
