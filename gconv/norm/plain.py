"""The passes of batch norm in plain JAX, and sums over pixels: what they compute, and what runs where there are no kernels.

Arrays are `(*batch, C)`. `factors` holds a row each of the mean, the scale and the bias of every channel:

    z = (x - mean) * scale + bias (+ residual)         y = relu(z) or z

`x`, `residual`, `y` and their tangents and cotangents have one type; all that has one number for each channel has the type in
which sums are formed. Operands stand in this order: x, factors, residual if there is one, then the others.
"""

import jax
import jax.numpy as jnp
from jax import Array

from gconv.dtypes import accumulator


def moments(x: Array) -> Array:
    """`(2, C)`: mean and variance of each channel."""
    wide = x.astype(accumulator(x.dtype))
    axes = tuple(range(x.ndim - 1))
    mean = wide.mean(axes)
    return jnp.stack([mean, jnp.square(wide - along(mean, x)).mean(axes)])


def apply(x: Array, factors: Array, *residual: Array, relu: bool) -> Array:
    """`y` in the type of x."""
    _, z = _centred(x, factors, residual)
    return (jax.nn.relu(z) if relu else z).astype(x.dtype)


# The derivative of y has two parts. `inner` has all that is as large as x; `outer` adds what the statistics and the
# parameters do. Their transposes are `backward` and `sums`: so both large cotangents are written in one pass, the last.


def inner(x: Array, factors: Array, *operands: Array, relu: bool) -> tuple[Array, Array]:
    """The part of y's tangent through x and the residual, and `(2, C)`: the sums of dx and of dx * (x - mean).

    Operands: the residual if there is one, dx, the residual's tangent if there is one.
    """
    n = len(operands) // 2
    residual, dx, dresidual = operands[:n], operands[n], operands[n + 1 :]
    centred, z = _centred(x, factors, residual)
    wide = dx.astype(factors.dtype)
    tangent = wide * along(factors[1], x) + sum(d.astype(factors.dtype) for d in dresidual)
    return _passed(tangent, z, relu).astype(x.dtype), _sums(wide, centred)


def outer(x: Array, factors: Array, *operands: Array, relu: bool) -> Array:
    """y's tangent. Operands: the residual if there is one, `inner`'s part, and `terms (2, C)`, a constant and a slope."""
    *residual, part, terms = operands
    centred, z = _centred(x, factors, residual)
    added = _passed(along(terms[0], x) + along(terms[1], x) * centred, z, relu)
    return (part.astype(factors.dtype) + added).astype(x.dtype)


def sums(x: Array, factors: Array, *operands: Array, relu: bool) -> Array:
    """`(2, C)`: the sums of dz and of dz * (x - mean). Operands: the residual if there is one, dy."""
    *residual, dy = operands
    centred, z = _centred(x, factors, residual)
    return _sums(_passed(dy.astype(factors.dtype), z, relu), centred)


def backward(x: Array, factors: Array, *operands: Array, relu: bool) -> tuple[Array, ...]:
    """The cotangents of x and of the residual if there is one. Operands: the residual if there is one, dy, `terms (2, C)`.

    dx = dz * scale + terms[0] + terms[1] * (x - mean)
    """
    *residual, dy, terms = operands
    centred, z = _centred(x, factors, residual)
    dz = _passed(dy.astype(factors.dtype), z, relu)
    dx = dz * along(factors[1], x) + (along(terms[0], x) + along(terms[1], x) * centred)
    return dx.astype(x.dtype), *(dz.astype(r.dtype) for r in residual)


def totals(x: Array) -> Array:
    """`(N, C)`: the sum over the pixels of each image of x, `(N, *spatial, C)`, in the type that sums are formed in."""
    return x.sum(tuple(range(1, x.ndim - 1)), dtype=accumulator(x.dtype))


def along(channels: Array, x: Array) -> Array:
    """One number for each channel, with as many axes as x."""
    return channels.reshape(*(1,) * (x.ndim - 1), channels.shape[-1])


def _centred(x: Array, factors: Array, residual) -> tuple[Array, Array]:
    """x without its mean, and z."""
    centred = x.astype(factors.dtype) - along(factors[0], x)
    z = centred * along(factors[1], x) + along(factors[2], x)
    return centred, sum((r.astype(factors.dtype) for r in residual), z)


def _passed(dy: Array, z: Array, relu: bool) -> Array:
    return jnp.where(z > 0, dy, jnp.zeros_like(dy)) if relu else dy


def _sums(d: Array, centred: Array) -> Array:
    axes = tuple(range(d.ndim - 1))
    return jnp.stack([d.sum(axes), (d * centred).sum(axes)])
