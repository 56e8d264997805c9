"""The three roles re-expressed so that XLA's CPU backend compiles them well: no custom call, no compiler at install time.

XLA hands a convolution with `feature_group_count` to a slow path. The same sums, written so that it sees something else:

    products   few channels per group: sum over taps and channels of shifted input times weight. Each source is one input
               channel repeated for the filters that read it, so XLA fuses the whole sum into one vectorized loop.
    dense      wider groups: one ordinary convolution per group, which takes XLA's fast path, and their concatenation.
    matmuls    more groups than a program should hold convolutions, and integers, whose convolutions XLA's GPU backend
               computes wrongly or not at all (openxla/xla issue 49123): one batched matrix product per tap.

Role "x" is role "y" over again: its results fall into one phase per remainder by the strides, and each phase is a
convolution of `y` with every s-th tap of the flipped kernel: no product with the zeros between strides is ever formed.
Role "w" of narrow groups is one reduction that carries many taps at once, so `x` and `y` are read once for all of them.

The padding is the only zero that is ever multiplied: a NaN stays inside the windows that hold it.
"""

import itertools
import math
from dataclasses import replace
from functools import partial, reduce

import jax.numpy as jnp
from jax import Array, lax

from gconv.backends.convolution import FAR, convolution
from gconv.dtypes import accumulator
from gconv.geometry import Geometry

SPATIAL = ("", "W", "HW", "DHW")
# A fused sum of more terms than these gets slower per term, and beyond a hundred XLA stops fusing it (ten times slower).
TERMS = 49
# channels * filters up to which products beat matrix products.
NARROW = 64
# One convolution per group costs about 30 ms of compile time.
GROUPS = 64
# Of the numbers of one image with its padding.
LARGEST = 1 << 31
# One reduction holds this many running sums in registers, and reduces stretches of this many pixels out of the nearest cache.
SUMS, STRETCH = 8, 64


def why_not(role: str, geometry: Geometry, dtype, platform: str) -> str | None:
    """These are ordinary JAX operations; but some of them copy the input with its padding, which must fit into memory."""
    del dtype, platform
    g = geometry
    if not g.is_known:
        return f"it is written out for sizes that are known, got {g.spatial}"
    if role == "w" and max(g.dilation) >= FAR:
        return f"XLA sums wrong pixels at a dilation of {max(g.dilation)}"
    extents = [n + abs(lo) + abs(hi) + e for n, (lo, hi), e in zip(g.spatial, g.padding, g.effective_window, strict=True)]
    if (copied := math.prod(extents) * max(g.in_channels, g.out_channels)) > LARGEST:
        return f"it copies each image with its padding, {copied} numbers, more than 2^31"
    return None


def sums_products(role: str, g: Geometry) -> bool:
    """Whether a role is written as sums of products alone, without a convolution or matrix product."""
    if role == "w":
        return g.channels == 1
    return _by_products(g if role == "y" else replace(g, channels=g.filters, filters=g.channels))


def y(x: Array, kernel: Array, geometry: Geometry, *, dtype, precision, opaque: bool = False) -> Array:
    """The convolution: `x (N, *spatial, G*J)`, `kernel (*window, J, G*K)` -> `(N, *output, G*K)`.

    `opaque`, of every role: whether XLA may not look through the padding (`_pad`).
    """
    x, kernel = _widen(dtype, x, kernel)
    return _convolve(x, kernel, geometry, precision, opaque).astype(dtype)


