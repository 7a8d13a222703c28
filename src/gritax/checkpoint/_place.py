"""Where a run is kept: a folder of this machine that can be written to."""

import os
import re
from pathlib import Path
from typing import Any


# gs://bucket/run, also as pathlib shortens it, gs:/bucket/run; host:/run; simplecache::s3://bucket/run.
_ELSEWHERE = re.compile(r"[^/]{2,}?:/|[^/]+::")


def kept_in(checkpoint: Any, resume: Any) -> tuple[Path, bool] | None:
    """(directory, whether to go on from there) that a call asks for. Raises `ValueError` for what does not fit together."""
    if isinstance(resume, str | os.PathLike):
        if checkpoint is not None and _local(checkpoint) != _local(resume):
            raise ValueError(f"checkpoint is {checkpoint!r}, but resume is {resume!r}: name one directory.")
        checkpoint, resume = resume, True
    if not isinstance(resume, bool):
        raise ValueError(f"resume must be True, False or a directory, not {resume!r}.")
    if checkpoint is None:
        if resume:
            raise ValueError("resume=True needs the directory of the checkpoints: checkpoint=directory.")
        return None
    return directory(checkpoint), resume


def directory(path: str | os.PathLike) -> Path:
    """The directory of this name, made if there is none. Raises `ValueError` if it cannot be written to."""
    found = _local(path)
    try:
        if found.exists() and not found.is_dir():
            raise ValueError(f"checkpoint: {found} is a file; name a directory.")
        found.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"checkpoint: nothing can be written to {found}: {error.strerror}.") from error
    if not os.access(found, os.W_OK | os.X_OK):
        raise ValueError(f"checkpoint: nothing can be written to {found}: it is not yours to write to.")
    return found


def _local(path: Any) -> Path:
    """The absolute path, so that it stays where it is if the process goes elsewhere."""
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(name, str) or not name:
        raise ValueError(f"checkpoint must name a directory, not be {path!r}.")
    if _ELSEWHERE.match(name):
        raise ValueError(
            f"checkpoint: {name} is elsewhere, and checkpoints are written to folders of this machine only: name one, such as "
            "where that storage is mounted."
        )
    try:
        if b"\0" in os.fsencode(name):
            raise ValueError(f"checkpoint: no folder can be called {name!r}: it has a null character.")
        return Path(name).expanduser().absolute()
    except UnicodeEncodeError as error:
        raise ValueError(f"checkpoint: no folder can be called {name!r}: {error.reason}.") from error
    except (RuntimeError, OSError) as error:  # of a home that is not known, or a working directory that is gone
        raise ValueError(f"checkpoint: {name} cannot be found: {error}") from error
