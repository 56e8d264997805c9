"""How a convolution of lax is read: as one role of one geometry.

Whatever its layout and its options, `conv_general_dilated` computes, for each group g, with a window that slides over `lhs`,

    out[b, position, g, k] = sum over c and taps of  lhs[b, position meets tap, g, c] * rhs[tap, c, g, k]

which is symmetric in more ways than its name says. With T(x, w, y) = <y, conv(x, w)> of `gconv.roles` it is

    reading   lhs is       rhs is        out is       needs                   images   sums over
    "y"       x            w             y            no lhs_dilation         b        c, taps
    "x"       y            w, turned     x            strides of 1            b        c, taps
    "w"       x            y             w            no lhs_dilation         c        c, taps
    "w'"      y            x             w, turned    no rhs_dilation         c        c, taps

The first two are a convolution and its transpose. The last two are kernel gradients: c counts their images, the result is their
window, and `rhs`, which is the window in lax's words, is as large as an image. The derivatives that lax's own rules make of a
convolution are of all four kinds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gconv.geometry import Geometry, effective_window


@dataclass(frozen=True, slots=True)
class Equation:
    """The options of a `conv_general_dilated`, with numbers for the padding, and the shapes of its operands; hashable."""

    lhs_shape: tuple
    rhs_shape: tuple
    window_strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    dimension_numbers: lax.ConvDimensionNumbers
    feature_group_count: int = 1
    batch_group_count: int = 1


@dataclass(frozen=True, slots=True)
class Reading:
    """What an equation computes: `role` of `geometry`, and how its arrays become the role's and back; hashable.

    Attributes:
      swapped: whether `lhs` is the role's second operand, as in the reading "w'".
    """

    role: str
    geometry: Geometry
    equation: Equation
    swapped: bool = False

    def operands(self, lhs: Array, rhs: Array) -> dict[str, Array]:
        """The operands of the role, channels last."""
        g = self.geometry
        images_are_channels = self.role == "w"
        split = _split(lhs, self.equation.dimension_numbers.lhs_spec, self._groups_in_batch, g.groups)
        order = ("c", "s", "g", "b") if images_are_channels else ("b", "s", "g", "c")
        first = _merged(split, order)
        rhs_spec = self.equation.dimension_numbers.rhs_spec
        if self.role == "x":
            rhs = jnp.flip(rhs, rhs_spec[2:])  # at once, so that XLA sees the other flip in lax's input gradient
        split = _split_kernel(rhs, rhs_spec, g.groups)
        if self.role == "w":
            second = _merged(split, ("c", "s", "g", "k"))
            return {"y": first, "x": second} if self.swapped else {"x": first, "y": second}
        if self.role == "y":
            return {"x": first, "w": _merged(split, ("s", "c", "g", "k"))}
        return {"y": first, "w": _merged(split, ("s", "k", "g", "c"))}

    def result(self, value: Array) -> Array:
        """The equation's result from the role's."""
        g, (batch, feature, *spatial) = self.geometry, self.equation.dimension_numbers.out_spec
        if self.swapped:
            split = jnp.flip(value, range(g.rank)).reshape(*g.window, g.channels, g.groups, g.filters)
            moved = split.transpose(g.rank + 2, g.rank + 1, g.rank, *range(g.rank))  # b, g, k, window
            value = moved.reshape(g.filters, -1, *g.window)
        elif self.role == "w":
            value = value.transpose(g.rank, g.rank + 1, *range(g.rank))  # b, groups and k as they lie, window
        else:
            value = jnp.moveaxis(value, -1, 1)
        return value.transpose(np.argsort((batch, feature, *spatial)))

    @property
    def batch(self) -> int:
        """How many images the role has."""
        batch, feature, *_ = self.equation.dimension_numbers.lhs_spec
        if self.role == "w":
            return self.equation.lhs_shape[feature] // self.equation.feature_group_count
        return self.equation.lhs_shape[batch] // self.equation.batch_group_count

    @property
    def _groups_in_batch(self) -> bool:
        return self.equation.batch_group_count > 1


def read(equation: Equation) -> Reading | str:
    """The reading of an equation that lax accepts, or why it has none.

    Where it has several, they form the same products. It is a kernel gradient only if its window is larger than its result
    (with groups of the batch, at least as large), which is the window of that gradient: the smaller one is to be the window.
    With groups of features it is a convolution whenever it can be one. Without groups it is first of all the reading in which
    fewer numbers have to change places.
    """
    e = equation
    rank = len(e.lhs_shape) - 2
    if not 1 <= rank <= 3:
        return f"{rank} spatial axes, gconv has 1, 2 or 3"
    if any(len(values) != rank for values in (e.window_strides, e.padding, e.lhs_dilation, e.rhs_dilation)):
        return f"options that do not fit {rank} spatial axes"
    batch = e.lhs_shape[e.dimension_numbers.lhs_spec[0]]
    known = [n for i, n in enumerate(e.lhs_shape) if i != e.dimension_numbers.lhs_spec[0]]
    numbers = (*known, *e.rhs_shape, *e.window_strides, *e.lhs_dilation, *e.rhs_dilation)
    if not all(isinstance(n, (int, np.integer)) for n in (*numbers, *(p for pair in e.padding for p in pair))):
        return "sizes that are not known, gconv needs numbers"
    if min(numbers) < 1 or min(_output(e)) < 1 or (isinstance(batch, int) and batch < 1):
        return "nothing to compute, an operand or the result is empty"
    convolution = _as_convolution(e)
    if not isinstance(batch, int):  # symbolic: a batch may be, what a gradient has for channels may not
        unknown = "a batch of unknown size that is no batch of a convolution"
        return unknown if convolution is None or e.batch_group_count > 1 else convolution
    gradient = _as_w(e) if max(e.lhs_dilation) == 1 else _as_w_turned(e) if max(e.rhs_dilation) == 1 else None
    larger = math.prod(_window(e)) > math.prod(_output(e))
    if convolution is None:
        return (
            gradient
            if gradient and larger
            else (
                f"lhs_dilation={e.lhs_dilation} with window_strides={e.window_strides} and rhs_dilation={e.rhs_dilation}, "
                "which is neither a convolution nor a gradient of one"
            )
        )
    if gradient is None or e.feature_group_count > 1:
        return convolution
    if e.batch_group_count > 1:
        return gradient if larger or _window(e) == _output(e) else convolution
    as_convolution = _numbers_moved(e, ("b", "s", "c"), _KERNEL_ORDER[convolution.role])
    as_gradient = _numbers_moved(e, ("c", "s", "b"), ("c", "s", "k"))
    if as_convolution != as_gradient:
        return convolution if as_convolution < as_gradient else gradient
    return gradient if larger else convolution


def of_matrix_product(pixels: Sequence[int], channels: int, filters: int) -> tuple[int, Geometry]:
    """`x @ matrix` of an `x (*pixels, channels)` as a convolution whose window is one pixel: its batch, and its geometry.

    Up to three axes are an image's, the last ones; those before them are the batch. A single one is an image's.
    """
    rank = min(max(len(pixels) - 1, 1), 3)
    ones = (1,) * rank
    return math.prod(pixels[:-rank]), Geometry(tuple(pixels[-rank:]), ones, ones, ((0, 0),) * rank, ones, 1, channels, filters)


# --- the four readings -------------------------------------------------------------------------------------------------

_KERNEL_ORDER = {"y": ("s", "c", "k"), "x": ("s", "k", "c")}


def _as_convolution(e: Equation) -> Reading | None:
    """As "y" or "x". One that can be both is "y", unless the kernel lies in memory as "x" takes it: so it does in the input
    gradient that lax makes of a convolution without strides, which would have to be transposed in each step of training."""
    may_be_y, may_be_x = max(e.lhs_dilation) == 1, max(e.window_strides) == 1
    if may_be_y and may_be_x:
        may_be_y = _moved_kernel(e, _KERNEL_ORDER["y"]) <= _moved_kernel(e, _KERNEL_ORDER["x"])
    return _as_y(e) if may_be_y else _as_x(e) if may_be_x else None


def _as_y(e: Equation) -> Reading:
    groups, batch, channels, filters = _counts(e)
    sizes = (_input(e), _window(e), e.window_strides, e.padding, e.rhs_dilation)
    return Reading("y", Geometry(*sizes, groups, channels, filters), e)


def _as_x(e: Equation) -> Reading:
    """`lhs` with f - 1 zeros between its samples is the output of a convolution with strides f, and `out` is its input.

    The padding p of `lhs` crops that convolution by e - 1 - p. At the high end f amounts of padding have the same windows: the
    first that does not crop, if there is one.
    """
    groups, batch, channels, filters = _counts(e)
    effective = effective_window(_window(e), e.rhs_dilation)
    ends = [(size - 1 - lo, size - 1 - hi) for (lo, hi), size in zip(e.padding, effective, strict=True)]
    pads = tuple((lo, max(hi, min(hi + f - 1, 0))) for (lo, hi), f in zip(ends, e.lhs_dilation, strict=True))
    sizes = (_output(e), _window(e), e.lhs_dilation, pads, e.rhs_dilation)
    return Reading("x", Geometry(*sizes, groups, filters, channels), e)


def _as_w(e: Equation) -> Reading:
    """`rhs` meets `lhs` at every stride of its own dilation, and the result's positions are the taps."""
    groups, batch, channels, filters = _counts(e)
    low = tuple(lo for lo, _ in e.padding)
    sizes = (_input(e), _output(e), _window(e), e.rhs_dilation, low, e.window_strides)
    return Reading("w", _gradient(groups, batch, filters, *sizes), e)


