"""Joules that the first GPU of this machine takes, by the counter of its driver (NVML)."""

import ctypes
from collections.abc import Callable

from _measuring import seconds


LONG_ENOUGH = 1.0  # the counter moves a few times a second


def counter(library: str = "libnvidia-ml.so.1") -> Callable[[], float] | None:
    """A function that says how many joules the GPU has taken so far, or None where nothing counts them."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return None
    device, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()

    def read() -> float:
        if nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)):
            raise OSError("NVML does not say what this GPU takes.")
        return millijoules.value / 1e3

    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)):
        return None
    try:
        read()
    except OSError:
        return None
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
