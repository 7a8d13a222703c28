"""One writer to a directory."""

import logging
import os
import socket
import time
from pathlib import Path


logger = logging.getLogger("gritax")


class Lock:
    """The right to write into a directory, taken with `with`, and again within it.

    It is the kernel's lock on a file there, which ends with its process, however that ends: so none is left over, of a machine
    that has crashed neither. What the file says is for the message only. It is taken away with the lock.
    """

    def __init__(self, directory: Path):
        self._directory, self._path, self._descriptor, self._depth = directory, directory / ".lock", -1, 0

    def __enter__(self) -> "Lock":
        """Raises `ValueError` if somebody else has it."""
        if self._depth == 0:
            try:
                self._descriptor = self._taken()
            except OSError as error:
                raise ValueError(f"checkpoint: nothing can be written to {self._directory}: {error.strerror}.") from error
        self._depth += 1
        return self

    def __exit__(self, *_) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._path.unlink(missing_ok=True)  # before another can have it
            os.close(self._descriptor)

    def _taken(self) -> int:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._lock(descriptor)
                if self._is_there(descriptor):  # it may have been taken away between the two
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        import fcntl  # Windows has none, and is to import gritax all the same

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(descriptor)
            raise ValueError(
                f"checkpoint: {holder} is writing into {self._directory}, which is for one run at a time. Wait until that one "
                "has ended, end it, or name another directory."
            ) from error
        except OSError as error:
            logger.warning("%s: another process that writes there would not be noticed (%s)", self._directory, error.strerror)

    def _is_there(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except FileNotFoundError:
            return False


def _holder(descriptor: int) -> str:
    for _ in range(100):  # who has just taken it may not have said so yet
        if said := os.pread(descriptor, 300, 0):
            return said.decode(errors="replace")
        time.sleep(0.01)
    return "another process"
