"""What the Flax shells share: the configuration of a layer, its initial values, its application, its display.

No Flax here. A shell turns its arguments into a `Config`, stores the parameters in its framework's way, and calls `apply`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gconv import backends, geometry, initializers, options
from gconv.layout import bias_from_per_group, kernel_from_per_group
from gconv.op import grouped_conv, grouped_conv_transpose, result_dtype


@dataclass(frozen=True)
class Config:
    """The options of a layer, checked and in canonical form; hashable."""

    window: tuple[int, ...]
    filters_per_group: int
    groups: int | str
    strides: tuple[int, ...]
    padding: str | options.Pairs
    dilation: tuple[int, ...]
    padding_value: complex | str = 0
    output_padding: tuple[int, ...] = ()
    transposed: bool = False
    use_bias: bool = True
    channels_per_group: int | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    implementation: str | None = None
    integer_window: bool = False  # whether `kernel_size` was one integer, which Flax's users mean in 1-D

    @property
    def padding_mode(self) -> str:
        """ "manual", or the name that fixes the padding when the input is known."""
        return self.padding if isinstance(self.padding, str) else "manual"

    @property
    def padding_size(self) -> tuple[int, ...] | None:
        """Low and high of each axis in turn (MATLAB's [t b l r]), or None where it depends on the input's size."""
        if self.padding in ("same", "same_lower") and any(s > 1 for s in self.strides):
            return None
        effective = geometry.effective_window(self.window, self.dilation)
        # At stride 1 "same" does not depend on the input's size, so any size tells it.
        pairs = geometry.resolve_padding(self.padding, effective, effective, self.strides)
        return tuple(p for pair in pairs for p in pair)

    def split(self, in_features: int) -> tuple[int, int]:
        """`(groups, channels per group)` of an input with `in_features` channels."""
        groups, channels = geometry.split_channels(self.groups, in_features)
        if self.channels_per_group not in (None, channels):
            raise ValueError(
                f"`num_channels_per_group` contradicts `groups`: {in_features} channels in groups={groups} make {channels}, "
                f"got {self.channels_per_group}. Values that work: {channels}, or None to derive it."
            )
        return groups, channels

    def kernel_shape(self, in_features: int) -> tuple[int, ...]:
        groups, channels = self.split(in_features)
        if self.transposed:  # the kernel of the convolution that is transposed: its input channels are our filters
            return (*self.window, self.filters_per_group, in_features)
        return (*self.window, channels, self.out_features(in_features))

    def out_features(self, in_features: int) -> int:
        return self.split(in_features)[0] * self.filters_per_group

    def stack_of(self, kernel_shape: tuple[int, ...], in_features: int) -> tuple[int, ...]:
        """The axes in front of one layer's, where `nnx.vmap` or `nnx.scan` made a stack of layers; () of one layer."""
        own = self.kernel_shape(in_features)
        if tuple(kernel_shape[-len(own) :]) != own:
            raise ValueError(
                f"`kernel` must have shape {own}, or with the axes of a stack of layers in front of it: got "
                f"{tuple(kernel_shape)}. Of nnx.vmap and nnx.scan, an axis that works: 0."
            )
        return tuple(kernel_shape[: -len(own)])


def configure(
    kernel_size,
    filters_per_group,
    groups,
    *,
    strides=1,
    padding=0,
    dilation=1,
    padding_value=0,
    output_padding=0,
    transposed: bool = False,
    num_channels_per_group=None,
    use_bias: bool = True,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    precision=None,
    implementation: str | None = None,
) -> Config:
    """The arguments of a layer as a `Config`, or an error at construction that says what is wrong."""
    window = options.window_of(kernel_size)
    rank = len(window)
    backends.check_name(implementation)
    dtype, param_dtype = _inexact("dtype", dtype), _inexact("param_dtype", param_dtype)
    precision = tuple(precision) if isinstance(precision, list) else precision
    result_dtype(jnp.dtype("float32"), precision, None)  # refuses a precision that lax does not know
    if not isinstance(use_bias, bool):
        raise TypeError(f"`use_bias` must be True or False, got {use_bias!r}.")
    strides, dilation = options.per_axis("strides", strides, rank), options.per_axis("dilation", dilation, rank)
    padding = options.parse_padding(padding, rank)
    output_padding = options.per_axis("output_padding", output_padding, rank, minimum=0)
    geometry.check_output_padding(output_padding, strides, dilation, padding)
    auto = num_channels_per_group in (None, "auto")
    return Config(
        window=window,
        filters_per_group=options.integer("filters_per_group", filters_per_group, 1),
        groups=options.parse_groups(groups),
        strides=strides,
        padding=padding,
        dilation=dilation,
        padding_value=options.parse_padding_value(padding_value),
        output_padding=output_padding,
        transposed=transposed,
        use_bias=use_bias,
        channels_per_group=None if auto else options.integer("num_channels_per_group", num_channels_per_group, 1),
        dtype=dtype,
        param_dtype=param_dtype,
        precision=precision,
        implementation=implementation,
        integer_window=not options.is_list(kernel_size),
    )


def reconfigured(config: Config, name: str, value) -> Config:
    """The configuration with one argument of the layer given anew, checked as at construction."""
    given = {field.name: getattr(config, field.name) for field in fields(config)}
    given["kernel_size"], given["num_channels_per_group"] = given.pop("window"), given.pop("channels_per_group")
    integer_window = given.pop("integer_window")
    return replace(configure(**given | {name: value}), integer_window=integer_window)


def _inexact(name: str, dtype):
    if dtype is None and name == "dtype":
        return None
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if dtype is None or found is None or not jnp.issubdtype(found, jnp.inexact):
        raise TypeError(f"`{name}` must be a floating or complex dtype, got {dtype!r}. A value that works: jnp.float32.")
    return found


# --- initial values --------------------------------------------------------------------------------------------------


def kernel_initializer(init, config: Config, in_features: int) -> Callable:
    """`kernel_init` in any of its forms as a function `(key, shape, dtype)`, checked against the layer."""
    shape, (groups, _) = config.kernel_shape(in_features), config.split(in_features)
    per_group = (*shape[:-1], shape[-1] // groups, groups)
    if not _is_array(init):
        return _initializer("kernel_init", init, initializers.KERNEL, groups, config.transposed)
    value = kernel_from_per_group(init) if init.shape == per_group else init
    return _constant("kernel_init", value, shape, f"{shape}, or per group {per_group}", init.shape)


def bias_initializer(init, config: Config, in_features: int) -> Callable:
    """`bias_init` in any of its forms as a function `(key, shape, dtype)`, checked against the layer."""
    groups, filters = config.split(in_features)[0], config.filters_per_group
    ones = (1,) * len(config.window)
    if _is_array(init):
        is_per_group = init.ndim > 1 and init.shape in ((filters, groups), (*ones, filters, groups))
        value = bias_from_per_group(init) if is_per_group else init
        shape = (groups * filters,)
        return _constant("bias_init", value, shape, f"{shape}, or per group {(*ones, filters, groups)}", init.shape)
    function = _initializer("bias_init", init, initializers.BIAS, groups)
    if not isinstance(function, initializers.PerGroup):
        return function
    # A scheme speaks MATLAB's size (1, 1, filters, groups): a kernel whose window and channels are 1.
    return lambda key, shape, dtype: function(key, (*ones[1:], 1, *shape), dtype).reshape(shape)


def _initializer(name: str, init, named: Mapping[str, Callable], groups: int, transposed: bool = False) -> Callable:
    if isinstance(init, str):
        if init.lower() not in named:
            known = ", ".join(f'"{n}"' for n in named)
            raise ValueError(f"`{name}` must be one of {known}, a function (key, shape, dtype) or an array, got {init!r}.")
        init = named[init.lower()]()
    if not callable(init):
        raise TypeError(
            f"`{name}` must be a name, a function (key, shape, dtype) or an array, got {init!r} of type {type(init).__name__}."
        )
    if isinstance(init, initializers.PerGroup):
        return init.within(groups, transposed)

    def checked(key, shape, dtype):
        value = init(key, shape, dtype)
        if callable(value) and not hasattr(value, "shape"):
            raise TypeError(f"`{name}` returned a function: call it first, as in jax.nn.initializers.he_normal().")
        if getattr(value, "shape", shape) != tuple(shape):
            raise ValueError(f"`{name}` must return an array of shape {tuple(shape)}, got {value.shape}.")
        return value

    return checked


def _constant(name: str, value, shape: tuple, expected: str, given: tuple) -> Callable:
    if tuple(value.shape) != shape:
        raise ValueError(f"`{name}` as an array must have shape {expected}; got {tuple(given)}.")
    # A copy: the layer's parameter may be donated or updated, the caller's array must not notice.
    return lambda key, shape, dtype: jnp.array(value, dtype, copy=True)


def _is_array(value) -> bool:
    return hasattr(value, "shape") and hasattr(value, "ndim")


# --- application -----------------------------------------------------------------------------------------------------


def check_input(config: Config, x, in_features: int | None = None) -> None:
    """The input must be an array with the axes and, where they are known, the channels of the layer."""
    if not hasattr(x, "shape"):
        raise TypeError(f"the input must be an array, got {type(x).__name__}. jax.numpy.asarray makes one.")
    rank, shape = len(config.window), tuple(x.shape)
    if len(shape) < rank + 1 or shape[-1] != (in_features or shape[-1]):
        spatial = {1: "length", 2: "height, width", 3: "depth, height, width"}[rank]
        built = f"in_features={in_features} and " if in_features else ""
        raise ValueError(
            f"the input must have shape (*batch, {spatial}, {in_features or 'channels'}), channels last: the layer was built "
            f"for {built}kernel_size={config.window}, got shape {shape}.{_other_windows(config)}"
        )
    if config.integer_window and len(shape) == rank + 1:
        raise ValueError(
            f"the input of shape {shape} would be one image of {shape[0]} x {shape[1]}, without a batch."
            f"{_other_windows(config)} For one image: x[None], or kernel_size={config.window}."
        )


def _other_windows(config: Config) -> str:
    """What to write where one integer was meant as another window than the square that it is."""
    if not config.integer_window:
        return ""
    k = config.window[0]
    return (
        f" An integer `kernel_size` is a square window, {config.window}: for 1-D data kernel_size={(k,)}, for 3-D data "
        f"kernel_size={(k,) * 3}."
    )


def apply(config: Config, in_features: int, x, kernel, bias, out_sharding=None) -> jax.Array:
    """The layer on an input `(*batch, *spatial, in_features)`."""
    check_input(config, x, in_features)
    if config.dtype is not None:
        x, kernel = jnp.asarray(x, config.dtype), jnp.asarray(kernel, config.dtype)
        bias = None if bias is None else jnp.asarray(bias, config.dtype)
    common: dict = dict(
        groups=config.split(in_features)[0],
        strides=config.strides,
        padding=config.padding,
        dilation=config.dilation,
        precision=config.precision,
        implementation=config.implementation,
    )
    try:
        if config.transposed:
            y = grouped_conv_transpose(x, kernel, bias, output_padding=config.output_padding, **common)
        else:
            y = grouped_conv(x, kernel, bias, padding_value=config.padding_value, **common)
    except geometry.EmptyOutput as error:
        raise geometry.EmptyOutput(f"{error}{_other_windows(config)}") from None
    return y if out_sharding is None else jax.sharding.reshard(y, out_sharding)


# --- display ---------------------------------------------------------------------------------------------------------


def describe(layer, params: Mapping | None = None) -> str:
    """MATLAB's listing of a gconv layer.

    Args:
      layer: a `GroupedConv` or `GroupedConvTranspose` of `gconv.nnx` or `gconv.linen`.
      params: for a Linen layer, whose parameters live outside it, its `{"kernel": ..., "bias": ...}`.
    """
    c: Config = layer.config
    params = params or {name: getattr(layer, name, None) for name in ("kernel", "bias")}
    groups = c.groups
    weights = params.get("kernel")
    if weights is not None and isinstance(groups, str):
        groups = weights.shape[-1] // (1 if c.transposed else c.filters_per_group)
    channels: Any = c.channels_per_group or "auto"
    if weights is not None:
        channels = weights.shape[-1] // groups if c.transposed else weights.shape[-2]
    hyper = {
        "FilterSize": c.window,
        "NumGroups": groups,
        "NumChannelsPerGroup": channels,
        "NumFiltersPerGroup": c.filters_per_group,
        "Stride": c.strides,
        "DilationFactor": c.dilation,
        "PaddingMode": c.padding_mode,
        "PaddingSize": c.padding_size or (),
    }
    if c.transposed:
        hyper["OutputPadding"] = c.output_padding
    elif c.padding_value != 0:
        hyper["PaddingValue"] = c.padding_value
    sizes = {name: _per_group_size(name, params.get(key), groups, c.window) for name, key in _LEARNABLE.items()}
    width = max(map(len, hyper)) + 3

    def rows(values: dict) -> str:
        return "\n".join(f"{name:>{width}}: {_matlab(value)}" for name, value in values.items())

    kind = f"{'Transposed' if c.transposed else ''}GroupedConvolution{len(c.window)}DLayer"
    return (
        f"{kind} with properties:\n\n{rows({'Name': getattr(layer, 'name', None) or ''})}\n\n"
        f"   Hyperparameters\n{rows(hyper)}\n\n   Learnable Parameters\n{rows(sizes)}\n"
    )


_LEARNABLE = {"Weights": "kernel", "Bias": "bias"}


def _per_group_size(name: str, value, groups, window: tuple[int, ...]):
    """MATLAB's size of one layer's parameter, and how many a stack of layers has: `5 x [3x3x2x4x2 single]`."""
    if value is None:
        return ()
    kind = {"float32": "single", "float64": "double"}.get(str(value.dtype), str(value.dtype))
    axes = len(window) + 2 if name == "Weights" else 1
    stack, own = value.shape[:-axes], value.shape[-axes:]
    front = own[:-1] if name == "Weights" else (1,) * len(window)
    size = (*front, own[-1] // groups, groups)
    if name == "Weights" and own[: len(window)] != window:  # stacked along another axis than the first: as it is
        stack, size = (), value.shape
    times = "x".join
    return _Size(f"{times(map(str, stack))} x [{times(map(str, size))} {kind}]".removeprefix(" x "))


class _Size(str):
    """Shown without quotes."""


def _matlab(value) -> str:
    if isinstance(value, tuple):
        return f"[{' '.join(map(str, value))}]"
    return f"'{value}'" if isinstance(value, str) and not isinstance(value, _Size) else str(value)
