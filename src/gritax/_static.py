"""What of a pytree is no array, as a key that compiled programs are told apart by."""

import functools
from collections.abc import Hashable, Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree


def is_data(leaf) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def data_of(tree: PyTree) -> tuple[Array, ...]:
    """The arrays of a pytree, NumPy's too, in their order."""
    return tuple(leaf for leaf in jax.tree.leaves(tree) if is_data(leaf))


class _Same:
    """Equal to itself alone. Keeps what it is made of alive, so that nothing else gets its identity."""

    def __init__(self, value: Any):
        self._value = value

    def __hash__(self):
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value


def key(value: Any) -> Hashable:
    """Equal for values that no program can tell apart.

    Containers and NumPy arrays are taken as they are now, and are others once they are changed. Anything else is equal by its
    own `==` if it can be hashed, and only to itself if it cannot.
    """
    kind = type(value)
    if kind in (bool, int, float, complex):  # 1, 1.0 and True are equal, and so are 0.0 and -0.0
        return kind, repr(value)
    if isinstance(value, np.ndarray | np.generic):
        return _Same(value) if value.dtype.hasobject else (kind, value.dtype.str, value.shape, value.tobytes())
    if kind is list or kind is tuple:
        return kind, tuple(key(each) for each in value)
    if kind is dict:
        return kind, tuple((key(name), key(each)) for name, each in value.items())
    if kind is set or kind is frozenset:
        return kind, frozenset(key(each) for each in value)
    if kind is functools.partial:
        return kind, key(value.func), key(value.args), key(value.keywords)
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return kind, value


def structure_key(structure: Any) -> Hashable:
    """Equal for structures that no program can tell apart, static fields included."""
    node = structure.node_data()
    children = tuple(map(structure_key, structure.children()))
    return children if node is None else (node[0], key(node[1]), children)


class Static:
    """The part of a pytree that is no data, hashable so that compiled kernels can be told apart by it."""

    def __init__(self, tree: PyTree):
        leaves, self._structure = jax.tree.flatten(tree)
        self._leaves = tuple(None if is_data(leaf) else leaf for leaf in leaves)
        self._key = structure_key(self._structure), tuple(map(key, self._leaves))
        self._hash = hash(self._key)

    def with_data(self, data: Iterable[Array]) -> PyTree:
        """The pytree with `data` in place of its arrays, in their order."""
        data = iter(data)
        return jax.tree.unflatten(self._structure, [next(data) if leaf is None else leaf for leaf in self._leaves])

    def __hash__(self):
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Static) and self._hash == other._hash and self._key == other._key)
