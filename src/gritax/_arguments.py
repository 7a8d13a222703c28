"""Checks of arguments that are used everywhere."""

from numbers import Integral


def require_whole(name: str, value, least: int) -> None:
    """Raises ValueError unless `value`, or each entry of a tuple, is a whole number of at least `least`."""
    values = value if isinstance(value, tuple) else (value,)
    if not values:
        raise ValueError(f"{name} is empty: give one number, or one per level.")
    for each in values:
        if isinstance(each, bool) or not isinstance(each, Integral) or each < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, not {each!r}.")
