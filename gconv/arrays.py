"""What a user may give as an array: NumPy's and JAX's; anything else gets one sentence that tells what to do."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array


def as_array(name: str, value: Any) -> Array:
    """`value` as an array of JAX, or the error of `check_array`."""
    check_array(name, value)
    return jnp.asarray(value)


def check_array(name: str, value: Any) -> None:
    """A TypeError that names the argument unless `value` has a shape and a numeric type that JAX knows."""
    check_kind(name, value)
    dtype = jnp.dtype(value.dtype)
    if not jnp.issubdtype(dtype, np.number):
        raise TypeError(f"`{name}` must have a numeric dtype, got {dtype}. {name}.astype('float32') would work.")
    if not dtype.isnative:
        works = f"{name}.astype({dtype.newbyteorder('=').name!r})"
        raise TypeError(f"`{name}` must have this machine's byte order, got dtype {dtype.str!r}. {works} would work.")


def check_kind(name: str, value: Any) -> None:
    """The part of `check_array` that asks whose array it is, whatever its type.

    Lists are refused as `jax.numpy` refuses them, and tensors of other libraries, for a copy of them should be seen.
    """
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        raise TypeError(f"`{name}` must be an array, got {type(value).__name__}. jax.numpy.asarray({name}) makes one.")
    try:
        jnp.dtype(value.dtype)
    except TypeError:
        kind = f"{type(value).__module__.split('.')[0]}.{type(value).__name__}"
        raise TypeError(
            f"`{name}` must be an array of NumPy or JAX, got a {kind} of {value.dtype}. "
            f"jax.numpy.asarray(numpy.asarray({name})) makes one."
        ) from None
