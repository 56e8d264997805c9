"""Flax: `Conv` and `ConvTranspose` of NNX and Linen, whose parameters are laid out as gconv's are."""

from collections.abc import Mapping
from typing import Any

from gconv.geometry import effective_window
from gconv.interop.convolution import (
    Convolution,
    from_arrays,
    from_gconv,
    no_activation,
    only_zeros,
    pads_of_dilated,
    transposed_by_pads,
    with_mask,
)
from gconv.interop.layouts import array, flipped
from gconv.options import is_list, per_axis


def from_flax(layer: Any, variables: Mapping[str, Any] | None = None) -> Convolution:
    """Flax's `Conv` or `ConvTranspose` as a `Convolution`.

    >>> import jax, jax.numpy as jnp, gconv
    >>> from flax import linen, nnx
    >>> theirs = nnx.Conv(6, 12, (3, 3), feature_group_count=3, padding="CIRCULAR", rngs=nnx.Rngs(0))
    >>> gconv.interop.from_flax(theirs).to_nnx().padding_value
    'circular'
    >>> module, x = linen.Conv(12, (3, 3), feature_group_count=3), jnp.ones((1, 8, 8, 6))
    >>> gconv.interop.from_flax(module, module.init(jax.random.key(0), x))(x).shape
    (1, 8, 8, 12)

    Args:
      layer: `Conv` or `ConvTranspose`, of `flax.nnx` or `flax.linen`.
      variables: for a Linen module, what its `init` returned, or the parameters themselves.
    """
    if not hasattr(layer, "kernel_dilation"):
        raise TypeError(f"`layer` must be a Conv or ConvTranspose of Flax, got {type(layer).__name__}.")
    transposed = hasattr(layer, "transpose_kernel")
    if hasattr(layer, "feature_group_count") == transposed:
        raise TypeError(f"`layer` must be a Conv or ConvTranspose of Flax, got {type(layer).__name__}.")
    window = (layer.kernel_size,) if isinstance(layer.kernel_size, int) else tuple(layer.kernel_size)
    rank = len(window)
    strides, dilation = (per_axis(n, _or_one(v), rank) for n, v in (("s", layer.strides), ("d", layer.kernel_dilation)))
    kernel, bias = _parameters(layer, variables)
    if kernel.ndim != rank + 2:
        raise ValueError(f"`kernel` must have {rank + 2} axes for kernel_size={window}, got shape {kernel.shape}.")
    options: dict[str, Any] = dict(strides=strides, dilation=dilation, dtype=layer.dtype, precision=layer.precision)
    options["preferred_element_type"] = getattr(layer, "preferred_element_type", None)
    padding = layer.padding.upper() if isinstance(layer.padding, str) else layer.padding
    if is_list(padding):  # Flax also takes numbers and pairs together
        padding = [p if is_list(p) else (p, p) for p in padding]
    if transposed:
        turn = (lambda k: k) if layer.transpose_kernel else (lambda k: flipped(k, 1))
        return with_mask(lambda k: lax_transposed(turn(k), bias, padding, **options), kernel, layer.mask)
    if padding in ("CIRCULAR", "REFLECT"):
        options["padding_value"] = {"CIRCULAR": "circular", "REFLECT": "symmetric-exclude-edge"}[padding]
        padding = _around(effective_window(window, dilation))
    options |= dict(padding=padding, input_dilation=_or_one(layer.input_dilation), groups=layer.feature_group_count)
    return with_mask(lambda k: from_arrays(k, bias, **options), kernel, layer.mask)


