"""The static facts of one grouped convolution, and every error about them.

Nothing here or in `gconv.options`, which reads the arguments, imports more than the standard library: whatever can be known
from shapes and options alone is decided here, once, into one frozen value. Everything above it may trust that value.

Words used throughout gconv, for a convolution `y = conv(x, kernel)`:

    x       (*batch, *spatial, groups * channels)
    kernel  (*window, channels, groups * filters)
    y       (*batch, *output, groups * filters)

`channels` and `filters` are counted per group, as in MATLAB's NumChannelsPerGroup and NumFiltersPerGroup.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gconv.options import CHANNEL_WISE, Pairs, count, parse_groups, parse_padding, per_axis


class EmptyOutput(ValueError):
    """A window larger than its input; who knows how the window was given can say more."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Static facts of one grouped convolution; hashable, so it can be a primitive's parameter.

    The batch is not among them: any batch size, also a symbolic one, shares a geometry.
    """

    spatial: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Pairs
    dilation: tuple[int, ...]
    groups: int
    channels: int
    filters: int

    @property
    def rank(self) -> int:
        return len(self.window)

    @property
    def effective_window(self) -> tuple[int, ...]:
        return effective_window(self.window, self.dilation)

    @property
    def output(self) -> tuple[int, ...]:
        sizes = ((n + lo + hi - e) // s + 1 for n, (lo, hi), e, s in self._axes())
        # Of a symbolic size nothing is asked: `geometry` has seen to it that the output is not empty.
        return tuple(max(size, 0) if isinstance(size, int) else size for size in sizes)

    @property
    def is_known(self) -> bool:
        """Whether all sizes are numbers, and none is a symbol of `jax.export`."""
        return all(isinstance(n, int) for n in self.spatial)

    def _axes(self):
        return zip(self.spatial, self.padding, self.effective_window, self.strides, strict=True)

    @property
    def in_channels(self) -> int:
        return self.groups * self.channels

    @property
    def out_channels(self) -> int:
        return self.groups * self.filters

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return (*self.window, self.channels, self.out_channels)

    def x_shape(self, batch) -> tuple:
        return (batch, *self.spatial, self.in_channels)

    def y_shape(self, batch) -> tuple:
        return (batch, *self.output, self.out_channels)

    def unpadded(self, spatial: Sequence[int]) -> "Geometry":
        """The same convolution over an input of size `spatial` that has been padded already."""
        return replace(self, spatial=tuple(spatial), padding=((0, 0),) * self.rank)


def split_channels(groups: int | str, channels: int, name: str = "the input channels") -> tuple[int, int]:
    """`(groups, channels per group)` of `channels` channels, with "channel-wise" resolved."""
    if groups == CHANNEL_WISE:
        groups = channels
    assert isinstance(groups, int)
    if groups < 1 or channels < 1 or channels % groups:
        works = [str(d) for d in range(1, channels + 1) if channels % d == 0]
        if len(works) > 16:
            works = [*works[:8], "...", *works[-7:]]
        raise ValueError(
            f"`groups` must divide {name}: {count(channels, 'channel')}, groups={groups}. "
            f"Values that work: {', '.join(works) or 'none, there must be at least one channel'}."
        )
    return groups, channels // groups


# ---------------------------------------------------------------------------------------------------------------------
# Sizes
# ---------------------------------------------------------------------------------------------------------------------


def effective_window(window: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """The extent of a dilated window: `(k - 1) * d + 1`."""
    return tuple((k - 1) * d + 1 for k, d in zip(window, dilation, strict=True))


def resolve_padding(padding: str | Pairs, spatial: Sequence[int], effective: Sequence[int], strides: Sequence[int]) -> Pairs:
    """`(low, high)` per axis; `padding` comes from `parse_padding`.

    "same" makes the output `ceil(input / stride)` long and puts the odd one of the surplus at the end (MATLAB, TensorFlow,
    XLA's SAME); "same_lower" puts it at the start (ONNX's SAME_LOWER); "causal" is all before the first sample.
    """
    if not isinstance(padding, str):
        return padding
    if padding == "valid":
        return ((0, 0),) * len(effective)
    if padding == "causal":
        return tuple((e - 1, 0) for e in effective)
    pairs = []
    for n, e, s in zip(spatial, effective, strides, strict=True):
        total = max((-(-n // s) - 1) * s + e - n, 0)
        small, large = total // 2, total - total // 2
        pairs.append((small, large) if padding == "same" else (large, small))
    return tuple(pairs)


def geometry(
    x_shape: Sequence, kernel_shape: Sequence, *, groups=None, strides=1, padding: object = 0, dilation=1, input_dilation=1
) -> tuple[tuple, Geometry]:
    """The batch axes and the geometry of `grouped_conv(x, kernel, ...)`, or an error that says what is wrong.

    With `input_dilation` it is that of the dilated input: `spatial` counts the zeros between the samples, too.

    Args:
      x_shape: `(*batch, *spatial, C_in)`.
      kernel_shape: `(*window, C_in / groups, C_out)`.
      groups: a positive integer, "channel-wise", or None to read it off the shapes.
      strides, padding, dilation, input_dilation: as in `gconv.grouped_conv`.
    """
    rank = _rank_of_kernel(kernel_shape)
    window = tuple(kernel_shape[:rank])
    strides, dilation = per_axis("strides", strides, rank), per_axis("dilation", dilation, rank)
    batch, spatial, in_channels = _split_shape("x", x_shape, rank)
    channels, out_channels = kernel_shape[rank:]
    groups = _groups_of(groups, in_channels, channels, kernel_shape)
    filters = _filters_of(groups, kernel_shape)
    effective = effective_window(window, dilation)
    factors = per_axis("input_dilation", input_dilation, rank)
    spatial = tuple((n - 1) * f + 1 if f > 1 and n != 0 else n for n, f in zip(spatial, factors, strict=True))
    pairs = resolve_padding(parse_padding(padding, rank), spatial, effective, strides)
    result = Geometry(spatial, window, strides, pairs, dilation, groups, channels, filters)
    _check_output(result, factors)
    return batch, result


def transposed_twin(g: Geometry, factors: Sequence[int]) -> Geometry:
    """The convolution whose input gradient is a convolution `g` without strides over an input dilated by `factors`.

    The gradient reads the kernel from its filters to its channels and from the last tap to the first. The padding p of `g`
    crops it by `effective window - 1 - p`. At the high end `factor` amounts of padding have the same windows: the first that
    does not crop, if there is one.
    """
    assert max(g.strides) == 1
    ends = [(e - 1 - lo, e - 1 - hi) for e, (lo, hi) in zip(g.effective_window, g.padding, strict=True)]
    pairs = tuple((lo, max(hi, min(hi + f - 1, 0))) for (lo, hi), f in zip(ends, factors, strict=True))
    return Geometry(g.output, g.window, tuple(factors), pairs, g.dilation, g.groups, g.filters, g.channels)


def transposed_geometry(
    y_shape: Sequence,
    kernel_shape: Sequence,
    *,
    groups,
    strides=1,
    padding: object = 0,
    dilation=1,
    output_padding: object = 0,
) -> tuple[tuple, Geometry]:
    """The batch axes and the geometry of the convolution that `grouped_conv_transpose(y, kernel, ...)` transposes.

    Its `spatial` is the size of the result: `(n - 1) * stride - low - high + effective window + output_padding`.
    """
    rank = _rank_of_kernel(kernel_shape)
    window = tuple(kernel_shape[:rank])
    strides, dilation = per_axis("strides", strides, rank), per_axis("dilation", dilation, rank)
    extra = per_axis("output_padding", output_padding, rank, minimum=0)
    batch, output, out_channels = _split_shape("y", y_shape, rank)
    channels, kernel_out = kernel_shape[rank:]
    if kernel_out != out_channels:
        raise ValueError(
            f"`kernel` must have as many output channels (its last axis) as `y` has channels: y.shape={tuple(y_shape)} has "
            f"{out_channels}, kernel.shape={tuple(kernel_shape)} has {kernel_out}. "
            f"A kernel shape that works: {(*window, channels, out_channels)}."
        )
    groups, filters = split_channels(parse_groups(groups), out_channels, "the channels of `y`")
    effective = effective_window(window, dilation)
    parsed = parse_padding(padding, rank)
    check_output_padding(extra, strides, dilation, parsed)
    if parsed in ("same", "same_lower"):
        spatial = tuple(n * s for n, s in zip(output, strides, strict=True))
        pairs = resolve_padding(parsed, spatial, effective, strides)
    else:
        pairs = resolve_padding(parsed, output, effective, strides)
        spatial = tuple(
            (n - 1) * s - lo - hi + e + op
            for n, s, (lo, hi), e, op in zip(output, strides, pairs, effective, extra, strict=True)
        )
        # Rows beyond a whole stride belong to no window: a negative high padding keeps the convolution from counting one.
        pairs = tuple((lo, hi - op) if op >= s else (lo, hi) for (lo, hi), op, s in zip(pairs, extra, strides, strict=True))
    if any(n < 1 for n in output):
        raise ValueError(f"`y` must have spatial axes of at least 1, got shape {tuple(y_shape)}.")
    if any(n < 1 for n in spatial):
        raise EmptyOutput(
            f"The result would be empty: spatial size {spatial} from y.shape={tuple(y_shape)}, window={window}, "
            f"strides={strides}, padding={pairs}, dilation={dilation}. A value that works: padding=0."
        )
    result = Geometry(spatial, window, strides, pairs, dilation, groups, channels, filters)
    if result.output != output:
        raise ValueError(f"no convolution of size {spatial} gives an output of size {output}: {result}.")
    return batch, result


def check_output_padding(
    output_padding: Sequence[int], strides: Sequence[int], dilation: Sequence[int], padding: str | Pairs
) -> None:
    """`output_padding` must be smaller than the stride or the dilation, and 0 where the padding fixes the size."""
    if padding in ("same", "same_lower") and any(output_padding):
        raise ValueError(
            f'`output_padding` must be 0 with padding="{padding}", which makes the result spatial * strides long: got '
            f"{list(output_padding)}. Give the padding as numbers to choose the size."
        )
    for i, (op, s, d) in enumerate(zip(output_padding, strides, dilation, strict=True)):
        if op and op >= max(s, d):
            raise ValueError(
                f"`output_padding[{i}]` must be smaller than the stride or the dilation: got output_padding={op}, "
                f"strides={s}, dilation={d}. Values that work: 0 to {max(s, d) - 1}."
            )


def check_bias(shape: Sequence, channels: int, groups: int) -> None:
    if tuple(shape) != (channels,):
        raise ValueError(
            f"`bias` must have one entry per output channel, shape ({channels},), got {tuple(shape)}. MATLAB's Bias "
            f"(1, 1, {channels // groups}, {groups}) converts with gconv.interop.bias_from_matlab."
        )


# ---------------------------------------------------------------------------------------------------------------------


def _rank_of_kernel(kernel_shape: Sequence) -> int:
    rank = len(kernel_shape) - 2
    if not 1 <= rank <= 3:
        raise ValueError(
            "`kernel` must have shape (*window, channels per group, output channels) with 1, 2 or 3 window axes, "
            f"got shape {tuple(kernel_shape)}. A shape that works in 2-D: (3, 3, 1, 8). "
            "(MATLAB's (h, w, c, f, g) converts with gconv.interop.kernel_from_matlab.)"
        )
    if 0 in kernel_shape:
        raise ValueError(f"`kernel` must have no axis of size zero, got shape {tuple(kernel_shape)}.")
    return rank


def _split_shape(name: str, shape: Sequence, rank: int) -> tuple[tuple, tuple, int]:
    if len(shape) < rank + 1:
        raise ValueError(
            f"`{name}` must have shape (*batch, *spatial, channels): the kernel has {count(rank, 'window axis')}, so `{name}` "
            f"needs at least {rank + 1} axes, got shape {tuple(shape)}. "
            f"A shape that works: {(1, *(32,) * rank, shape[-1] if shape else 8)}."
        )
    cut = len(shape) - rank - 1
    return tuple(shape[:cut]), tuple(shape[cut:-1]), shape[-1]


def _groups_of(groups, in_channels: int, channels: int, kernel_shape: Sequence) -> int:
    """The number of groups, checked against the kernel or read off the shapes."""
    if groups is None:
        if in_channels < 1:
            raise ValueError(f"`x` must have at least one channel, {channels} for a kernel of shape {tuple(kernel_shape)}.")
        if in_channels % channels:
            nearest = in_channels // math.gcd(channels, in_channels)
            raise ValueError(
                f"`kernel` has {count(channels, 'channel')} per group (kernel.shape[-2]), which does not divide the "
                f"{count(in_channels, 'channel')} of `x`. "
                f"A kernel shape that works: {_fitting(kernel_shape, nearest, in_channels)}."
            )
        return in_channels // channels
    groups, expected = split_channels(parse_groups(groups), in_channels)
    if expected != channels:
        own = in_channels // channels
        fitting = f" groups={own} would fit it." if own * channels == in_channels and kernel_shape[-1] % own == 0 else ""
        raise ValueError(
            f"`kernel` contradicts `groups`: {count(in_channels, 'channel')} in groups={groups} make {expected} per group, "
            f"but kernel.shape={tuple(kernel_shape)} has {channels}. "
            f"A kernel shape that works: {_fitting(kernel_shape, groups, in_channels)}.{fitting}"
        )
    return groups


def _filters_of(groups: int, kernel_shape: Sequence) -> int:
    *_, channels, out_channels = kernel_shape
    if out_channels % groups:
        raise ValueError(
            f"`kernel` must have a multiple of {groups} output channels, one or more for each of groups={groups}: "
            f"kernel.shape={tuple(kernel_shape)} has {out_channels}. "
            f"A kernel shape that works: {_fitting(kernel_shape, groups, groups * channels)}."
        )
    return out_channels // groups


def _fitting(kernel_shape: Sequence, groups: int, in_channels: int) -> tuple:
    """A kernel's shape for so many groups and input channels, with at least as many output channels."""
    return (*kernel_shape[:-2], in_channels // groups, -(-kernel_shape[-1] // groups) * groups)


def _check_output(g: Geometry, factors: Sequence[int]) -> None:
    for i, (n, (lo, hi), e, out, f) in enumerate(
        zip(g.spatial, g.padding, g.effective_window, g.output, factors, strict=True)
    ):
        if not isinstance(out, int):
            _check_symbolic_output(i, n, e - lo - hi, out)
        elif out < 1:
            missing = max(e - n - lo - hi, 1)
            least = -(-(max(e - lo - hi, 1) - 1) // f) + 1
            size = f"{n} (dilated by {f})" if f > 1 else n
            raise EmptyOutput(
                f"The output would be empty along spatial axis {i}: input size {size} with padding ({lo}, {hi}) is smaller "
                f"than the effective window {e} (window {g.window[i]}, dilation {g.dilation[i]}). "
                f"Values that work: at least {missing} more padding, or an input of at least {least}."
            )


def _check_symbolic_output(axis: int, size, least, output) -> None:
    try:
        empty = output < 1
    except Exception:  # JAX's InconclusiveDimensionOperation
        empty = True
    if empty:
        raise ValueError(
            f"The output may be empty along spatial axis {axis}, whose size {size} is symbolic: it must be known "
            f"to be at least {least}. A value that works: jax.export.symbolic_shape(..., constraints=['{size} >= {least}'])."
        )
