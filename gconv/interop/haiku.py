"""Haiku: the parameters `{"w": ..., "b": ...}` of `Conv1D/2D/3D`, `DepthwiseConv1D/2D/3D` and `Conv1D/2D/3DTranspose`.

Haiku's modules live inside `transform` only, so what comes in is the entry of a module in the parameters, and the arguments
that the module was made with.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from gconv.geometry import effective_window
from gconv.interop.convolution import (
    Convolution,
    from_arrays,
    from_gconv,
    no_activation,
    no_mask,
    only_zeros,
    pads_of_dilated,
    with_mask,
)
from gconv.interop.flax import lax_transposed
from gconv.interop.layouts import array, flipped
from gconv.naming import translating
from gconv.options import is_list, per_axis
from gconv.typing import PerAxis


@translating
def from_haiku(
    params: Mapping[str, Any],
    *,
    stride: PerAxis = 1,
    rate: PerAxis = 1,
    padding: Any = "SAME",
    with_bias: bool = True,
    feature_group_count: int | None = None,
    channel_multiplier: int | None = None,
    transposed: bool = False,
    mask: Any = None,
    precision: Any = None,
) -> Convolution:
    """The parameters of one module of Haiku, and its arguments, as a `Convolution`.

    >>> import numpy as np, gconv.interop
    >>> params = {"mobile/depthwise": {"w": np.ones((3, 3, 1, 8)), "b": np.zeros(8)}}
    >>> found = gconv.interop.from_haiku(params["mobile/depthwise"], stride=2, channel_multiplier=1)
    >>> found(np.ones((1, 15, 15, 8))).shape
    (1, 8, 8, 8)

    Args:
      params: the entry of the module, `{"w": ..., "b": ...}`.
      stride, rate, padding, with_bias, feature_group_count: the arguments of `hk.Conv2D` and its like, with the same defaults;
        one channel per group could be one channel in all or depthwise, and needs feature_group_count or channel_multiplier.
      channel_multiplier: that of a `hk.DepthwiseConv2D`; None for another convolution.
      transposed: whether it is a `hk.Conv2DTranspose`, whose size is not given by `output_shape`.
      mask: the argument of `hk.Conv2D` and its like.
      precision: the argument of the module's call.
    """
    if not isinstance(params, Mapping) or "w" not in params:
        there = ", ".join(map(repr, params)) if isinstance(params, Mapping) else type(params).__name__
        raise ValueError(f"`params` must be the entry of one module, with the key 'w': got {there}.")
    if with_bias and "b" not in params:
        raise ValueError("`params` has no 'b'. A module without a bias: with_bias=False.")
    kernel = array("w", params["w"])
    bias = array("b", params["b"]).reshape(-1) if with_bias else None
    rank = kernel.ndim - 2
    if not 1 <= rank <= 3:
        raise ValueError(f"`w` must have shape (*window, in / groups, out) with 1, 2 or 3 window axes, got {kernel.shape}.")
    strides, dilation = per_axis("stride", stride, rank), per_axis("rate", rate, rank)
    effective = effective_window(kernel.shape[:rank], dilation)
    padding = _numbers(padding, effective)
    if transposed:
        if max(dilation) > 1 or feature_group_count not in (None, 1) or channel_multiplier is not None:
            raise ValueError("the transposed convolutions of Haiku have neither `rate` nor groups.")
        options: dict[str, Any] = dict(strides=strides, dilation=dilation, precision=precision)
        return with_mask(lambda k: lax_transposed(flipped(k.swapaxes(-1, -2), 1), bias, padding, **options), kernel, mask)
    if feature_group_count is channel_multiplier is None and kernel.shape[-2] == 1 < kernel.shape[-1]:
        raise ValueError(
            f"`feature_group_count` or `channel_multiplier` must be given: `w` of shape {kernel.shape} is that of a Conv of "
            "one channel (feature_group_count=1), and of a DepthwiseConv (channel_multiplier=1)."
        )
    groups = 1 if feature_group_count is None else feature_group_count
    if channel_multiplier is not None:
        if kernel.shape[-2] != 1 or kernel.shape[-1] % channel_multiplier:
            raise ValueError(
                "`w` of a depthwise convolution must have shape (*window, 1, channels * channel_multiplier), got "
                f"{kernel.shape} with channel_multiplier={channel_multiplier}."
            )
        groups = kernel.shape[-1] // channel_multiplier
    options = dict(strides=strides, padding=padding, dilation=dilation, precision=precision)
    return with_mask(lambda k: from_arrays(k, bias, groups=groups, **options), kernel, mask)


def to_haiku(layer: Any) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """A gconv layer as the arguments of a Haiku module and its parameters, `(options, {"w": ..., "b": ...})`.

    >>> import gconv, haiku as hk, jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> layer = gconv.nnx.GroupedConv(6, 3, 4, 3, strides=2, padding="same", rngs=nnx.Rngs(0))
    >>> options, params = gconv.interop.to_haiku(layer)
    >>> net = hk.without_apply_rng(hk.transform(lambda x: hk.Conv2D(**options, name="conv")(x)))
    >>> x = jnp.ones((1, 9, 9, 6))
    >>> bool(jnp.allclose(net.apply({"conv": params}, x), layer(x)))
    True

    Args:
      layer: a layer of `gconv.nnx`, a pair `(module, variables)` of `gconv.linen`, or a `Convolution`. A transposed one becomes
        the arguments of `hk.Conv1DTranspose`, `hk.Conv2DTranspose` or `hk.Conv3DTranspose`, others those of `hk.Conv1D`, ...
        `precision` is an argument of the module's call there, and `dtype` the business of `hk.mixed_precision`.
    """
    found = from_gconv(layer)
    c = found.config
    no_mask(replace(found, mask=None), "Haiku")
    no_activation(found, "Haiku")
    only_zeros(found, "Haiku", "Pad the input before, with jax.numpy.pad.")
    options: dict[str, Any] = dict(
        output_channels=c.out_features(found.in_features), kernel_shape=c.window, stride=c.strides, with_bias=c.use_bias
    )
    kernel, mask = found.kernel, found.mask
    if c.transposed:
        if found.groups != 1 or max(c.dilation) > 1:
            raise ValueError(
                "the transposed convolutions of Haiku have neither groups nor dilation: the layer has "
                f"groups={found.groups}, dilation={c.dilation}."
            )
        options["padding"] = pads_of_dilated(found)
        turn = lambda k: np.ascontiguousarray(flipped(k, 1).swapaxes(-1, -2))
        kernel, mask = turn(kernel), None if mask is None else turn(mask)
    else:
        named = c.padding in ("same", "same_lower", "valid")
        options |= dict(rate=c.dilation, feature_group_count=found.groups)
        options["padding"] = c.padding.upper() if named and isinstance(c.padding, str) else found.explicit()[0]
    options |= {} if mask is None else {"mask": mask}
    return options, {"w": kernel} | ({} if found.bias is None else {"b": found.bias})


def _numbers(padding, effective):
    """A name in capitals, or pairs; Haiku also takes functions of the window, such as `hk.pad.causal`."""
    if isinstance(padding, str):
        return padding.upper()
    if callable(padding):
        return tuple(tuple(padding(e)) for e in effective)
    if is_list(padding) and any(callable(p) for p in padding):
        return tuple(tuple(p(e)) for p, e in zip(padding, effective, strict=True))
    return padding
