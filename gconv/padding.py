"""What is done to `x` before it is convolved: padding with something else than zeros, and zeros between its samples.

Zeros around `x` are a convolution's own business. Zeros between its samples are an input gradient's, which is a convolution
over a dilated input: that of the geometry's `transposed_twin`.
"""

import jax.numpy as jnp
from jax import Array, lax

from gconv.geometry import Geometry, transposed_twin
from gconv.options import PADDING_MODES


def padded(x: Array, geom: Geometry, fill, factors: tuple[int, ...]) -> tuple[Array, Geometry, tuple[int, ...]]:
    """`x` with what a role cannot add itself, the geometry that is left to the role, and the dilation that is left.

    Zeros are left, where their number is known. Everything else is added to `x` first.

    Args:
      x: `(N, *spatial, C_in)`.
      geom: of the dilated input.
      fill: a number, or one of PADDING_MODES.
      factors: the dilation of `x`, per axis.
    """
    known = all(isinstance(p, int) for pair in geom.padding for p in pair)  # "same" of a symbolic size is not
    if known and (fill == 0 or not any(lo or hi for lo, hi in geom.padding)):
        return x, geom, factors
    width = ((0, 0), *geom.padding, (0, 0))
    if isinstance(fill, str):
        for i, (n, pair) in enumerate(zip(geom.spatial, geom.padding, strict=True)):
            if n == 0 and any(pair):
                raise ValueError(f"`padding_value`={fill!r} has nothing to repeat: spatial axis {i} of `x` has size 0.")
        x = jnp.pad(x, width, mode=PADDING_MODES[fill])
    else:
        _check_fill(fill, x.dtype)
        x = jnp.pad(_spread(x, factors), width, constant_values=fill)
    return x, geom.unpadded(x.shape[1:-1]), (1,) * geom.rank


def dilated(x: Array, kernel: Array, geom: Geometry, factors: tuple[int, ...]) -> tuple[str, dict[str, Array], Geometry]:
    """The role, its operands and its geometry that convolve `x` with zeros between its samples.

    Without strides that is an input gradient, which multiplies by none of these zeros. With strides they are written out.
    """
    if max(factors) == 1:
        return "y", {"x": x, "w": kernel}, geom
    if max(geom.strides) > 1 or not geom.is_known or 0 in geom.spatial:
        return "y", {"x": _spread(x, factors), "w": kernel}, geom
    split = jnp.flip(kernel, range(geom.rank)).reshape(*geom.window, geom.channels, geom.groups, geom.filters)
    turned = split.swapaxes(-1, -3).reshape(*geom.window, geom.filters, geom.in_channels)
    return "x", {"y": x, "w": turned}, transposed_twin(geom, factors)


def _spread(x: Array, factors: tuple[int, ...]) -> Array:
    """`x` with `factor - 1` zeros between its samples."""
    if max(factors) == 1:
        return x
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((0, 0, f - 1) for f in factors), (0, 0, 0)))


def _check_fill(fill, dtype) -> None:
    """That an array of type `dtype` can hold the number `fill`."""
    integers = jnp.issubdtype(dtype, jnp.integer)
    if isinstance(fill, complex) and not jnp.issubdtype(dtype, jnp.complexfloating):
        works = 0 if integers else fill.real
        raise TypeError(f"`padding_value`={fill} is complex and x.dtype={dtype} is not. A value that works: {works}.")
    if integers:
        least, most = int(jnp.iinfo(dtype).min), int(jnp.iinfo(dtype).max)
        works = 0 if fill != fill else int(min(max(fill, least), most))
        if works != fill:
            raise TypeError(f"`padding_value`={fill} cannot be written in x.dtype={dtype}. A value that works: {works}.")
