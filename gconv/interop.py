"""Weights from and to other libraries.

MATLAB keeps the parameters of `groupedConvolution2dLayer` with one axis per group: Weights `(h, w, channels, filters, groups)`
and Bias `(1, 1, filters, groups)`. gconv and Flax keep `(h, w, channels, groups * filters)` and `(groups * filters,)`.
"""

from gconv.layout import bias_from_per_group, bias_to_per_group, kernel_from_per_group, kernel_to_per_group


def kernel_from_matlab(weights):
    """MATLAB's Weights `(*window, channels, filters, groups)` as a kernel `(*window, channels, groups * filters)`.

    Works on NumPy and JAX arrays. MATLAB drops trailing axes of size 1, so an array of one group must be given its last axis
    back first: `weights[..., None]`.

    >>> import numpy as np, gconv.interop
    >>> gconv.interop.kernel_from_matlab(np.zeros((3, 5, 2, 4, 6))).shape
    (3, 5, 2, 24)
    """
    if not 4 <= weights.ndim <= 6:
        raise ValueError(
            "`weights` must have shape (*window, channels, filters, groups) with 1, 2 or 3 window axes, got shape "
            f"{weights.shape}. MATLAB drops trailing axes of size 1: weights[..., None] gives one group back."
        )
    return kernel_from_per_group(weights)


def kernel_to_matlab(kernel, *, groups: int):
    """The inverse of `kernel_from_matlab`."""
    if kernel.shape[-1] % groups:
        raise ValueError(f"`groups` must divide the output channels: kernel shape {kernel.shape}, groups={groups}.")
    return kernel_to_per_group(kernel, groups)


def bias_from_matlab(bias):
    """MATLAB's Bias `(1, 1, filters, groups)` (or `(filters, groups)`) as `(groups * filters,)`."""
    if bias.ndim < 2 or bias.size != bias.shape[-1] * bias.shape[-2]:
        raise ValueError(f"`bias` must have shape (1, 1, filters, groups) or (filters, groups), got {bias.shape}.")
    return bias_from_per_group(bias)


def bias_to_matlab(bias, *, groups: int):
    """The inverse of `bias_from_matlab`: `(1, 1, filters, groups)`."""
    if bias.size % groups:
        raise ValueError(f"`groups` must divide the output channels: bias shape {bias.shape}, groups={groups}.")
    return bias_to_per_group(bias, groups)