def _as_w_turned(e: Equation) -> Reading:
    """Sample i of `lhs`, at i * f, meets tap j of `rhs` where i * f = position * stride + j - low: from `rhs`' point of view a
    window that slides by f, whose taps, a stride apart, are the positions from the last to the first."""
    groups, batch, channels, filters = _counts(e)
    pairs = zip(_output(e), e.window_strides, e.padding, strict=True)
    low = tuple((n - 1) * s - lo for n, s, (lo, _) in pairs)
    sizes = (_window(e), _output(e), _input(e), e.lhs_dilation, low, e.window_strides)
    return Reading("w", _gradient(groups, filters, batch, *sizes), e, swapped=True)


def _gradient(groups: int, channels: int, filters: int, spatial, window, output, strides, low, dilation) -> Geometry:
    """A geometry in which the last window ends with the padding."""
    effective = effective_window(window, dilation)
    high = ((out - 1) * s + size - n - lo for n, out, s, lo, size in zip(spatial, output, strides, low, effective, strict=True))
    pads = tuple(zip(low, high, strict=True))
    return Geometry(spatial, window, strides, pads, dilation, groups, channels, filters)


# --- sizes and axes ----------------------------------------------------------------------------------------------------


def _counts(e: Equation) -> tuple[int, int, int, int]:
    """Groups, and per group: what the batch of the result counts, what is summed over, what the features count."""
    (b, c, *_), (k, _, *_) = e.dimension_numbers.lhs_spec, e.dimension_numbers.rhs_spec
    groups = e.feature_group_count * e.batch_group_count
    batch, channels = e.lhs_shape[b] // e.batch_group_count, e.lhs_shape[c] // e.feature_group_count
    return groups, batch, channels, e.rhs_shape[k] // groups


