"""The three roles through `lax.conv_general_dilated`: the reference, available for every dtype on every platform but one.

Each role is written out as one convolution with `feature_group_count` rather than derived with `jax.linear_transpose`:
lax's own kernel gradient goes through `batch_group_count`, which XLA's partitioner gets wrong on a mesh with an unused axis
(the result comes out multiplied by that axis' size), and transposing inside `shard_map` lost a factor too.

An accelerator's libraries know only the kernel gradient that lax itself writes: on an H100 it takes ten times as long with
`feature_group_count` (geometric mean of 24 layers, 2026-11-27). So it is lax's own where XLA's partitioner will never split it.
"""

from dataclasses import replace

import jax.numpy as jnp
from jax import Array, lax

from gconv.backends.convolution import FAR, convolution
from gconv.dtypes import is_narrow, wider
from gconv.geometry import Geometry

SPATIAL = ("", "W", "HW", "DHW")


def why_not(role: str, geometry: Geometry, dtype, platform: str) -> str | None:
    """Integers on CUDA, where XLA takes cuDNN's int8 for what is, or was converted from, int8: grouped results are wrong
    (openxla/xla issue 49123), and other integers are not supported (jax issue 7637)."""
    del role, geometry
    if platform == "cuda" and jnp.issubdtype(dtype, jnp.integer):
        return f"on 'cuda' lax's grouped convolutions of integers are wrong or missing (openxla/xla 49123), got {dtype}"
    return None


def y(x: Array, kernel: Array, geometry: Geometry, **options) -> Array:
    """The convolution: `x (N, *spatial, G*J)`, `kernel (*window, J, G*K)` -> `(N, *output, G*K)`."""
    g, s = geometry, SPATIAL[geometry.rank]
    return _conv(
        x,
        kernel,
        window_strides=g.strides,
        padding=g.padding,
        rhs_dilation=g.dilation,
        dimension_numbers=(f"N{s}C", f"{s}IO", f"N{s}C"),
        feature_group_count=g.groups,
        **options,
    )


def x(y: Array, kernel: Array, geometry: Geometry, **options) -> Array:
    """The transposed convolution: `y (N, *output, G*K)`, `kernel (*window, J, G*K)` -> `(N, *spatial, G*J)`.

    A convolution over `y` with its strides filled by zeros, the window flipped, and channels and filters swapped per group.
    """
    g, s = geometry, SPATIAL[geometry.rank]
    flipped = jnp.flip(kernel, axis=range(g.rank)).reshape(*g.window, g.channels, g.groups, g.filters)
    swapped = flipped.swapaxes(-1, -3).reshape(*g.window, g.filters, g.in_channels)
    padding = tuple(
        (e - 1 - lo, n + lo - _extent(out, stride) if isinstance(n, int) else e - 1 - hi + stride - 1)
        for n, out, (lo, hi), e, stride in zip(g.spatial, g.output, g.padding, g.effective_window, g.strides, strict=True)
    )
    result = _conv(
        y,
        swapped,
        window_strides=(1,) * g.rank,
        padding=padding,
        lhs_dilation=g.strides,
        rhs_dilation=g.dilation,
        dimension_numbers=(f"N{s}C", f"{s}IO", f"N{s}C"),
        feature_group_count=g.groups,
        **options,
    )
    return result if g.is_known else lax.slice(result, (0,) * result.ndim, (y.shape[0], *g.spatial, g.in_channels))


