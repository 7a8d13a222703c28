"""What is read is what was to be written: each fact there, and of its kind."""

from dataclasses import fields
from types import UnionType
from typing import Any, TypeVar, get_type_hints


_Built = TypeVar("_Built")
_Kind = type | UnionType


class Unusable(ValueError):
    """A file that cannot be gone on from: what it is, to follow on "is"."""


def require_kinds(facts: Any, kinds: dict[str, _Kind]) -> None:
    """Raises `Unusable` unless these facts are there, of these kinds."""
    if not isinstance(facts, dict):
        raise Unusable(f"not a record of {', '.join(kinds)}")
    for name, kind in kinds.items():
        if name not in facts:
            raise Unusable(f"without its {name!r}")
        if not isinstance(facts[name], kind):
            raise Unusable(f"one whose {name!r} cannot be {facts[name]!r:.80}")


def built(kind: type[_Built], facts: Any) -> _Built:
    """The dataclass of these facts. Raises `Unusable` for what is no field of it, or no value of one."""
    hints = get_type_hints(kind)
    kinds = {each.name: _kind(hints[each.name]) for each in fields(kind)}  # pyright: ignore[reportArgumentType]
    require_kinds(facts, kinds)
    if len(facts) > len(kinds):
        raise Unusable(f"one that has more than {', '.join(kinds)}")
    # JSON has lists only.
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()})


def _kind(hint: Any) -> _Kind:
    if hint is float:
        return float | int
    return hint if hint in (int, str, bool) else object
