"""Checks of arguments that are used everywhere."""

from numbers import Integral

import jax


def require_whole(name: str, value, least: int) -> None:
    """Raises ValueError unless `value`, or each entry of a tuple, is a whole number of at least `least`."""
    values = value if isinstance(value, tuple) else (value,)
    if not values:
        raise ValueError(f"{name} is empty: give one number, or one per level.")
    for each in values:
        if isinstance(each, bool) or not isinstance(each, Integral) or each < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, not {each!r}.")


def require_bool(name: str, value) -> None:
    """Raises ValueError for what is neither True nor False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, not {value!r}.")


def require_steps(num_steps) -> None:
    """Raises ValueError unless there are steps, and no more than can be counted."""
    require_whole("num_steps", num_steps, 1)
    if num_steps >= 2**31:
        raise ValueError(f"num_steps must be below 2^31, since steps are counted in int32; {num_steps} is not.")


def require_seed(name: str, seed) -> None:
    """Raises ValueError unless NumPy and JAX can begin their random numbers with `seed`."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**32:
        raise ValueError(f"{name} must be a whole number from 0 to {2**32 - 1:,}, not {seed!r}.")


def require_key(key, otherwise: str = "") -> None:
    """Raises ValueError unless `key` is None or one JAX random key; `otherwise` ends the sentence that says what to pass."""
    if key is None:
        return
    try:
        jax.random.fold_in(key, 0)
    except (TypeError, ValueError) as error:
        raise ValueError(f"key must be one JAX random key such as jax.random.key(0){otherwise}, not {key!r}.") from error
