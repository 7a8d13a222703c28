"""Joules that the first GPU of this machine takes, by the counter of its driver (NVML)."""

import ctypes
from collections.abc import Callable

from _measuring import seconds


LONG_ENOUGH = 1.0  # the counter moves a few times a second


def counter() -> Callable[[], float] | None:
    """A function that says how many joules the GPU has taken so far, or None where nothing counts them."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    device, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()

    failed = lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules))
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) or failed():
        return None

    def read() -> float:
        if failed():
            raise OSError("NVML no longer says what the GPU takes.")
        return millijoules.value / 1e3

    return read


def joules(run: Callable[[], object]) -> float | None:
    """Of one call, the mean over as many as take a second, with what the GPU takes when it waits; None where nothing counts."""
    read = counter()
    if read is None:
        return None
    calls, taken, before = 0, 0.0, read()
    while taken < LONG_ENOUGH:
        taken += seconds(run)
        calls += 1
    return float(f"{(read() - before) / calls:.3g}")
