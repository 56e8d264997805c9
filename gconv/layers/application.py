"""A layer on an input."""

import jax
import jax.numpy as jnp

from gconv import geometry
from gconv.dtypes import wider
from gconv.layers.config import Config
from gconv.op import grouped_conv, grouped_conv_transpose


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


def check_channels(config: Config, in_features: int, kernel) -> None:
    """Parameters that exist already must be those of as many channels as the input has."""
    shape = tuple(kernel.shape)
    made = shape[-1] if config.transposed else shape[-2] * (shape[-1] // config.filters_per_group)
    divides = isinstance(config.groups, str) or made % config.groups == 0
    if made != in_features and divides and config.kernel_shape(made) == shape:
        axes = ", ".join(("depth", "height", "width")[3 - len(config.window) :])
        raise ValueError(
            f"the input has {in_features} channels, and the parameters were made for {made}: `kernel` has shape {shape}. An "
            f"input that works: (*batch, {axes}, {made})."
        )


def apply(config: Config, in_features: int, x, kernel, bias, out_sharding=None, mask=None) -> jax.Array:
    """The layer on an input `(*batch, *spatial, in_features)`."""
    check_input(config, x, in_features)
    if mask is not None:
        kernel = masked(kernel, mask)
    if config.dtype is not None:
        x, kernel = jnp.asarray(x, config.dtype), jnp.asarray(kernel, config.dtype)
        bias = None if bias is None else jnp.asarray(bias, config.dtype)
    common: dict = dict(
        groups=config.split(in_features)[0],
        strides=config.strides,
        padding=config.padding,
        dilation=config.dilation,
        activation=config.activation,
        precision=config.precision,
        implementation=config.implementation,
        preferred_element_type=config.preferred_element_type,
    )
    try:
        if config.transposed:
            y = grouped_conv_transpose(x, kernel, bias, output_padding=config.output_padding, **common)
        else:
            more: dict = dict(padding_value=config.padding_value, input_dilation=config.input_dilation)
            y = grouped_conv(x, kernel, bias, **common, **more)
    except geometry.EmptyOutput as error:
        raise geometry.EmptyOutput(f"{error}{_other_windows(config)}") from None
    return y if out_sharding is None else jax.sharding.reshard(y, out_sharding)


def masked(kernel, mask) -> jax.Array:
    """The kernel that convolves: `kernel * mask`, in the type in which the two meet."""
    check_mask(mask, kernel.shape)
    kernel, mask = jnp.asarray(kernel), jnp.asarray(mask)
    dtype = wider(kernel.dtype, mask.dtype)
    return kernel.astype(dtype) * mask.astype(dtype)


def check_mask(mask, shape) -> None:
    """A mask must have the kernel's shape."""
    given, works = getattr(mask, "shape", None), f"One that works: jnp.ones({tuple(shape)})."
    if given is None:
        raise TypeError(f"`mask` must be an array or None, got {type(mask).__name__}. {works}")
    if tuple(given) != tuple(shape):
        raise ValueError(f"`mask` must have the kernel's shape, {tuple(shape)}, got {tuple(given)}. {works}")