def to_flax(layer: Any, *, linen: bool = False) -> Any:
    """A gconv layer as Flax's `Conv` or `ConvTranspose`.

    Args:
      layer: a layer of `gconv.nnx`, a pair `(module, variables)` of `gconv.linen`, or a `Convolution`.
      linen: whether to return a Linen module and its variables, `(module, {"params": ...})`, instead of an NNX layer.
    """
    import jax
    from flax import linen as nn
    from flax import nnx

    found = from_gconv(layer)
    no_activation(found, "Flax")
    c = found.config
    options: dict[str, Any] = dict(strides=c.strides, kernel_dilation=c.dilation, use_bias=c.use_bias)
    if c.transposed:
        if found.groups != 1:
            raise ValueError(f"Flax's ConvTranspose has no groups, the layer has {found.groups}.")
        options |= dict(padding=pads_of_dilated(found), transpose_kernel=True)
    else:
        options |= dict(padding=_padding(found), feature_group_count=found.groups)
        if max(c.input_dilation) > 1:
            pads = c.padding if isinstance(c.padding, tuple) else found.explicit()[0]  # Flax takes no name then
            options |= dict(input_dilation=c.input_dilation, padding=pads)
    options |= dict(dtype=c.dtype, precision=c.precision)
    if c.preferred_element_type is not None:
        if linen and not c.transposed:
            raise ValueError("Flax's Linen Conv has no `preferred_element_type`. What works: linen=False.")
        options["preferred_element_type"] = c.preferred_element_type
    if found.mask is not None:
        options["mask"] = jax.numpy.array(found.mask)
    options["param_dtype"] = jax.dtypes.canonicalize_dtype(found.kernel.dtype)
    out_features, kind = c.out_features(found.in_features), "ConvTranspose" if c.transposed else "Conv"
    params = {"kernel": jax.numpy.array(found.kernel)}
    if found.bias is not None:
        params["bias"] = jax.numpy.array(found.bias)
    if linen:
        return getattr(nn, kind)(out_features, c.window, **options), {"params": params}
    theirs = getattr(nnx, kind)(found.in_features, out_features, c.window, **options, rngs=nnx.Rngs(0))
    nnx.update(theirs, params)
    return theirs


def lax_transposed(kernel, bias, padding, *, strides, dilation, **options) -> Convolution:
    """A transposed convolution by a padding of `jax.lax.conv_transpose`, of gconv's kernel with one group."""
    effective = effective_window(kernel.shape[:-2], dilation)
    options |= dict(strides=strides, dilation=dilation)
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(f'`padding` of a transposed convolution must be "SAME", "VALID" or numbers, got "{padding}".')
        if padding == "SAME":
            return from_arrays(kernel, bias, groups=1, transposed=True, padding="same", **options)
        extra = tuple(max(s - e, 0) for s, e in zip(strides, effective, strict=True))
        return from_arrays(kernel, bias, groups=1, transposed=True, output_padding=extra, **options)
    pairs = [padding] * len(effective) if isinstance(padding, int) else padding
    return transposed_by_pads(kernel, bias, [(p, p) if isinstance(p, int) else tuple(p) for p in pairs], **options)


def _around(effective) -> tuple[tuple[int, int], ...]:
    """How Flax's CIRCULAR and REFLECT pad."""
    return tuple(((e - 1) // 2, e // 2) for e in effective)


def _padding(found: Convolution):
    c = found.config
    names = {"circular": "CIRCULAR", "symmetric-exclude-edge": "REFLECT"}
    around = c.padding_size is not None and found.explicit()[0] == _around(found.effective_window)
    if around and c.padding_value in names:
        return names[c.padding_value]
    only_zeros(found, "Flax", "It repeats the input only by (window - 1) // 2 samples before and window // 2 after.")
    return c.padding.upper() if isinstance(c.padding, str) else c.padding


def _parameters(layer, variables: Mapping | None):
    if variables is None:
        if not hasattr(layer, "kernel"):
            raise ValueError("`variables` is missing: a Linen module keeps no parameters. Give what its `init` returned.")
        variables = {"kernel": layer.kernel, "bias": layer.bias}
    elif "params" in variables:
        variables = variables["params"]
    return array("kernel", variables.get("kernel")), array("bias", variables.get("bias")) if layer.use_bias else None


def _or_one(value):
    return 1 if value is None else value
