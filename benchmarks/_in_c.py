"""The serial loop in C, compiled when it is asked for, where the machine has a C compiler."""

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import numpy as np


COMPILER = shutil.which("cc")
_SOURCE = Path(__file__).with_name("xor.c")
_OPTIONS = ("-O3", "-march=native", "-ffast-math", "-shared", "-fPIC")


def xor_loop(params, rate, steps):
    """A function without arguments that trains `problems.xor` from these float64 parameters, and returns the last ones."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "xor.so"
        subprocess.run([COMPILER, *_OPTIONS, str(_SOURCE), "-lm", "-o", str(library)], check=True)
        train = ctypes.CDLL(str(library)).train
    pointer = np.ctypeslib.ndpointer(np.float64, flags="C_CONTIGUOUS")
    train.argtypes, train.restype = [pointer, pointer, ctypes.c_long, ctypes.c_double], None

    def run():
        found = jax.tree.map(np.array, params)
        train(found["w0"], found["w1"], steps, rate)
        return found

    return run
