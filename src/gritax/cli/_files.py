"""Files that commands are given, and `-`, which is standard output: named, tried before long work, written whole."""

import contextlib
import errno
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec

from ..placement import is_first
from ._streams import writing


STANDARD = Path("-")

# Of a folder that takes no other file, or a file that is mounted by itself.
_ONLY_IN_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY)


def _path(words: list[str]) -> Path:
    if not words[0]:
        raise ValueError("it is empty: give a name.")
    return Path(words[0])


_SPEC = PrimitiveConstructorSpec(
    nargs=1,
    metavar="PATH",
    instance_from_str=_path,
    is_instance=lambda value: value is None or isinstance(value, Path),
    str_from_instance=lambda path: [str(path)],
)
Named = Annotated[Path, _SPEC]
Perhaps = Annotated[Path | None, _SPEC]


def require_writable(path: Path | None, option: str = "--json", resume: Path | None = None) -> None:
    """Raises `ValueError` before long work. A file is opened, for of all rights only that tells, and left as it is."""
    if resume == STANDARD:
        raise ValueError("--resume -: iterates are kept in a directory, not on standard output. Name a directory.")
    if path is None or path == STANDARD or not is_first():
        return
    try:
        if resume is not None and path.resolve() == resume.resolve():
            raise ValueError(f"{option} and --resume are both {path}: name a file and another directory.")
        exists = path.exists()
        if exists and not (path.is_file() or path.is_dir()) and os.access(path, os.W_OK):
            return  # a pipe, whose reader would take the first closing for the end
        with path.open("a"):
            pass
        if not exists:
            path.unlink()
    except (OSError, RuntimeError) as error:  # links that go round
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{option} {path}: no file can be written there ({reason}). Name a file in a folder that exists."
        ) from error


def write(path: Path, text: str, option: str = "--json") -> None:
    """Writes `text` in UTF-8: of a file all of it, or the file is left as it is."""
    data = text.encode()
    if path == STANDARD:
        with writing("standard output"):
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
        return
    with writing(f"{option} {path}"):
        if path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            _replace(path.resolve(), data)


def _replace(path: Path, data: bytes) -> None:
    beside = path.with_name(f".gritax-{os.getpid()}")
    try:
        beside.write_bytes(data)
        if path.exists():
            shutil.copymode(path, beside)
        beside.replace(path)
    except OSError as error:
        if error.errno not in _ONLY_IN_PLACE:
            raise
        path.write_bytes(data)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
