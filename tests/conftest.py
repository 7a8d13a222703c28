"""JAX as strict as it can be, with eight CPU devices, before anything imports it.

Tests compile far longer than they compute, so LLVM optimises less, programs that are the same are compiled once in all
processes, and the next run has them still.
"""

import atexit
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path


os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 12):  # later ones know no others, and end over an unknown flag
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Of the processes that tests start, whose programs are not kept: some are killed as they write them. Workers inherit it.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="gritax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background, and what tests start would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
import pytest
from hypothesis import HealthCheck, settings
from processes import members


_PROGRAMS = Path(__file__).parents[1] / ".pytest_cache" / "d" / "programs"  # which --cache-clear empties
jax.config.update("jax_compilation_cache_dir", str(_PROGRAMS))
jax.config.update("jax_enable_x64", True)
# Tracing makes millions of objects that live on, and the collector would look through them again and again.
gc.freeze()
gc.set_threshold(200_000, 20, 100)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="every case, and not only some of those that are marked slow")


@pytest.hookimpl(tryfirst=True)  # before the plugin that reads the option
def pytest_configure(config):
    if hasattr(config, "workerinput"):
        config.option.cacheclear = False  # once is enough: a second worker would clear what the first one writes already
    examples = 8 if config.getoption("all") else 5
    settings.register_profile(
        "drawn", max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    settings.load_profile("drawn")
    if not hasattr(config, "workerinput") and sum(program.stat().st_size for program in _PROGRAMS.glob("*")) > 2**29:
        shutil.rmtree(_PROGRAMS)  # those of earlier sources as well


def pytest_report_header(config):
    return None if config.getoption("all") else "some cases of each promise; pytest --all runs every case"


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config, items):
    """Marks what is long before -m is looked at, and counts cases after it and -k, so that they are of those asked for."""
    _mark_what_is_long(items)
    result = yield
    if not config.getoption("all"):
        _leave_some_to_all(config, items)
    return result


def _mark_what_is_long(items):
    """Marks all cases of a test marked `first(n)` but the first `n` that are not long themselves."""
    taken = Counter()
    for item in items:
        if (mark := item.get_closest_marker("first")) and not item.get_closest_marker("long"):
            function = item.nodeid.partition("[")[0]
            taken[function] += 1
            if taken[function] > mark.args[0]:
                item.add_marker(pytest.mark.long)


def _leave_some_to_all(config, items):
    """A test marked `slow(n)` runs its first `n` cases, one marked `slow` none, docstrings eight examples."""
    taken, left = Counter(), {True: [], False: []}
    for item in items:
        function = item.nodeid.partition("[")[0]
        if isinstance(item, pytest.DoctestItem):
            function = "examples of docstrings"
            item.add_marker(pytest.mark.slow(8))
        runs = all(taken[function] < sum(mark.args) for mark in item.iter_markers("slow"))
        taken[function] += runs
        left[runs].append(item)
    items[:] = left[True]
    config.hook.pytest_deselected(items=left[False])


@pytest.fixture
def compilations():
    """The kernels compiled since the fixture was asked for, by counting."""
    counted = []

    def listener(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            counted.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listener)
    yield counted
    jax.monitoring.unregister_event_duration_listener(listener)


@pytest.fixture(autouse=True, scope="module")
def _few_programs():
    """Thousands of compiled programs in one process run out of memory maps (Linux has 65,530), and XLA then crashes."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or len(maps.read_bytes().splitlines()) > 8_000:
        jax.clear_caches()


@pytest.fixture
def mixed_dtypes():
    """Optax mixes the dtypes of rates and counters."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def launch(tmp_path):
    """Starts `gritax launch` with a script, and ends what a failed test leaves."""
    started = []

    def start(script, *options):
        path = tmp_path / "script.py"
        path.write_text(script)
        command = [sys.executable, "-m", "gritax", "launch", *options, "--", sys.executable, str(path)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, **pipes))
        return started[-1]

    yield start
    for launcher in started:
        left = members(launcher)
        launcher.kill()
        with launcher:  # closes its pipes
            launcher.wait()
        for process in left:
            os.kill(process, signal.SIGKILL)
