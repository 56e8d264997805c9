"""Keras 3: `Conv1D/2D/3D`, `DepthwiseConv1D/2D`, `SeparableConv1D/2D` and `Conv1D/2D/3DTranspose`, on any of its backends."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gconv.interop.convolution import Convolution, from_arrays, from_gconv, no_mask, only_zeros, transposed_by_pads
from gconv.interop.layouts import array
from gconv.interop.separable import Separable, separable_from_gconv
from gconv.layers.config import shown
from gconv.naming import translating


@translating
def from_keras(layer: Any, *, ignore_activation: bool = False) -> Any:
    """A convolution of Keras as a `Convolution`; a separable one as two, the pair `Separable(depthwise, pointwise)`.

    A `Separable` makes a `gconv.nnx.SeparableConv` by its `to_nnx()`, and one of Linen by `to_linen()`.

    The parameters are read, so the layer must have been built. Where it says `data_format="channels_first"`, its inputs differ
    from gconv's, which are channels last, and its parameters do not.

    Args:
      layer: `Conv1D`, `Conv2D`, `Conv3D`, `DepthwiseConv1D`, `DepthwiseConv2D`, `SeparableConv1D`, `SeparableConv2D`,
        `Conv1DTranspose`, `Conv2DTranspose` or `Conv3DTranspose` of `keras.layers`.
      ignore_activation: whether to leave the activation out. Of those of `keras.activations` a gconv layer has relu, relu6,
        leaky_relu, sigmoid, silu, hard_sigmoid, hard_silu, tanh, gelu, elu, selu, celu, softplus, softsign and mish.
    """
    if not all(hasattr(layer, name) for name in ("dilation_rate", "strides", "padding", "built")):
        raise TypeError(f"`layer` must be a convolution of keras.layers, got {type(layer).__name__}.")
    if not layer.built:
        raise ValueError("`layer` has no parameters yet: call it once, or layer.build((None, 32, 32, channels)).")
    activation = None if ignore_activation else _activation(layer.activation)
    bias = array("bias", layer.bias) if layer.use_bias else None
    options: dict[str, Any] = dict(strides=layer.strides, dilation=layer.dilation_rate, padding=layer.padding)
    options["dtype"] = layer.compute_dtype
    if hasattr(layer, "depthwise_kernel"):
        depthwise = _depthwise(array("depthwise_kernel", layer.depthwise_kernel), None, options)
        pointwise = array("pointwise_kernel", layer.pointwise_kernel)
        return Separable(depthwise, from_arrays(pointwise, bias, groups=1, activation=activation, dtype=layer.compute_dtype))
    options["activation"] = activation
    kernel = array("kernel", layer.kernel)
    if hasattr(layer, "depth_multiplier"):
        return _depthwise(kernel, bias, options)
    if hasattr(layer, "output_padding"):
        return transposed_by_pads(kernel, bias, _transposed_pads(layer), **{k: v for k, v in options.items() if k != "padding"})
    return from_arrays(kernel, bias, groups=layer.groups, **options)


def to_keras(layer: Any, *, spatial: Sequence[int] | None = None) -> Any:
    """A gconv layer as a layer of Keras, with its parameters; needs Keras.

    One filter or more per channel becomes a `DepthwiseConv` (in 1-D and 2-D), a `SeparableConv` without norms and a pair
    `(depthwise, pointwise)` become a `SeparableConv`, everything else a `Conv`. Where Keras cannot pad alike, the result is a
    `keras.Sequential` of a `ZeroPadding` and the convolution (of a transposed one and a `Cropping`). `dtype` becomes the
    policy, such as "mixed_bfloat16"; `precision` is no affair of a layer there. Nor has Keras a name for gelu by tanh: the
    layer computes it, and Keras cannot write the model to a file.

    Args:
      layer: a layer of `gconv.nnx`, a pair `(module, variables)` of `gconv.linen`, or a `Convolution`.
      spatial: the size of the input, needed for "same_lower" with strides.
    """
    import keras

    if separable := separable_from_gconv(layer):
        return _separable(keras, *separable)
    found = from_gconv(layer)
    no_mask(found, "Keras")
    c, rank = found.config, len(found.config.window)
    only_zeros(found, "Keras", "Pad the input before, with keras.ops.pad.")
    options: dict[str, Any] = dict(strides=c.strides, dilation_rate=c.dilation, use_bias=c.use_bias, dtype=_policy(found))
    options["activation"] = _their_activation(keras, found)
    _check_strides(found)
    if c.transposed:
        return _transposed(keras, found, options)
    padding, pairs = _padding(found, spatial)
    kernel: np.ndarray = found.kernel
    if kernel.shape[-2] == 1 and rank < 3:
        multiplier = c.filters_per_group
        options |= dict(depth_multiplier=multiplier, padding=padding)
        theirs = getattr(keras.layers, f"DepthwiseConv{rank}D")(c.window, **options)
        kernel = kernel.reshape(*c.window, found.in_features, multiplier)
    else:
        options |= dict(groups=found.groups, padding=padding)
        theirs = getattr(keras.layers, f"Conv{rank}D")(c.out_features(found.in_features), c.window, **options)
    # Large enough for any window: Keras checks that something comes out.
    theirs.build((None, *(e + 1 for e in found.effective_window), found.in_features))
    theirs.set_weights([kernel] if found.bias is None else [kernel, found.bias])
    if pairs is None:
        return theirs
    return _padded(keras, found, pairs, theirs)


def _depthwise(kernel: np.ndarray, bias, options) -> Convolution:
    """Keras keeps `(*window, channels, multiplier)`."""
    *window, channels, multiplier = kernel.shape
    return from_arrays(kernel.reshape(*window, 1, channels * multiplier), bias, groups=channels, **options)


def _transposed_pads(layer) -> list[tuple[int, int]]:
    """How the input, with zeros put between its samples, is padded.

    By Keras' sizes: "same" gives `n * stride`, "valid" `(n - 1) * stride + max(window, stride)`. With
    `output_padding` they are `(n - 1) * stride + window % 2 + output_padding` and `(n - 1) * stride + window +
    output_padding`. Of what "same" crops, the odd one is at the end.
    """
    pads = []
    given = layer.output_padding or (None,) * layer.rank
    for k, s, d, extra in zip(layer.kernel_size, layer.strides, layer.dilation_rate, given, strict=True):
        e = (k - 1) * d + 1
        if layer.padding == "valid":
            pads.append((e - 1, e - 1 + (max(s - e, 0) if extra is None else extra)))
            continue
        total = e + s - 2 if extra is None else e - 2 + e % 2 + extra
        before = min(total - total // 2, e - 1)
        pads.append((before, total - before))
    return pads


def _transposed(keras, found: Convolution, options):
    c, rank = found.config, len(found.config.window)
    if found.groups != 1:
        raise ValueError(f"the transposed convolutions of Keras have no groups, the layer has {found.groups}.")
    pairs, extra = found.explicit()
    kind = getattr(keras.layers, f"Conv{rank}DTranspose")
    theirs = kind(c.out_features(found.in_features), c.window, padding="valid", output_padding=extra, **options)
    theirs.build((None, *(e + 1 for e in found.effective_window), found.in_features))
    theirs.set_weights([found.kernel] if found.bias is None else [found.kernel, found.bias])
    if not any(p for pair in pairs for p in pair):
        return theirs
    crop = getattr(keras.layers, f"Cropping{rank}D")(_of_rank(pairs), dtype=options["dtype"])
    return _sequential(keras, found, [theirs, crop])


def _separable(keras, depthwise: Convolution, pointwise: Convolution):
    c, rank = depthwise.config, len(depthwise.config.window)
    plain = pointwise.config.window == (1,) * rank and pointwise.groups == 1 and not any(sum(pointwise.explicit()[0], ()))
    if depthwise.kernel.shape[-2] != 1 or not plain or depthwise.bias is not None or rank > 2 or c.activation is not None:
        raise ValueError(
            "a SeparableConv is a depthwise convolution in 1-D or 2-D without a bias and an activation, then one of window 1 "
            f"and one group: got windows {c.window} and {pointwise.config.window}, groups {depthwise.groups} and "
            f"{pointwise.groups}, activation={shown(c.activation)}."
        )
    only_zeros(depthwise, "Keras", "Pad the input before, with keras.ops.pad.")
    _check_strides(depthwise)
    padding, pairs = _padding(depthwise, None)
    options: dict[str, Any] = dict(strides=c.strides, dilation_rate=c.dilation, depth_multiplier=c.filters_per_group)
    filters = pointwise.kernel.shape[-1]
    options |= dict(use_bias=pointwise.bias is not None, padding=padding, dtype=_policy(depthwise))
    options["activation"] = _their_activation(keras, pointwise)
    theirs = getattr(keras.layers, f"SeparableConv{rank}D")(filters, c.window, **options)
    theirs.build((None, *(e + 1 for e in depthwise.effective_window), depthwise.in_features))
    kernel = depthwise.kernel.reshape(*c.window, depthwise.in_features, c.filters_per_group)
    theirs.set_weights([kernel, pointwise.kernel] + ([] if pointwise.bias is None else [pointwise.bias]))
    if pairs is None:
        return theirs
    return _padded(keras, depthwise, pairs, theirs)


# Names of keras.activations -> ours.
ACTIVATIONS = {
    **{n: n for n in ("relu", "relu6", "sigmoid", "silu", "hard_sigmoid", "hard_silu", "tanh")},
    **{n: n for n in ("elu", "selu", "celu", "softplus", "mish")},
    "softsign": "soft_sign",
    "gelu": "gelu_exact",
}
SLOPE = 0.2  # of Keras' leaky_relu


def _activation(theirs) -> Any:
    """A function of `keras.activations`, also with options by `functools.partial`, or a `LeakyReLU`, as ours."""
    function, options = theirs, {}
    if isinstance(theirs, functools.partial) and not theirs.args:
        function, options = theirs.func, theirs.keywords
    name = getattr(function, "__name__", type(function).__name__)
    if function is None or name == "linear":
        return None
    if getattr(function, "__module__", "").startswith("keras."):
        if name == "LeakyReLU" and hasattr(function, "negative_slope"):
            return functools.partial(jax.nn.leaky_relu, negative_slope=float(function.negative_slope))
        if name == "leaky_relu" and options.keys() <= {"negative_slope"}:
            return functools.partial(jax.nn.leaky_relu, negative_slope=options.get("negative_slope", SLOPE))
        if name == "gelu" and options.get("approximate"):
            return "gelu"
        if name in ACTIVATIONS and not options:
            return ACTIVATIONS[name]
    raise ValueError(
        f"`layer` has the activation {name!r}, which a gconv layer cannot take over: with ignore_activation=True it is left to "
        "you to apply."
    )


def _their_activation(keras, found: Convolution) -> Any:
    ours = found.config.activation
    name, slope = ("leaky_relu", 0.01) if ours == "leaky_relu" else (getattr(ours, "name", ours), getattr(ours, "slope", 0.0))
    if name == "leaky_relu":
        return keras.layers.LeakyReLU(negative_slope=slope)
    if name == "gelu":
        return functools.partial(keras.activations.gelu, approximate=True)
    known = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    if ours is not None and (not isinstance(ours, str) or ours not in known):
        works = "What works: layer.activation = None, and a layer for it there."
        raise ValueError(f"Keras has no activation {shown(ours)}. {works}")
    return None if ours is None else getattr(keras.activations, known[ours])


def _padding(found: Convolution, spatial) -> tuple[str, tuple | None]:
    """The padding of Keras' convolution, and what a layer before it has to pad."""
    padding = found.config.padding
    depthwise = found.kernel.shape[-2] == 1
    if padding in ("same", "valid") or padding == "causal" and not depthwise:
        return padding, None
    pairs = found.explicit(spatial)[0]
    return "valid", pairs if any(p for pair in pairs for p in pair) else None


