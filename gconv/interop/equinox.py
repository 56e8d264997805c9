"""Equinox: `Conv1d`, `Conv2d`, `Conv3d` and their transposed twins, channels first and without a batch there."""

from typing import Any

import numpy as np

from gconv.interop.convolution import Convolution, from_arrays, from_gconv, no_activation, no_mask
from gconv.interop.layouts import array, flipped, from_channels_first, to_channels_first
from gconv.typing import PaddingValue

# Equinox's padding_mode -> gconv's padding_value
PADDING_MODES: dict[str, PaddingValue] = {
    "ZEROS": 0,
    "REFLECT": "symmetric-exclude-edge",
    "REPLICATE": "replicate",
    "CIRCULAR": "circular",
}


def from_equinox(layer: Any) -> Convolution:
    """Equinox's `Conv` or `ConvTranspose` as a `Convolution`.

    >>> import equinox as eqx, jax, jax.numpy as jnp, gconv
    >>> theirs = eqx.nn.Conv2d(6, 12, 3, stride=2, padding=1, groups=3, key=jax.random.key(0))
    >>> gconv.interop.from_equinox(theirs)(jnp.ones((8, 32, 32, 6))).shape
    (8, 16, 16, 12)

    Args:
      layer: `equinox.nn.Conv1d`, `Conv2d`, `Conv3d`, `ConvTranspose1d`, ...; its weights are `(out, in / groups, *window)`.
    """
    if not all(hasattr(layer, name) for name in ("weight", "num_spatial_dims", "padding_mode")):
        raise TypeError(f"`layer` must be a Conv or ConvTranspose of equinox.nn, got {type(layer).__name__}.")
    transposed = hasattr(layer, "output_padding")
    if layer.padding_mode not in PADDING_MODES or transposed and layer.padding_mode != "ZEROS":
        known = ["ZEROS"] if transposed else [*PADDING_MODES]
        raise ValueError(f"`padding_mode` must be one of {', '.join(map(repr, known))}, got {layer.padding_mode!r}.")
    weight = array("weight", layer.weight)
    if weight.ndim != layer.num_spatial_dims + 2:
        raise ValueError(f"`weight` must have {layer.num_spatial_dims + 2} axes, got shape {weight.shape}.")
    bias = array("bias", layer.bias).reshape(-1) if layer.use_bias else None
    options: dict[str, Any] = dict(groups=layer.groups, strides=layer.stride, dilation=layer.dilation, padding=layer.padding)
    kernel = from_channels_first(weight)
    if not transposed:
        return from_arrays(kernel, bias, padding_value=PADDING_MODES[layer.padding_mode], **options)
    options["output_padding"] = layer.output_padding
    if layer.padding in ("SAME", "SAME_LOWER") and any(layer.output_padding):
        options |= _same_and_output_padding(layer)
    return from_arrays(flipped(kernel, layer.groups), bias, transposed=True, **options)


def to_equinox(layer: Any) -> Any:
    """A gconv layer as Equinox's `Conv` or `ConvTranspose`, which computes in the type of its parameters; needs Equinox.

    Args:
      layer: a layer of `gconv.nnx`, a pair `(module, variables)` of `gconv.linen`, or a `Convolution`.
    """
    import equinox as eqx
    import jax

    found = from_gconv(layer)
    no_mask(found, "Equinox")
    no_activation(found, "Equinox")
    c = found.config
    modes: dict[complex | str, str] = {value: name for name, value in PADDING_MODES.items()}
    if c.padding_value not in modes:
        works = ", ".join(map(repr, modes))
        raise ValueError(f"Equinox has no `padding_value`={c.padding_value!r}. Values that work: {works}.")
    padding, output_padding = (c.padding, c.output_padding)
    if padding in ("same", "same_lower", "valid"):
        padding = padding.upper()
    else:
        padding, output_padding = found.explicit()
    options: dict[str, Any] = dict(stride=c.strides, padding=padding, dilation=c.dilation, groups=found.groups)
    options |= dict(use_bias=c.use_bias, dtype=jax.dtypes.canonicalize_dtype(found.kernel.dtype), key=jax.random.key(0))
    options |= {"output_padding": output_padding} if c.transposed else {"padding_mode": modes[c.padding_value]}
    kind = getattr(eqx.nn, f"{'ConvTranspose' if c.transposed else 'Conv'}{len(c.window)}d")
    theirs = kind(found.in_features, c.out_features(found.in_features), c.window, **options)
    kernel = flipped(found.kernel, found.groups) if c.transposed else found.kernel
    theirs = eqx.tree_at(lambda m: m.weight, theirs, jax.numpy.array(to_channels_first(kernel)))
    if found.bias is None:
        return theirs
    return eqx.tree_at(lambda m: m.bias, theirs, jax.numpy.array(found.bias.reshape(theirs.bias.shape)))


def _same_and_output_padding(layer) -> dict[str, Any]:
    """Equinox's output_padding makes what "same" crops larger: the result is `n * stride - output_padding` long."""
    effective = [(k - 1) * d + 1 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    total = np.array(effective) - np.array(layer.stride) + np.array(layer.output_padding)
    crop = np.maximum(total, 0)
    low = (crop + (layer.padding == "SAME_LOWER")) // 2
    pairs = tuple((int(a), int(b)) for a, b in zip(low, crop - low, strict=True))
    return {"padding": pairs, "output_padding": tuple(int(v) for v in np.maximum(-total, 0))}
