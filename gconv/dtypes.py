"""Which type several types meet in, and which one their sums are formed in: the same in every promotion mode of JAX.

Under `jax.numpy_dtype_promotion("strict")` JAX refuses to mix types that a user mixes by accident. What meets here is meant to.
"""

from functools import reduce

import jax
import jax.numpy as jnp


def is_narrow(dtype) -> bool:
    """Whether sums in this floating type are formed in float32: half precision, and floats of 8 bits and fewer."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def wider(*dtypes):
    """The one type that holds all the others; types for which JAX has no promotion meet others in float32 or int8."""
    types = list(dict.fromkeys(map(jnp.dtype, dtypes)))
    if len(types) == 1:
        return types[0]
    types = [_promotable(t) for t in types]
    with jax.numpy_dtype_promotion("standard"):
        return jnp.dtype(reduce(jnp.promote_types, types))


def accumulator(*dtypes):
    """The type in which sums of all these types are formed."""
    return wider(*(jnp.dtype("float32") if is_narrow(t) else t for t in dtypes))


def _promotable(dtype):
    """Floats of 8 bits and fewer, and integers of 4 and fewer, JAX promotes to nothing."""
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.dtype("float32") if jnp.finfo(dtype).bits <= 8 else dtype
    few = jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).bits <= 4
    return jnp.dtype("int8") if few else dtype