def w(x: Array, y: Array, geometry: Geometry, *, batch_groups: bool = False, **options) -> Array:
    """The kernel gradient: `x (N, *spatial, G*J)`, `y (N, *output, G*K)` -> `(*window, J, G*K)`.

    A convolution whose batch is J, whose window is `y` dilated by the strides, and which sums over the batch as if it were the
    channels of each group; with `batch_groups` lax's own, to which `x` is an image whose batch is its channels.
    """
    g, s = geometry, SPATIAL[geometry.rank]
    if g.is_known and max(g.dilation) >= FAR and max(g.window) > 1:
        return _of_taps_that_meet(x, y, g, batch_groups=batch_groups, **options)
    if not g.is_known:  # the padding below must be numbers: of what the windows reach it is none
        x, g = _reached(x, g)
    if batch_groups:
        by_channel, grouping = x, {"batch_group_count": g.groups}
        numbers = (f"C{s}N", f"I{s}O", f"{s}NC")
    else:
        grouped = x.reshape(x.shape[0], *g.spatial, g.groups, g.channels)
        by_channel = jnp.moveaxis(grouped, (-1, 0), (0, -1)).reshape(g.channels, *g.spatial, g.groups * x.shape[0])
        numbers, grouping = (f"N{s}C", f"I{s}O", f"{s}NC"), {"feature_group_count": g.groups}
    padding = tuple(
        (lo, e - 1 + _extent(out, stride) - n - lo)
        for n, out, (lo, _), e, stride in zip(g.spatial, g.output, g.padding, g.effective_window, g.strides, strict=True)
    )
    return _conv(
        by_channel,
        y,
        window_strides=g.dilation,
        padding=padding,
        rhs_dilation=g.strides,
        dimension_numbers=numbers,
        **grouping,
        **options,
    )


def _of_taps_that_meet(x: Array, y: Array, g: Geometry, **options) -> Array:
    """Role w of the taps that meet any sample of `x`, which lie near each other, among the zeros of those that meet none."""
    taps = []
    for n, out, k, s, d, (lo, _) in zip(g.spatial, g.output, g.window, g.strides, g.dilation, g.padding, strict=True):
        taps.append([t for t in range(k) if any(0 <= o * s + t * d - lo < n for o in range(out))])
    if not all(taps):
        return jnp.zeros(g.kernel_shape, options["dtype"])
    before, after = [t[0] for t in taps], [k - 1 - t[-1] for t, k in zip(taps, g.window, strict=True)]
    near = replace(
        g,
        window=tuple(t[-1] - t[0] + 1 for t in taps),
        padding=tuple((lo - b * d, hi - a * d) for (lo, hi), b, a, d in zip(g.padding, before, after, g.dilation, strict=True)),
        dilation=tuple(d if t[-1] > t[0] else 1 for t, d in zip(taps, g.dilation, strict=True)),
    )
    result = w(x, y, near, **options)
    ends = [(b, a, 0) for b, a in zip(before, after, strict=True)]
    return lax.pad(result, jnp.zeros((), result.dtype), [*ends, (0, 0, 0), (0, 0, 0)])


def _reached(x: Array, g: Geometry) -> tuple[Array, Geometry]:
    """`x` with its padding, without what no window reaches, and the geometry of that."""
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((lo, hi, 0) for lo, hi in g.padding), (0, 0, 0)])
    reached = tuple((n - 1) * s + e for n, s, e in zip(g.output, g.strides, g.effective_window, strict=True))
    x = lax.slice(x, (0,) * x.ndim, (x.shape[0], *reached, x.shape[-1]))
    return x, replace(g, spatial=reached, padding=((0, 0),) * g.rank)


def _extent(outputs: int, stride: int) -> int:
    return (outputs - 1) * stride + 1


def _conv(lhs, rhs, *, dtype, precision, **options):
    operand = wider(lhs.dtype, rhs.dtype)
    # Not narrower than an operand: a cotangent is, with `preferred_element_type`, wider than the gradient it gives.
    wide = wider(operand, jnp.float32 if is_narrow(dtype) else dtype)
    if jnp.issubdtype(wide, jnp.complexfloating):  # lax takes them apart and sums in the operands' precision
        operand = wide
    lhs, rhs = lhs.astype(operand), rhs.astype(operand)
    return convolution(lhs, rhs, precision=precision, preferred_element_type=wide, **options).astype(dtype)
