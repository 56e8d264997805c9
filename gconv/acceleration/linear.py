"""The matrix product of a linear layer, computed by gconv: `jax.lax.dot_general` as such layers call it."""

import math

import jax
from jax import Array, lax
from jax.sharding import AxisType

from gconv import backends
from gconv.acceleration.drop_in import conv_general_dilated
from gconv.acceleration.equation import of_matrix_product

# As it was when gconv was imported: what layers call unless they were told otherwise.
_LAX = lax.dot_general


def dot_general(lhs: Array, rhs: Array, dimension_numbers, *rest, **options) -> Array:
    """`jax.lax.dot_general`, same arguments and results, for a layer's `dot_general`.

    A sum over the last axes of `lhs` and the first of `rhs` is a convolution whose window is one pixel. Where the rows "linear"
    of `gconv.backends.choice` say that the kernels are faster, it is written as one, and so are its derivatives.
    """
    options |= dict(zip(("precision", "preferred_element_type"), rest, strict=False))
    pixels = lhs.shape[: lhs.ndim - _contracted(lhs, rhs, dimension_numbers)]
    filters = rhs.shape[lhs.ndim - len(pixels) :]
    rows = pixels if len(pixels) > 1 else (*pixels, 1)  # what is split over devices is the batch
    batch, g = of_matrix_product(rows, math.prod(lhs.shape[len(pixels) :]), math.prod(filters))
    if len(pixels) == lhs.ndim or not _is_taken(lhs, rhs, batch, g, **options):
        return _LAX(lhs, rhs, dimension_numbers, **options)
    image, kernel = (0, g.rank + 1, *range(1, g.rank + 1)), (g.rank + 1, g.rank, *range(g.rank))
    y = conv_general_dilated(
        lhs.reshape(g.x_shape(batch)),
        rhs.reshape(g.kernel_shape),
        g.strides,
        g.padding,
        dimension_numbers=lax.ConvDimensionNumbers(image, kernel, image),
        precision=options.get("precision"),
    )
    return y.reshape(*pixels, *filters)


def _contracted(lhs: Array, rhs: Array, dimension_numbers) -> int:
    """How many axes are summed over, if they are the last of one and the first of the other, and no axis is a batch; or 0."""
    (of_lhs, of_rhs), (of_batch, _) = dimension_numbers
    count = len(of_lhs)
    last, first = [*range(lhs.ndim - count, lhs.ndim)], [*range(count)]
    plain = not of_batch and count < min(lhs.ndim, rhs.ndim) and [axis % lhs.ndim for axis in of_lhs] == last
    return count if plain and [axis % rhs.ndim for axis in of_rhs] == first else 0


def _is_taken(lhs, rhs, batch, g, *, precision=None, preferred_element_type=None, out_sharding=None) -> bool:
    del precision
    if lhs.dtype != rhs.dtype or preferred_element_type not in (None, lhs.dtype) or out_sharding is not None:
        return False
    if not all(isinstance(n, int) for n in (*lhs.shape, *rhs.shape)):
        return False
    if any(AxisType.Explicit in jax.typeof(a).sharding.mesh.axis_types for a in (lhs, rhs)):
        return False
    return backends.reason_against_matrix("linear", g, lhs.dtype, jax.default_backend(), batch) is None
