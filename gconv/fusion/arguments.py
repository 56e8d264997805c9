"""The arguments of a call, taken apart: arrays, which a compiled program takes, and the rest, which it is compiled for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


class _Dynamic:
    def __repr__(self) -> str:
        return "an array"


DYNAMIC = _Dynamic()


@dataclass(frozen=True, slots=True)
class Rest:
    """All of a call that is no array; hashable.

    Attributes:
      leaves: DYNAMIC where an array stands.
    """

    tree: Any
    leaves: tuple[Any, ...]

    def together(self, arrays: Sequence) -> Any:
        """The call again, with these arrays."""
        following = iter(arrays)
        return self.tree.unflatten([next(following) if leaf is DYNAMIC else leaf for leaf in self.leaves])


def apart(call: Any) -> tuple[list, Rest]:
    """The arrays and numbers of a tree, and the rest of it.

    Raises:
      TypeError: naming a leaf that is neither an array nor hashable.
    """
    found, tree = jax.tree.flatten(call)
    arrays: list[Any] = []
    leaves: list[Any] = []
    for i, leaf in enumerate(found):
        if is_array(leaf):
            arrays.append(leaf.__jax_array__() if _converts(leaf) else leaf)
            leaves.append(DYNAMIC)
            continue
        try:
            hash(leaf)
        except TypeError:
            raise TypeError(
                f"The argument {names(call)[i]} is neither an array nor hashable: {type(leaf).__name__}. What works: an array, "
                "a pytree of arrays, or a value with a hash, for each of which the function is traced."
            ) from None
        leaves.append(leaf)
    return arrays, Rest(tree, tuple(leaves))


def is_array(leaf: Any) -> bool:
    """Whether a leaf is data: arrays and numbers are; True and False are options, as in `train=False`."""
    numbers = (jax.Array, np.ndarray, np.generic, int, float, complex)
    return not isinstance(leaf, bool) and (isinstance(leaf, numbers) or _converts(leaf))


def _converts(leaf: Any) -> bool:
    return not isinstance(leaf, jax.Array) and callable(getattr(leaf, "__jax_array__", None))


def names(call: Any) -> list[str]:
    """Where the leaves of `(function, args, kwargs)` are, in words: "args[0]['kernel']"."""
    roots = ("function", "args", "kwargs")
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(call)[0]]
    return [roots[path[0].idx] + jax.tree_util.keystr(path[1:]) for path in paths]
