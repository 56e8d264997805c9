"""A layer on an input."""

import jax
import jax.numpy as jnp

from gconv import geometry
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