def _input(e: Equation) -> tuple[int, ...]:
    return tuple(e.lhs_shape[i] for i in e.dimension_numbers.lhs_spec[2:])


def _window(e: Equation) -> tuple[int, ...]:
    return tuple(e.rhs_shape[i] for i in e.dimension_numbers.rhs_spec[2:])


def _output(e: Equation) -> tuple[int, ...]:
    effective = effective_window(_window(e), e.rhs_dilation)
    axes = zip(_input(e), e.lhs_dilation, e.padding, effective, e.window_strides, strict=True)
    return tuple(((n - 1) * f + 1 + lo + hi - size) // s + 1 for n, f, (lo, hi), size, s in axes)


def _numbers_moved(e: Equation, lhs_order, rhs_order) -> int:
    """How many numbers have to be copied to give the operands these orders of axes: none where an order is theirs already."""
    return _moved(e.lhs_shape, e.dimension_numbers.lhs_spec, "bc", lhs_order) + _moved_kernel(e, rhs_order)


def _moved_kernel(e: Equation, order) -> int:
    return _moved(e.rhs_shape, e.dimension_numbers.rhs_spec, "kc", order)


def _moved(shape, spec, names: str, order) -> int:
    """`names`: of the first two axes of `spec`; the others are the spatial ones, "s"."""
    place = {names[0]: [spec[0]], names[1]: [spec[1]], "s": [*spec[2:]]}
    wanted = [i for name in order for i in place[name]]
    return 0 if wanted == sorted(wanted) else math.prod(shape)


def _split(lhs: Array, spec, in_batch: bool, groups: int) -> tuple[Array, dict]:
    """`lhs` with its groups as an axis of their own, and where each named axis then is."""
    batch, feature, *spatial = spec
    axis = batch if in_batch else feature
    split = lhs.reshape(*lhs.shape[:axis], groups, lhs.shape[axis] // groups, *lhs.shape[axis + 1 :])
    after = lambda i: i + (i >= axis)  # the axis itself comes behind its groups
    return split, {"b": after(batch), "c": after(feature), "g": axis, "s": [after(i) for i in spatial]}


def _split_kernel(rhs: Array, spec, groups: int) -> tuple[Array, dict]:
    out, channels, *spatial = spec
    split = rhs.reshape(*rhs.shape[:out], groups, rhs.shape[out] // groups, *rhs.shape[out + 1 :])
    after = lambda i: i + (i >= out)
    return split, {"k": after(out), "c": after(channels), "g": out, "s": [after(i) for i in spatial]}


def _merged(split: tuple[Array, dict], order: tuple) -> Array:
    """The axes in the order named, the groups joined to the one behind them."""
    array, place = split
    axes = [i for name in order for i in (place[name] if name == "s" else [place[name]])]
    moved = array.transpose(axes)
    at = axes.index(place["g"])
    return moved.reshape(*moved.shape[:at], -1, *moved.shape[at + 2 :])
