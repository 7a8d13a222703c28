"""What all measurements share: processes of their own, paired timing, summaries, the machine."""

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


HERE = Path(__file__).parent


def child(
    script: str,
    *arguments,
    python: str = sys.executable,
    x64: bool = True,
    launcher: tuple[str, ...] = (),
    limit: float | None = None,
    also: dict[str, str] | None = None,
) -> dict:
    """What `script` prints last, a JSON object, run in a fresh process on the CPU and without a compilation cache.

    `also` is added to its environment, and may name other platforms. Raises `subprocess.TimeoutExpired` after `limit` seconds.
    A parent that measures memory never imports JAX: on Linux a child's peak starts from that of the process that started it.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": str(int(x64))} | (also or {})
    command = [*launcher, python, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    if done.returncode:
        raise RuntimeError(f"{script} {' '.join(map(str, arguments))} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def paired(first: Callable[[], object], second: Callable[[], object], pairs: int) -> tuple[list[float], list[float]]:
    """Seconds of both, one right after the other, the order turned round in every second pair; both are warm already."""
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            times[which].append(seconds((first, second)[which]))
    return times


def ratios(times: tuple[list[float], list[float]]) -> list[float]:
    return [first / second for first, second in zip(*times, strict=True)]


def summary(values: list[float]) -> dict:
    """Median, extremes and the values themselves, to four digits."""

    def short(x):
        return float(f"{x:.4g}")

    return {
        "median": short(statistics.median(values)),
        "min": short(min(values)),
        "max": short(max(values)),
        "values": [short(value) for value in values],
    }


def spread(figures: dict, unit: float = 1.0, digits: int = 2) -> str:
    """`median (min … max)` in units of `unit`."""
    median, least, most = (f"{figures[name] / unit:,.{digits}f}" for name in ("median", "min", "max"))
    return f"{median} ({least} … {most})"


def verdict(kept: bool) -> str:
    return "kept" if kept else "MISSED"


def machine() -> dict:
    return {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
    }


def load() -> float:
    """Processes that ran or waited for a core, on average over the last minute."""
    return round(os.getloadavg()[0], 2)


def versions() -> dict:
    packages = ("jax", "jaxlib", "numpy", "optax", "gritax")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def today() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
