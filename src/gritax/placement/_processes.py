"""The processes of a run: which of them this one is, and how they find each other."""

import atexit
import os
import socket
import sys
import threading
import time
import warnings
import zlib
from typing import NamedTuple

import jax

from .._arguments import require_whole


LOOPBACK = "127.0.0.1"
TIMEOUT = 30

_ALONE = (  # for JAX does not say it when it aborts the process
    "process {place.process} has waited {seconds:g} s at {place.coordinator} for all {place.processes} processes of the run, "
    "and JAX is about to end it. Are the others started, and do they have the same coordinator?"
)
_joined_as: int | None = None


class _Place(NamedTuple):
    coordinator: str
    processes: int
    process: int
    local: int | None = None  # which process of its machine, where a job manager says so


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    bind: str | None = None,
    timeout: int | None = None,
) -> None:
    """Makes this process one of a run's; call it before anything asks JAX for its devices.

    Without arguments it takes what `gritax launch` has put into the environment (GRITAX_COORDINATOR, GRITAX_PROCESSES,
    GRITAX_PROCESS, GRITAX_BIND, GRITAX_TIMEOUT), else what mpirun of Open MPI or srun of Slurm have; where there is none of
    these, or one process only, it does nothing. Nor does it where JAX has been told already.

    - `coordinator`: "host:port" of process 0, where the others find it. If all are started by mpirun or srun on one machine, it
      need not be given, and `processes` and `process` are theirs.
    - `processes`, `process`: how many there are, and which of them this one is, from 0.
    - `bind`: the address on which process 0 listens; that of `coordinator` if not given, hence loopback only, 127.0.0.1, on
      one machine. Who can reach it can disturb the run: nothing is encrypted, and nobody is asked who they are.
    - `timeout`: seconds, 30 if not given, after which a process that is not heard from ends the others, and which the others
      are waited for at the beginning.

    SIGTERM ends a process as before (JAX alone would catch it), and one that ends with an uncaught error does not wait for
    the others, who may be waiting for it.
    """
    place = _place(coordinator, processes, process)
    if place is None or place.processes == 1 or jax.distributed.is_initialized():
        return
    timeout = _number("GRITAX_TIMEOUT") if timeout is None else timeout
    timeout = TIMEOUT if timeout is None else timeout
    require_count("timeout", timeout, 1)
    if bind is not None and not isinstance(bind, str):
        raise ValueError(f"bind must be an address of this machine, such as {LOOPBACK!r}, not {bind!r}.")
    host, port = _host_and_port(place.coordinator)
    bind = _without_brackets(bind or os.environ.get("GRITAX_BIND") or host)
    if place.process == 0:
        _require_free(bind, port)
    else:
        _wait_for(host, port, timeout)
    _initialize(place, f"[{bind}]:{port}" if ":" in bind else f"{bind}:{port}", timeout)


def is_first() -> bool:
    """Whether this is process 0, the one that prints and writes; True where there is only one."""
    if _joined_as is not None:
        return _joined_as == 0
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def launched() -> str:
    """As which process of a run `join` would take this one, and who says so, in words; its error where it would raise one."""
    try:
        place = _place(None, None, None)
    except ValueError as error:
        return f"not to be told: {error}"
    if place is None or place.processes == 1:
        return "one alone"
    by = "gritax launch or GRITAX_*" if place.local is None else "mpirun" if "OMPI_COMM_WORLD_SIZE" in os.environ else "srun"
    return f"{place.process} of {place.processes}, by {by}, with the coordinator {place.coordinator}"


