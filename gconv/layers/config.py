"""The options of a layer, checked and in canonical form."""

from dataclasses import dataclass, fields, replace
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from gconv import backends, geometry, options
from gconv.op import result_dtype


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
