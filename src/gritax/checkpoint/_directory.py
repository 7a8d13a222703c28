"""Files that are written whole or not at all, and verified when they are read."""

import hashlib
import io
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np


logger = logging.getLogger("gritax")

_MAGIC = b"gritax checkpoint 3\n"
_SUFFIX = ".gritax"
_UNFINISHED = ".unfinished"
_KEPT = 2
_DIGITS = 12


@dataclass(frozen=True)
class Checkpoint:
    """The first `done` steps of a run: what is known of it as JSON, and its arrays."""

    done: int
    facts: dict[str, Any]
    arrays: list[np.ndarray]


class Directory:
    """The checkpoints of one run, of which the last two are kept: `steps-<done>.gritax`.

    A file is the SHA-256 of what follows it, and then that: an `.npz` of arrays and of the facts as JSON. It is written under
    another name, synced and renamed, so that a process that is killed leaves the last one whole; one that was cut short
    or changed is found out, and the one before it is used.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = directory(path)

    def files(self) -> list[Path]:
        """The newest first."""
        found = self.path.glob(f"steps-{'[0-9]' * _DIGITS}{_SUFFIX}")
        return sorted((path for path in found if path.is_file()), reverse=True)

    def save(self, checkpoint: Checkpoint) -> None:
        buffer = io.BytesIO()
        facts = np.frombuffer(json.dumps(checkpoint.facts).encode(), np.uint8)
        # Types that are not NumPy's own, such as bfloat16, as bytes.
        arrays: dict[str, Any] = {
            f"array{i}": x.view(f"V{x.itemsize}") for i, x in enumerate(map(np.asarray, checkpoint.arrays))
        }
        dtypes = np.array([str(x.dtype) for x in map(np.asarray, checkpoint.arrays)], "U")
        np.savez(buffer, facts=facts, dtypes=dtypes, **arrays)
        content = buffer.getvalue()
        name = self.path / f"steps-{checkpoint.done:0{_DIGITS}d}{_SUFFIX}"
        unfinished = name.with_suffix(_UNFINISHED)
        with unfinished.open("wb") as file:
            file.write(_MAGIC + hashlib.sha256(content).digest() + content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(name)
        _sync(self.path)
        # Files of more steps are of before the run began again.
        files = self.files()
        at = files.index(name)
        for old in [*files[:at], *files[at + _KEPT :], *self.path.glob(f"steps-*{_UNFINISHED}")]:
            old.unlink(missing_ok=True)

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint; None if there is no file. Raises `ValueError` if none of the files is whole."""
        files = self.files()
        for file in files:
            found = _read(file)
            if found is not None:
                return found
            logger.warning("%s is damaged; the checkpoint before it is used", file)
        if files:
            raise ValueError(
                f"resume: no checkpoint in {self.path} is whole ({len(files)} damaged). Start again in another directory, or "
                "delete them."
            )
        return None


def kept_in(checkpoint: Any, resume: Any) -> tuple[str | os.PathLike, bool] | None:
    """(directory, whether to go on from there) that a call asks for. Raises `ValueError` for what does not fit together."""
    if isinstance(resume, str | os.PathLike):
        if checkpoint is not None and os.fspath(checkpoint) != os.fspath(resume):
            raise ValueError(f"checkpoint is {checkpoint!r}, but resume is {resume!r}: name one directory.")
        checkpoint, resume = resume, True
    if not isinstance(resume, bool):
        raise ValueError(f"resume must be True, False or a directory, not {resume!r}.")
    if checkpoint is None:
        if resume:
            raise ValueError("resume=True needs the directory of the checkpoints: checkpoint=directory.")
        return None
    return checkpoint, resume


def directory(path: str | os.PathLike) -> Path:
    """The directory of this name, made if there is none. Raises `ValueError` if it cannot be written to."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ValueError(f"checkpoint must name a directory, not be {path!r}.")
    found = Path(path)
    if found.exists() and not found.is_dir():
        raise ValueError(f"checkpoint: {found} is a file; name a directory.")
    try:
        found.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"checkpoint: nothing can be written to {found}: {error.strerror}.") from error
    if not os.access(found, os.W_OK):
        raise ValueError(f"checkpoint: nothing can be written to {found}: it is not yours to write to.")
    return found


def _read(file: Path) -> Checkpoint | None:
    content = file.read_bytes()
    digest, payload = content[len(_MAGIC) : len(_MAGIC) + 32], content[len(_MAGIC) + 32 :]
    if not content.startswith(_MAGIC) or hashlib.sha256(payload).digest() != digest:
        return None
    with np.load(io.BytesIO(payload), allow_pickle=False) as found:
        facts = json.loads(found["facts"].tobytes())
        arrays = [found[f"array{i}"].view(jnp.dtype(name)) for i, name in enumerate(found["dtypes"].tolist())]
    return Checkpoint(int(file.stem.partition("-")[2]), facts, arrays)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