def _policy(found: Convolution) -> str:
    """Keras' name for a type of the computation and one of the parameters; without `dtype` both are the parameters'."""
    held = jax.dtypes.canonicalize_dtype(found.kernel.dtype).name
    computed = found.config.dtype.name if found.config.dtype is not None else held
    if computed == held:
        return held
    if held != "float32" or computed not in ("bfloat16", "float16"):
        raise ValueError(
            f"Keras has no policy for `dtype`={computed} with parameters of {held}. Combinations that work: bfloat16 or "
            "float16 with parameters of float32, or the same type for both."
        )
    return f"mixed_{computed}"


def _padded(keras, found: Convolution, pairs, theirs):
    padding = getattr(keras.layers, f"ZeroPadding{len(found.config.window)}D")
    return _sequential(keras, found, [padding(_of_rank(pairs), dtype=theirs.dtype_policy), theirs])


def _sequential(keras, found: Convolution, layers: list):
    model = keras.Sequential(layers)
    model.build((None, *(None,) * len(found.config.window), found.in_features))
    return model


def _of_rank(pairs):
    return pairs[0] if len(pairs) == 1 else pairs


def _check_strides(found: Convolution) -> None:
    c = found.config
    if max(c.strides) > 1 and max(c.dilation) > 1:
        raise ValueError(f"Keras has no strides and dilation together: strides={c.strides}, dilation={c.dilation}.")
