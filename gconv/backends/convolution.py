"""`jax.lax.conv_general_dilated` as the backends call it: XLA is never handed a negative padding.

XLA:CPU reads outside the buffer in some float32 convolutions in 2-D whose low padding is negative (openxla/xla issue 48713).
"""

import jax.numpy as jnp
from jax import Array, lax

# By name, not as `lax.conv_general_dilated`: users may put gconv's drop-in in that place.
from jax.lax import conv_general_dilated

# From such strides on XLA:CPU sums wrong pixels (jax 0.10.2, the kernel gradient of a dilated convolution in 1-D: right at
# 2^20, wrong at 2^24).
FAR = 1 << 20


def convolution(lhs: Array, rhs: Array, *, padding, dimension_numbers, lhs_dilation=None, crop=True, **options) -> Array:
    """lax's convolution; where `padding`, a `(low, high)` per spatial axis, is negative, `lhs` is cropped before.

    The other arguments are those of `jax.lax.conv_general_dilated`; `crop=False` leaves the padding as it is.
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    factors = lhs_dilation or (1,) * len(padding)
    if crop:
        lhs, padding = cropped(lhs, numbers.lhs_spec[2:], padding, factors)
    return conv_general_dilated(lhs, rhs, padding=padding, dimension_numbers=numbers, lhs_dilation=lhs_dilation, **options)


def cropped(lhs: Array, axes, padding, factors) -> tuple[Array, tuple]:
    """`lhs` without the samples that a negative padding of its spatial `axes` takes away, and the padding that is left.

    `factors` are the dilation of `lhs`. It is sliced by whole samples: of those that are dilated, fewer than a factor of the
    zeros between them remain, which are padding.
    """
    first, last, left = [0] * lhs.ndim, list(lhs.shape), []
    for axis, (lo, hi), f in zip(axes, padding, factors, strict=True):
        n = lhs.shape[axis]
        before, after = (-(p // f) if _is_negative(p) else 0 for p in (lo, hi))
        if (before or after) and before + after >= n:  # no sample is left
            total = ((n - 1) * f + 1 if n else 0) + lo + hi
            if total > 0:  # only padding is: one sample of zeros stands for all of them but it
                lhs = jnp.zeros((*lhs.shape[:axis], 1, *lhs.shape[axis + 1 :]), lhs.dtype)
                last[axis] = 1
            left.append((total - 1, 0) if total > 0 else (lo, hi))  # else there is nothing to compute
            continue
        first[axis], last[axis] = before, n - after
        left.append((lo + before * f, hi + after * f))
    if first != [0] * lhs.ndim or last != [*lhs.shape]:
        lhs = lax.slice(lhs, first, last)
    return lhs, tuple(left)


def _is_negative(padding) -> bool:
    try:
        return bool(padding < 0)
    except Exception:  # JAX's InconclusiveDimensionOperation, of a symbolic size: lax pads dynamically
        return False
