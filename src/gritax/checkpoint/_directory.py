"""Files that are written whole or not at all, and verified when they are read."""

import hashlib
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from ._facts import Unusable, require_kinds
from ._lock import Lock
from ._place import directory


logger = logging.getLogger("gritax")
_Made = TypeVar("_Made")

_FORMAT = 4
_MAGIC = f"gritax checkpoint {_FORMAT}\n".encode()
_SUFFIX = ".gritax"
_UNFINISHED = ".unfinished"
_KEPT = 2
OWN = "own"  # the fact by which what a method keeps of itself is known
_DIGITS = 12


@dataclass(frozen=True)
class Checkpoint:
    """The first `done` steps of a run: what is known of it as JSON, and its arrays."""

    done: int
    facts: dict[str, Any]
    arrays: list[np.ndarray]


class Directory:
    """The checkpoints of one run, of which the last two are kept: `steps-<done>.gritax`.

    A file is the SHA-256 of what follows it, and then that: a line of JSON, with the number of steps, the facts and what the
    arrays are, and their bytes. So it is known for what it is under another name too. It is written under another name, synced
    and renamed, so that a process that is killed leaves the last one whole; one that cannot be used, or has another's name, is
    found out, and the one before it is used. `lock` is the right to write, which a run has from its beginning to its end.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = directory(path)
        self.lock = Lock(self.path)

    def require(self, resume: bool) -> None:
        """Raises `ValueError` for iterates of a multigrid solve, and for an earlier run that is not to be resumed."""
        if iterates := sorted(each.name for each in self.path.iterdir() if each.is_dir() and each.name.isdecimal()):
            raise ValueError(
                f"checkpoint: {self.path} has iterates of a multigrid solve ({iterates[-1]}), not what gritax.train or "
                "gritax.Newton keep: name another directory."
            )
        if not resume and (files := self.files()):
            raise ValueError(
                f"checkpoint: {self.path} has checkpoints already ({files[0].name}): go on with resume=True, or name another "
                "directory."
            )

    def files(self) -> list[Path]:
        """What has the name of a checkpoint, the newest first."""
        return sorted(self.path.glob(f"steps-{'[0-9]' * _DIGITS}{_SUFFIX}"), reverse=True)

    def save(self, checkpoint: Checkpoint) -> None:
        """Raises `ValueError` where somebody else is writing, `OSError` where it cannot be written."""
        name = self._name(checkpoint.done)
        unfinished = name.with_suffix(_UNFINISHED)
        content = _content(checkpoint)
        with self.lock:
            try:
                with unfinished.open("wb") as file:
                    file.write(_MAGIC + hashlib.sha256(content).digest())
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                unfinished.replace(name)
                _sync(self.path)
            except OSError as error:
                raise OSError(
                    f"checkpoint: {name} cannot be written ({error.strerror}). Mend that, and go on with resume=True from the "
                    "one before it."
                ) from error
            # Files of more steps are of before the run began again.
            files = self.files()
            at = files.index(name)
            for old in [*filter(_is_ours, files[:at]), *filter(_is_ours, files[at + 1 :][_KEPT - 1 :])]:
                old.unlink(missing_ok=True)
            for old in self.path.glob(f"steps-*{_UNFINISHED}"):
                old.unlink(missing_ok=True)

    def latest(self, made_of: Callable[[Checkpoint], _Made] = lambda checkpoint: checkpoint) -> _Made | None:
        """What is made of the newest checkpoint that can be used; None if there is no file.

        `made_of` raises `Unusable` for one that it cannot use. Raises `ValueError` if none can be used.
        """
        while True:
            files, reasons = self.files(), Counter()
            for file in files:
                try:
                    return made_of(self._read(file))
                except Unusable as reason:
                    reasons[str(reason)] += 1
                    logger.warning("%s is %s; the checkpoint before it is used", file, reason)
            if not files:
                return None
            if files == self.files():  # otherwise a run that is writing has replaced them meanwhile
                why = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
                raise ValueError(
                    f"resume: no checkpoint in {self.path} is whole ({why}). Start again in another directory, or put a whole "
                    "one there."
                )

    def _name(self, done: int) -> Path:
        return self.path / f"steps-{done:0{_DIGITS}d}{_SUFFIX}"

    def _read(self, file: Path) -> Checkpoint:
        found = _read(file)
        if (name := self._name(found.done)) != file:
            raise Unusable(f"renamed, for it says that it is {name.name}")
        return found


def _content(checkpoint: Checkpoint) -> bytes:
    arrays = [np.asarray(x) for x in checkpoint.arrays]
    kinds = [[str(x.dtype), x.shape] for x in arrays]
    head = json.dumps({"done": checkpoint.done, "facts": checkpoint.facts, "arrays": kinds})
    return b"".join([head.encode(), b"\n", *(x.tobytes() for x in arrays)])


def _read(file: Path) -> Checkpoint:
    if not file.is_file():
        raise Unusable("a folder" if file.is_dir() else "no file")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise Unusable(f"unreadable, {error.strerror}") from error
    written = re.match(rb"gritax checkpoint (\d{1,9})\n", content)
    if written and int(written[1]) != _FORMAT:
        raise Unusable(f"of format {int(written[1])}, written by another version of gritax, while this one reads {_FORMAT}")
    digest, payload = content[len(_MAGIC) : len(_MAGIC) + 32], content[len(_MAGIC) + 32 :]
    if not written or hashlib.sha256(payload).digest() != digest:
        raise Unusable("damaged")
    try:
        return _parsed(payload)
    except Unusable:
        raise
    except Exception as error:  # whatever is wrong with what somebody else has written
        raise Unusable(f"not what gritax writes, {type(error).__name__}: {error}") from error


def _parsed(payload: bytes) -> Checkpoint:
    head, _, data = payload.partition(b"\n")
    found = json.loads(head)
    require_kinds(found, {"done": int, "facts": dict, "arrays": list})
    arrays, at = [], 0
    for name, shape in found["arrays"]:
        dtype, count = jnp.dtype(name), math.prod(shape)
        arrays.append(np.frombuffer(data, dtype, count, at).reshape(shape))
        at += count * dtype.itemsize
    if at != len(data):
        raise Unusable("one that has more bytes than arrays")
    return Checkpoint(found["done"], found["facts"], arrays)


def _is_ours(file: Path) -> bool:
    """Whether this version has written it: what others have is not to be taken away."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(len(_MAGIC)) == _MAGIC


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
