"""The definition of grouped convolution as NumPy loops, in float64 or complex128. Meant to be obviously right.

Knows nothing of gconv and nothing of JAX. Arrays are channels last, `x (*batch, *spatial, C_in)`, `kernel (*window, J, C_out)`,
with any number of batch axes and 1 to 3 spatial axes. All three functions walk the same products, for all n at once,

    y[n, filter] += padded_x[n * stride + tap * dilation, channel] * kernel[tap, channel, filter]

and accumulate, for each, what they are asked for: y, or the factor of x, or the factor of the kernel.
"""

import itertools
import math

import numpy as np


def conv(x, kernel, bias=None, *, groups, strides, pads, dilation, padding_value=0):
    """The convolution. `padding_value` is a number or the name of a mode of `np.pad`; `pads` are (low, high) pairs."""
    x, kernel = wide(x), wide(kernel)
    padded = pad(x, pads, padding_value)
    output = output_size(padded.shape[-len(pads) - 1 : -1], kernel.shape[: len(pads)], strides, dilation)
    batch = x.shape[: x.ndim - len(pads) - 1]
    y = np.zeros((*batch, *output, kernel.shape[-1]), np.result_type(padded, kernel))
    for sources, tap, j, k in _products(output, kernel.shape, groups, strides, dilation):
        y[..., k] += padded[..., *sources, j] @ kernel[*tap, :, k]
    return y if bias is None else y + wide(bias)


def input_gradient(ct, kernel, x_shape, *, groups, strides, pads, dilation, padding_value=0):
    """The transpose of `conv` in `x`, applied to `ct`: what every product of y receives, sent to the sample it came from.

    With zero padding this is also the transposed convolution, where `x_shape` says how long its result is.
    """
    ct, kernel = wide(ct), wide(kernel)
    rank = len(pads)
    batch, spatial, size = x_shape[: -rank - 1], x_shape[-rank - 1 : -1], int(np.prod(x_shape[-rank - 1 : -1]))
    output = ct.shape[-rank - 1 : -1]
    # Which sample each padded one is a copy of, or -1 for a constant, also where products reach beyond the end.
    origin = pad(np.arange(size).reshape(*spatial, 1), pads, padding_value if isinstance(padding_value, str) else -1)[..., 0]
    reach = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(output, strides, kernel.shape, dilation, strict=False)]
    origin = np.pad(origin, [(0, max(r - n, 0)) for r, n in zip(reach, origin.shape, strict=True)], constant_values=-1)
    images, channels = math.prod(batch), kernel.shape[-2]
    gradient = np.zeros((size + 1, images, x_shape[-1]), np.result_type(ct, kernel))
    for sources, tap, j, k in _products(output, kernel.shape, groups, strides, dilation):
        sent = (ct[..., k] @ kernel[*tap, :, k].T).reshape(images, math.prod(output), channels)
        np.add.at(gradient[..., j], origin[sources].ravel(), sent.swapaxes(0, 1))
    return gradient[:size].swapaxes(0, 1).reshape(x_shape)  # row -1 holds what fell on constants


def kernel_gradient(x, ct, kernel_shape, *, groups, strides, pads, dilation, padding_value=0):
    """The transpose of `conv` in `kernel`, applied to `ct`."""
    x, ct = wide(x), wide(ct)
    padded = pad(x, pads, padding_value)
    gradient = np.zeros(kernel_shape, np.result_type(padded, ct))
    for sources, tap, j, k in _products(ct.shape[-len(pads) - 1 : -1], kernel_shape, groups, strides, dilation):
        read, received = padded[..., *sources, j], ct[..., k]
        gradient[*tap, :, k] += read.reshape(-1, read.shape[-1]).T @ received.reshape(-1, received.shape[-1])
    return gradient


def pad(x, pads, padding_value=0):
    """`np.pad` over the spatial axes, with a number or the name of a mode."""
    width = [(0, 0)] * (x.ndim - len(pads) - 1) + list(pads) + [(0, 0)]
    how = {"mode": padding_value} if isinstance(padding_value, str) else {"constant_values": padding_value}
    return np.pad(x, width, **how)


def output_size(padded, window, strides, dilation):
    """Counts the starts at which the whole window, as it is dilated, lies inside."""
    sizes = []
    for n, k, s, d in zip(padded, window, strides, dilation, strict=True):
        sizes.append(sum(1 for start in range(0, n, s) if start + (k - 1) * d < n))
    return tuple(sizes)


def pairs(padding, spatial, window, strides, dilation):
    """Any form of gconv's `padding` as (low, high) pairs, by the definitions: "same" is searched for, not computed."""
    rank = len(window)
    if isinstance(padding, str):
        make = {"valid": lambda *_: (0, 0), "causal": lambda n, k, s, d: ((k - 1) * d, 0)}
        make |= {"same": _same, "same_lower": lambda *axis: _same(*axis)[::-1]}
        return tuple(make[padding](*axis) for axis in zip(spatial, window, strides, dilation, strict=True))
    if isinstance(padding, int):
        return ((padding, padding),) * rank
    if isinstance(padding[0], int):
        return tuple((p, p) for p in padding) if len(padding) == rank else tuple(zip(padding[::2], padding[1::2], strict=True))
    return tuple(tuple(pair) for pair in padding)


def _same(n, k, s, d):
    """The least total that makes the output ceil(n / stride) long, the odd one at the end."""
    wanted = sum(1 for _ in range(0, n, s))
    total = next(t for t in itertools.count() if output_size((n + t,), (k,), (s,), (d,))[0] >= wanted)
    return total // 2, total - total // 2


def _products(output, kernel_shape, groups, strides, dilation):
    """Every group with every tap: (the padded samples that all outputs read, tap, channels of x, filters)."""
    *window, channels, out_channels = kernel_shape
    filters = out_channels // groups
    for g in range(groups):
        j, k = slice(g * channels, (g + 1) * channels), slice(g * filters, (g + 1) * filters)
        for tap in np.ndindex(*window):
            axes = zip(output, strides, tap, dilation, strict=True)
            yield tuple(slice(t * d, t * d + n * s, s) for n, s, t, d in axes), tap, j, k


def wide(a):
    """float64, or complex128."""
    a = np.asarray(a)
    return a.astype(np.complex128 if a.dtype.kind == "c" else np.float64)
