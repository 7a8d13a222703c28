"""`gritax doctor`."""

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from .._optional import installing
from .._serial import solve_serial
from .._solve import solve
from ..placement._processes import launched
from ._files import STANDARD, write


WORKS, FAILS = 0, 1

_PACKAGES = ("gritax", "jax", "jaxlib", "optax", "equinox", "numpy")
_OPTIONAL = {
    "orbax-checkpoint": f"for checkpoint=: {installing('orbax-checkpoint')}",
    "scikit-learn": f"for digits and diabetes: {installing('scikit-learn')}",
    "matplotlib": f"for Spectrum.plot: {installing('matplotlib')}",
    "flax": "not needed; its modules can be trained",
    "torch": "not needed",
}


@dataclass
class Doctor:
    """Show what gritax finds on this machine: versions, devices, processes, caches; and try a small solve.

    Add what it prints to a report of a bug.

    Example: gritax doctor --json

    Exit status: 0, or 1 if JAX has no devices or the solve fails.
    """

    json: bool = False
    """Print it as JSON."""

    def run(self, console: Console) -> int:
        found = {
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
            "optional": {name: _version(name) for name in _OPTIONAL},
            "machine": {
                "system": platform.platform(),
                "cores": os.cpu_count(),
                "cores of this process": _usable_cores(),
                **{name: os.environ[name] for name in ("OMP_NUM_THREADS", "XLA_FLAGS", "JAX_PLATFORMS") if name in os.environ},
            },
            "jax": {
                "backend": _tried(jax.default_backend),
                "devices": _tried(_devices),
                "float64": bool(jax.config.values.get("jax_enable_x64")),
                "compilation cache": _cache(jax.config.values.get("jax_compilation_cache_dir")),
            },
            "process": launched(),
            "solve": _tried(_solve),
        }
        if self.json:
            write(STANDARD, json.dumps(found, indent=2) + "\n")
        else:
            _show(console, found)
        failed = any(isinstance(value, dict) and "error" in value for value in (found["solve"], found["jax"]["devices"]))
        return FAILS if failed else WORKS


def _show(console: Console, found: dict[str, Any]) -> None:
    for heading, content in found.items():
        console.print(heading, style="bold")
        rows = content if isinstance(content, dict) else {"": content}
        for name, value in rows.items():
            if value is None:
                value = f"not installed ({_OPTIONAL[name]})" if name in _OPTIONAL else "not known"
            if isinstance(value, dict) and "error" not in value:
                value = ", ".join(f"{each} {name}" for name, each in value.items())
            console.print(f"  {name:<21}  {value['error'] if isinstance(value, dict) else value}" if name else f"  {value}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tried(ask: Callable[[], Any]) -> Any:
    """What it gives, or the error: whatever is broken here, the rest is to be shown."""
    try:
        return ask()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _devices() -> dict[str, int]:
    """How many of each kind."""
    kinds = [device.device_kind for device in jax.devices()]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def _cache(directory: str | None) -> str:
    if not directory:
        return "none: with JAX_COMPILATION_CACHE_DIR set to a folder, a second process need not compile"
    if "://" in directory:
        return directory
    path = Path(directory)
    if not path.exists():
        return f"{path}, which JAX will make"
    if not (path.is_dir() and os.access(path, os.W_OK)):
        return f"{path}, where nothing can be written"
    sizes = _tried(lambda: [entry.stat().st_size for entry in path.iterdir()])
    return f"{path}, {len(sizes)} files, {sum(sizes) / 2**20:.0f} MiB" if isinstance(sizes, list) else str(path)


def _solve() -> str:
    decay = lambda u, start, stride: u / (1 + 0.01 * stride)
    began = time.perf_counter()
    found, serial = solve(decay, jnp.float32(1), 100), solve_serial(decay, jnp.float32(1), 100)
    if not abs(found.state - serial) < 1e-4 * abs(serial):
        raise ArithmeticError(f"a solve gave {found.state}, serial steps {serial}")
    return f"works: {found.iterations} iterations, {time.perf_counter() - began:.1f} s with compilation"