def x(y: Array, kernel: Array, geometry: Geometry, *, dtype, precision, opaque: bool = False) -> Array:
    """The transposed convolution: `y (N, *output, G*K)`, `kernel (*window, J, G*K)` -> `(N, *spatial, G*J)`."""
    g = geometry
    y, kernel = _widen(dtype, y, kernel)
    split = _split(kernel, g.groups)
    swapped = split.swapaxes(-1, -3).reshape(*g.window, g.filters, g.in_channels)
    quotient = tuple(-(-n // s) for n, s in zip(g.spatial, g.strides, strict=True))
    opaque &= max(g.strides) == 1  # otherwise each phase pads y, which XLA fuses with its sums
    phases = [_phase(y, swapped, r, quotient, g, precision, opaque) for r in itertools.product(*map(range, g.strides))]
    return _interleave(phases, g).astype(dtype)


def w(x: Array, y: Array, geometry: Geometry, *, dtype, precision, opaque: bool = False) -> Array:
    """The kernel gradient: `x (N, *spatial, G*J)`, `y (N, *output, G*K)` -> `(*window, J, G*K)`."""
    g = geometry
    x, y = _widen(dtype, x, y)
    if 0 in g.output:
        result = jnp.zeros(g.kernel_shape, x.dtype)
    elif g.channels == 1:
        result = _gradient_by_products(jnp.repeat(_pad(x, g, opaque), g.filters, axis=-1), y, g)
    elif is_dense_gradient(g) and not jnp.issubdtype(x.dtype, jnp.integer):
        result = _gradient_by_dense(x, y, g, precision)
    else:
        result = _gradient_by_matmuls(x, y, g, precision)
    return result.reshape(g.kernel_shape).astype(dtype)


# --- role "y" --------------------------------------------------------------------------------------------------------


def _convolve(x: Array, kernel: Array, g: Geometry, precision, opaque: bool) -> Array:
    if 0 in g.output:
        return jnp.zeros(g.y_shape(x.shape[0]), x.dtype)
    if _by_products(g):
        return _products(x, kernel, g, opaque)
    if g.groups > GROUPS or jnp.issubdtype(x.dtype, jnp.integer):
        return _matmuls(x, kernel, g, precision)
    s = SPATIAL[g.rank]
    numbers = (f"N{s}C", f"{s}IO", f"N{s}C")
    x, kernel = _split(x, g.groups), _split(kernel, g.groups)
    return _per_group(x, kernel, g.strides, g.padding, g.dilation, numbers, precision)


def _by_products(g: Geometry) -> bool:
    """Whether role "y" is unrolled over taps and channels."""
    return g.channels == 1 or (g.channels * g.filters <= NARROW and g.channels * math.prod(g.window[1:]) <= TERMS)


def _products(x: Array, kernel: Array, g: Geometry, opaque: bool) -> Array:
    """Sum over taps and channels of shifted input times weight: unrolled, in a loop over rows of taps where they are many."""
    grouped = _split(_pad(x, g, opaque), g.groups)
    sources = [jnp.repeat(grouped[..., j], g.filters, axis=-1) for j in range(g.channels)]
    rows = max(TERMS // (g.channels * math.prod(g.window[1:])), 1)  # of taps in one fused sum
    first = g.window[0] % rows or min(rows, g.window[0])

    def terms(sources, kernel):
        for tap in _taps(kernel.shape[: g.rank]):
            for source, weights in zip(sources, kernel[tap], strict=True):
                shifted = _shift(source, tap, g)
                yield shifted * jnp.expand_dims(weights, range(shifted.ndim - 1))

    def fetch(i):
        start = first + i * rows
        return [_rows(s, start, rows, g) for s in sources], lax.dynamic_slice_in_dim(kernel, start, rows)

    # The next rows travel in the carry: left inside the body, XLA fuses the dynamic slices into every term, ten times slower.
    def body(i, carry):
        total, (near, weights) = carry
        return sum(terms(near, weights), total), fetch(i + 1)

    total = reduce(jnp.add, terms(sources, kernel[:first]))
    loops = (g.window[0] - first) // rows
    return lax.fori_loop(0, loops, body, (total, fetch(0)))[0] if loops else total


def _matmuls(x: Array, kernel: Array, g: Geometry, precision) -> Array:
    """One matrix product per tap, batched over the groups."""
    kernel = _split(kernel, g.groups)
    x = _split(_pad(x, g), g.groups)
    terms = (jnp.einsum("...gj,jgk->...gk", _shift(x, t, g), kernel[t], precision=precision) for t in _taps(g.window))
    return reduce(jnp.add, terms).reshape(g.y_shape(x.shape[0]))


# --- role "x" --------------------------------------------------------------------------------------------------------
# x[i] sums w[k] y[o] over i + lo = o * s + k * d. Write i = q * s + r: for each remainder r, the taps that count are those
# with k * d = r + lo (mod s), an arithmetic progression from some k0 with step s / gcd(s, d), and o = q + (r + lo - k * d) / s.
# That is a convolution of y with these taps, flipped, dilated by d / gcd(s, d).


def _phase(y: Array, kernel: Array, remainder: tuple, quotient: tuple, g: Geometry, precision, opaque: bool) -> Array:
    """`(N, *quotient, G*J)`: the results at one remainder by the strides; `kernel` has channels and filters swapped."""
    taps, window, padding, dilation = [], [], [], []
    for r, count, k, s, d, (lo, _), out in zip(
        remainder, quotient, g.window, g.strides, g.dilation, g.padding, g.output, strict=True
    ):
        step = s // math.gcd(s, d)
        chosen = [i for i in range(k) if (i * d - r - lo) % s == 0]
        if not chosen:
            return jnp.zeros((y.shape[0], *quotient, g.in_channels), y.dtype)
        taps.append(slice(chosen[-1], chosen[0] - 1 if chosen[0] else None, -step))
        window.append(len(chosen))
        dilation.append(d * step // s)
        low = -((r + lo - chosen[-1] * d) // s)
        padding.append((low, count + (len(chosen) - 1) * dilation[-1] - out - low))
    ones = (1,) * g.rank
    part = Geometry(g.output, tuple(window), ones, tuple(padding), tuple(dilation), g.groups, g.filters, g.channels)
    return _convolve(y, kernel[tuple(taps)], part, precision, opaque)


def _interleave(phases: list[Array], g: Geometry) -> Array:
    """`phases`, ordered as the product of the strides' ranges, to one array of size `spatial`."""
    for axis, s in reversed(list(enumerate(g.strides, start=1))):
        shape = phases[0].shape
        longer = (*shape[:axis], s * shape[axis], *shape[axis + 1 :])
        phases = [jnp.stack(phases[i : i + s], axis + 1).reshape(longer) for i in range(0, len(phases), s)]
    return lax.slice(phases[0], (0,) * phases[0].ndim, (phases[0].shape[0], *g.spatial, g.in_channels))


# --- role "w" --------------------------------------------------------------------------------------------------------


def _gradient_by_products(x: Array, y: Array, g: Geometry) -> Array:
    """Of depthwise: `x` is padded already, and its channels repeated to match those of `y`."""
    if math.prod(g.window) <= TERMS:
        return _tap_sums(x, y, _taps(g.window), g)
    taps = _taps((1, *g.window[1:]))

    def body(near, i):  # the next rows travel in the carry, as in _products
        return _rows(x, i + 1, 1, g), _tap_sums(near, y, taps, g)

    return lax.scan(body, _rows(x, 0, 1, g), jnp.arange(g.window[0]))[1]


def _tap_sums(x: Array, y: Array, taps: list[tuple], g: Geometry) -> Array:
    """`(taps, channels)`: the sum over the batch and the pixels of each shifted `x` times `y`.

    In two stages. The first reduces a stretch of a row for SUMS taps at once, from cache; the second is small.
    """
    pixels = g.output[-1]
    stretch = max(n for n in range(1, min(pixels, STRETCH) + 1) if pixels % n == 0)

    def stretches(a):
        return a.reshape(*a.shape[:-2], pixels // stretch, stretch, a.shape[-1])

    y, sums = stretches(y), []
    for i in range(0, len(taps), SUMS):
        terms = tuple(stretches(_shift(x, tap, g)) * y for tap in taps[i : i + SUMS])
        zeros = (jnp.zeros((), y.dtype),) * len(terms)
        sums += lax.reduce(terms, zeros, lambda a, b: tuple(map(jnp.add, a, b)), (y.ndim - 2,))
    stacked = jnp.stack(sums)
    return stacked.sum(range(1, stacked.ndim - 1))


def _gradient_by_dense(x: Array, y: Array, g: Geometry, precision) -> Array:
    """One kernel gradient of an ordinary convolution per group, itself a convolution that sums over the batch."""
    s = SPATIAL[g.rank]
    padding = tuple(
        (lo, e - 1 + (out - 1) * stride + 1 - n - lo)
        for n, out, (lo, _), e, stride in zip(g.spatial, g.output, g.padding, g.effective_window, g.strides, strict=True)
    )
    x, y = _split(x, g.groups), _split(y, g.groups)
    return _per_group(x, y, g.dilation, padding, g.strides, (f"C{s}N", f"I{s}O", f"{s}NC"), precision)


def is_dense_gradient(g: Geometry) -> bool:
    """Whether a group's kernel gradient is a convolution that XLA does well: not with `y` dilated, nor of one pixel."""
    return g.groups <= GROUPS and math.prod(g.window) > 1 and max(g.strides) == 1


def _gradient_by_matmuls(x: Array, y: Array, g: Geometry, precision) -> Array:
    """One matrix product per tap, batched over the groups."""
    x, y = _split(_pad(x, g), g.groups), _split(y, g.groups)
    spec = "{0}gj,{0}gk->jgk".format("nabc"[: g.rank + 1])
    return jnp.stack([jnp.einsum(spec, _shift(x, tap, g), y, precision=precision) for tap in _taps(g.window)])


# --- shared ----------------------------------------------------------------------------------------------------------


def _per_group(lhs: Array, rhs: Array, strides, padding, dilation, numbers, precision) -> Array:
    """One ordinary convolution per group; the groups are the last axis but one of both operands."""
    conv = partial(
        convolution,
        window_strides=strides,
        padding=padding,
        rhs_dilation=dilation,
        dimension_numbers=numbers,
        precision=precision,
    )
    return jnp.concatenate([conv(lhs[..., i, :], rhs[..., i, :]) for i in range(lhs.shape[-2])], axis=-1)


def _widen(dtype, *operands: Array) -> list[Array]:
    """The operands in the type that the sums are formed in: the widest around, and at least float32 among floats."""
    wide = accumulator(dtype, *(a.dtype for a in operands))
    return [a.astype(wide) for a in operands]


def _split(a: Array, groups: int) -> Array:
    return a.reshape(*a.shape[:-1], groups, a.shape[-1] // groups)


def _pad(x: Array, g: Geometry, opaque: bool = False) -> Array:
    """`x` with its padding; a negative one crops.

    A tap that meets no padding reads, to XLA, `x` itself. So where `x` is elementwise, the sum of another convolution among
    them, XLA computes it twice: for the padded array and within the sum of that tap. Of convolutions that follow each other
    each computes all before it once more. Where the padding is `opaque`, XLA reads the padded array.
    """
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((lo, hi, 0) for lo, hi in g.padding), (0, 0, 0)])
    return lax.optimization_barrier(padded) if opaque and max(map(max, g.padding)) > 0 else padded


def _taps(window: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, window)))


def _shift(x: Array, tap: tuple[int, ...], g: Geometry) -> Array:
    """The pixels of padded `x` that meet `tap`, one for each output."""
    start = tuple(k * d for k, d in zip(tap, g.dilation, strict=True))
    stop = tuple(b + (n - 1) * s + 1 for b, n, s in zip(start, g.output, g.strides, strict=True))
    rest = x.shape[g.rank + 1 :]
    zeros, ones = (0,) * len(rest), (1,) * len(rest)
    return lax.slice(x, (0, *start, *zeros), (x.shape[0], *stop, *rest), (1, *g.strides, *ones))


def _rows(x: Array, first, count: int, g: Geometry) -> Array:
    """The rows of padded `x` that meet `count` rows of taps from `first` on."""
    extent = (count - 1) * g.dilation[0] + (g.output[0] - 1) * g.strides[0] + 1
    return lax.dynamic_slice_in_dim(x, first * g.dilation[0], extent, axis=1)
