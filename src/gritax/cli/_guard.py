"""What ends the processes of a run where their launcher is killed before it can do so."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator


# Its first half ends at once, so that the second, which waits, is nobody's child.
_GUARD = """
import os, signal, sys
if os.fork():
    os._exit(0)
groups = sys.stdin.read().split()
for group in groups if groups[-1:] != ["done"] else ():
    try:
        os.killpg(int(group), signal.SIGKILL)
    except OSError:
        pass
"""


@contextlib.contextmanager
def guarded() -> Iterator[Callable[[int], None]]:
    """A function that is told of process groups; if this process is killed within, they are killed as well.

    A pipe tells of it, since the system closes that of a process that has ended in whatever way.
    """
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    guard = subprocess.Popen([sys.executable, "-ISc", _GUARD], stdin=subprocess.PIPE, bufsize=0, **options)
    guard.wait()
    assert guard.stdin is not None
    with guard.stdin as pipe:

        def tell(word: object) -> None:
            with contextlib.suppress(BrokenPipeError):  # somebody has ended the guard
                pipe.write(f"{word}\n".encode())

        yield tell
        tell("done")
