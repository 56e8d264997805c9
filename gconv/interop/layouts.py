"""Arrays of any library, and the orders of a kernel's axes."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np


def array(name: str, value) -> np.ndarray:
    """A NumPy copy of a parameter of any library: training goes on there without changing it here."""
    if value is None:
        raise ValueError(f"`{name}` is missing.")
    if hasattr(value, "assign") and hasattr(value, "value"):  # a variable of Keras, around its backend's array
        value = value.value
    if hasattr(value, "detach"):  # PyTorch's, whose bfloat16 NumPy does not know
        value = value.detach().cpu()
        half = str(value.dtype) == "torch.bfloat16"
        value = value.float().numpy().astype(ml_dtypes.bfloat16) if half else value.numpy()
    elif not hasattr(value, "shape"):
        raise TypeError(f"`{name}` must be an array, got {type(value).__name__}.")
    elif hasattr(value, "get_metadata"):  # a variable of Flax NNX
        value = value[...]
    found = np.array(value)
    if not found.dtype.isnative:  # big-endian, as files of other machines have it, and JAX does not
        found = found.astype(found.dtype.newbyteorder("="))
    if not jnp.issubdtype(found.dtype, jnp.inexact):
        raise TypeError(f"`{name}` must have a floating or complex dtype, got {found.dtype}.")
    return found


def from_channels_first(weight: np.ndarray) -> np.ndarray:
    """`(out, in, *window)` -> `(*window, in, out)`."""
    return np.ascontiguousarray(weight.transpose(*range(2, weight.ndim), 1, 0)) if weight.ndim > 1 else weight


def to_channels_first(kernel: np.ndarray) -> np.ndarray:
    """`(*window, in, out)` -> `(out, in, *window)`."""
    return np.ascontiguousarray(kernel.transpose(kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2)))


def flipped(kernel: np.ndarray, groups: int) -> np.ndarray:
    """Between the two kernels of a transposed convolution; its own inverse, but for which channels come first.

    The one of the convolution that is transposed, `(*window, filters, groups * channels)`, is gconv's; the one that slides over
    the input with zeros put between its samples, `(*window, channels, groups * filters)`, is that of JAX's `conv_transpose`.
    """
    *window, inner, outer = kernel.shape
    split = np.flip(kernel, axis=tuple(range(len(window)))).reshape(*window, inner, groups, outer // groups)
    return np.ascontiguousarray(split.swapaxes(-1, -3).reshape(*window, outer // groups, groups * inner))