def abandon(status: int) -> None:
    """Ends this process at once with `status` if it is one of several; in a single one it does nothing.

    At an ordinary exit JAX waits for the others, for up to five minutes, and they may be waiting for this one.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def environment(coordinator: str, processes: int, process: int, bind: str, timeout: int) -> dict[str, str]:
    """What tells all of this to `join` in another process."""
    values = {"COORDINATOR": coordinator, "PROCESSES": processes, "PROCESS": process, "BIND": bind, "TIMEOUT": timeout}
    return {f"GRITAX_{name}": str(value) for name, value in values.items()}


def require_count(name: str, value: object, least: int) -> None:
    """Raises `ValueError` unless it is a whole number of at least `least` that JAX can hold."""
    require_whole(name, value, least)
    if isinstance(value, int) and value >= 2**31:
        raise ValueError(f"{name} must be below 2^31, and {value} is not.")


def _place(coordinator: str | None, processes: int | None, process: int | None) -> _Place | None:
    given: dict[str, str | int | None] = {"coordinator": coordinator, "processes": processes, "process": process}
    if all(value is None for value in given.values()):
        coordinator, processes, process = (
            os.environ.get("GRITAX_COORDINATOR"),
            _number("GRITAX_PROCESSES"),
            _number("GRITAX_PROCESS"),
        )
        given = {"GRITAX_COORDINATOR": coordinator, "GRITAX_PROCESSES": processes, "GRITAX_PROCESS": process}
    if processes is None and process is None and (managed := _managed(coordinator)) is not None:
        return managed
    if coordinator is None and processes is None and process is None:
        return None
    if coordinator is None or processes is None or process is None:
        missing = ", ".join(name for name, value in given.items() if value is None)
        raise ValueError(f"{', '.join(given)} belong together, and {missing} is not given: give all three, or none.")
    require_count("processes", processes, 1)
    require_count("process", process, 0)
    if process >= processes:
        raise ValueError(f"process must be below processes, {processes}, since it counts from 0; {process} is not.")
    _host_and_port(coordinator)
    return _Place(coordinator, processes, process)


def _managed(coordinator: str | None) -> _Place | None:
    """What mpirun or srun say. As with JAX's own detection mpirun goes first, since it may run within a Slurm job; that one
    does not know Open MPI 5, and finds addresses of the network for processes that all are on one machine."""
    environ = os.environ
    if "OMPI_COMM_WORLD_SIZE" in environ:
        manager, job = "mpirun", environ.get("PMIX_NAMESPACE", "")
        processes, process, local = (_number(f"OMPI_COMM_WORLD_{name}") for name in ("SIZE", "RANK", "LOCAL_RANK"))
        one_machine = _number("OMPI_COMM_WORLD_LOCAL_SIZE") == processes
    elif {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"} <= environ.keys():
        manager, job = "srun", f"{environ['SLURM_JOB_ID']}.{environ.get('SLURM_STEP_ID')}"
        # Of a step, since the number of tasks may be that of the whole job.
        processes = _number("SLURM_STEP_NUM_TASKS") or _number("SLURM_NTASKS")
        process, local = _number("SLURM_PROCID"), _number("SLURM_LOCALID")
        one_machine = (_number("SLURM_STEP_NUM_NODES") or _number("SLURM_NNODES")) == 1
    else:
        return None
    if processes is None or process is None:
        return None
    if coordinator is None and processes > 1 and not one_machine:
        raise ValueError(
            f"{manager} has started {processes} processes on several machines: give coordinator, or GRITAX_COORDINATOR in the "
            "environment, as host:port of process 0, with an address by which the others reach it."
        )
    # All of a job know it, and two jobs on one machine hardly share it; above the ports that Linux gives to connections.
    port = 61440 + zlib.crc32(job.encode()) % 4096
    return _Place(coordinator or f"{LOOPBACK}:{port}", processes, process, local)


def _initialize(place: _Place, bind: str, timeout: int) -> None:
    global _joined_as
    jax.config.update("jax_enable_preemption_service", False)  # it catches SIGTERM, and the process lives on
    alone = threading.Timer(0.9 * timeout, warnings.warn, (_ALONE.format(place=place, seconds=0.9 * timeout),))
    alone.daemon = True
    alone.start()
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.processes,
            place.process,
            # As JAX would by itself: of several GPUs of a machine, each process that a job manager has started there has one.
            local_device_ids=None if place.local is None or "JAX_LOCAL_DEVICE_IDS" in os.environ else [place.local],
            cluster_detection_method="deactivate",
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=timeout,
            coordinator_bind_address=bind,
        )
    except jax.errors.JaxRuntimeError as error:
        raise ConnectionError(f"process {place.process} cannot join at {place.coordinator}: {error}") from error
    except RuntimeError as error:
        raise RuntimeError(
            "gritax.placement.join must come before anything that asks JAX for its devices, such as jax.devices() or an array."
        ) from error
    finally:
        alone.cancel()
    _joined_as = place.process
    atexit.register(_leave_after_an_error)  # before JAX's own, which was registered earlier


def _leave_after_an_error() -> None:
    if getattr(sys, "last_value", None) is not None and not hasattr(sys, "ps1"):
        abandon(1)


def _require_free(bind: str, port: int) -> None:
    """gRPC would share a port that another run listens on, and their processes would be mixed up."""
    try:
        family = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((bind, port), family=family).close()
    except (OSError, UnicodeError) as error:  # the latter of names that no host can have
        raise ConnectionError(
            f"process 0 cannot listen at {bind}, port {port}: {error}. Give another coordinator or bind."
        ) from error


def _wait_for(host: str, port: int, timeout: int) -> None:
    """JAX would abort this process without saying where it looked."""
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() > end or isinstance(error, UnicodeError):
                raise ConnectionError(
                    f"coordinator {host}:{port} was not reached in {timeout} s: {error}. Is process 0 started, and there?"
                ) from error
        time.sleep(0.1)


def _host_and_port(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":") if isinstance(coordinator, str) else ("", "", "")
    if not host or not 0 < _whole(port, 0) < 2**16:
        raise ValueError(f"coordinator must be host:port of process 0, such as {LOOPBACK}:12345, not {coordinator!r}.")
    return _without_brackets(host), int(port)


def _without_brackets(host: str) -> str:
    return host.removeprefix("[").removesuffix("]")


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if (number := _whole(text, -1)) < 0:
        raise ValueError(f"{name} in the environment must be a whole number, not {text!r}.")
    return number


def _whole(text: str, otherwise: int) -> int:
    """The number that is written in decimal digits, and no more of them than any number here has."""
    return int(text) if text.isdecimal() and len(text) < 20 else otherwise
