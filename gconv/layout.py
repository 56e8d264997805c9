"""The two layouts of the parameters: a convolution's kernel, and MATLAB's with one axis per group.

    kernel       (*window, channels, groups * filters)     output channel o = group * filters + filter
    per group    (*window, channels, filters, groups)      MATLAB's Weights, 5-D for images

Works on NumPy and JAX arrays alike.
"""


def kernel_from_per_group(weights):
    """`(*window, channels, filters, groups)` -> `(*window, channels, groups * filters)`."""
    *front, filters, groups = weights.shape
    return weights.swapaxes(-1, -2).reshape(*front, groups * filters)


def kernel_to_per_group(kernel, groups: int):
    """`(*window, channels, groups * filters)` -> `(*window, channels, filters, groups)`."""
    *front, out = kernel.shape
    return kernel.reshape(*front, groups, out // groups).swapaxes(-1, -2)


def bias_from_per_group(bias):
    """`(filters, groups)`, also with leading axes of size 1 as in MATLAB -> `(groups * filters,)`."""
    return bias.reshape(bias.shape[-2:]).T.reshape(-1)


def bias_to_per_group(bias, groups: int, rank: int = 2):
    """`(groups * filters,)` -> `(*ones, filters, groups)`: `(1, 1, filters, groups)` for images."""
    return bias.reshape(groups, -1).T.reshape(*(1,) * rank, -1, groups)
