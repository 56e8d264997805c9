"""PyTorch: `Conv1d`, `Conv2d`, `Conv3d`, `ConvTranspose1d`, ... as modules or as entries of a state dict."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from gconv.interop.convolution import Convolution, from_arrays, from_gconv, no_activation, no_mask
from gconv.interop.layouts import array, from_channels_first, to_channels_first
from gconv.naming import translating
from gconv.options import did_you_mean
from gconv.typing import PaddingValue, PerAxis

# PyTorch's padding_mode -> gconv's padding_value
PADDING_MODES: dict[str, PaddingValue] = {
    "zeros": 0,
    "reflect": "symmetric-exclude-edge",
    "replicate": "replicate",
    "circular": "circular",
}


@translating
def from_torch(
    source: Any,
    *,
    prefix: str = "",
    stride: PerAxis = 1,
    padding: PerAxis | Literal["same", "valid"] = 0,
    dilation: PerAxis = 1,
    groups: int | None = None,
    bias: bool = True,
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
    transposed: bool = False,
    output_padding: PerAxis = 0,
) -> Convolution:
    """PyTorch's convolution, or transposed convolution, as a `Convolution`.

    PyTorch pads both sides alike, so its `padding=1` with stride 2 is not "same", which puts the surplus at the end: on even
    sizes "same" would shift the result by one pixel. Here the numbers stay what they are.

    >>> import numpy as np, gconv.interop
    >>> state = {"stem.weight": np.ones((16, 3, 3, 3)), "stem.bias": np.zeros(16)}
    >>> layer = gconv.interop.from_torch(state, prefix="stem.", stride=2, padding=1).to_nnx()
    >>> layer.padding, layer(np.ones((1, 224, 224, 3), "float32")).shape
    (((1, 1), (1, 1)), (1, 112, 112, 16))

    Args:
      source: a module such as `torch.nn.Conv2d`, which knows its geometry; or a state dict, of PyTorch tensors or of arrays
        (PyTorch need not be installed), whose entries are `prefix + "weight"` and `prefix + "bias"`.
      stride, padding, dilation, groups, bias, padding_mode, output_padding: for a state dict, the arguments of the module that
        it came from, with the same defaults. A state dict does not tell `groups`: weights of one input channel could be those
        of one channel in all or depthwise, and need it; so do transposed ones without a bias. All others count as one group, so
        give ResNeXt's `(128, 4, 3, 3)` their `groups=32`.
      transposed: for a state dict, whether it is that of a ConvTranspose.

    Raises:
      ValueError, TypeError: for a missing entry, a wrong rank, an unknown padding mode, naming what works.
    """
    if isinstance(source, Mapping):
        named = {"weight": _entry(source, prefix, "weight"), "bias": _entry(source, prefix, "bias") if bias else None}
    else:
        if not (hasattr(source, "weight") and hasattr(source, "transposed")):
            raise TypeError(
                "`source` must be a Conv1d, Conv2d, Conv3d or ConvTranspose1d, 2d, 3d of torch.nn, or a state dict, got "
                f"{type(source).__name__}. One layer of a model: model.conv1, or model.state_dict() with prefix='conv1.'."
            )
        given = (prefix, stride, padding, dilation, groups, bias, padding_mode, transposed, output_padding)
        if given != ("", 1, 0, 1, None, True, "zeros", False, 0):
            raise ValueError("`prefix` and the geometry are for state dicts: a module knows its own.")
        named = {"weight": source.weight, "bias": source.bias}
        stride, padding, dilation, groups = source.stride, source.padding, source.dilation, source.groups
        padding_mode, transposed, output_padding = source.padding_mode, source.transposed, source.output_padding
    if padding_mode not in PADDING_MODES or transposed and padding_mode != "zeros":
        known = ["zeros"] if transposed else [*PADDING_MODES]
        near = did_you_mean(str(padding_mode), known, {"constant": "zeros", "edge": "replicate", "wrap": "circular"})
        works = near or f" A value that works: {known[0]!r}."
        raise ValueError(f"`padding_mode` must be one of {', '.join(map(repr, known))}, got {padding_mode!r}.{works}")
    weight = array(prefix + "weight", named["weight"])
    if not 3 <= weight.ndim <= 5:
        raise ValueError(
            f"`{prefix}weight` must have shape (out, in / groups, *window) with 1, 2 or 3 window axes (of a transposed one "
            f"(in, out / groups, *window)), got {weight.shape}. A shape that works: (16, 3, 3, 3)."
        )
    if isinstance(padding, str):
        if transposed or padding not in ("same", "valid"):
            works = "integers" if transposed else "integers, 'same' or 'valid'"
            raise ValueError(f"`padding` must be {works}, got {padding!r}.")
        if padding == "same" and np.any(np.array(stride) != 1):
            raise ValueError(f"PyTorch has padding='same' with stride 1 only, got stride={stride}. padding=1 would work.")
    return from_arrays(
        from_channels_first(weight),
        None if named["bias"] is None else array(prefix + "bias", named["bias"]),
        groups=groups,
        strides=stride,
        padding=padding,
        dilation=dilation,
        padding_value=PADDING_MODES[padding_mode],
        transposed=transposed,
        output_padding=output_padding,
    )


def to_torch(layer: Any, *, spatial: Sequence[int] | None = None) -> Any:
    """A gconv layer as PyTorch's module, with its parameters; needs PyTorch.

    Where PyTorch's convolution cannot pad alike, the result is a `Sequential` of a padding and a convolution (or of a
    transposed convolution and a padding of negative size, which crops). A module computes in the type of its parameters:
    `dtype` stays behind, and `module.to(torch.bfloat16)` or `torch.autocast` choose it there.

    Args:
      layer: a layer of `gconv.nnx`, a pair `(module, variables)` of `gconv.linen`, or a `Convolution`.
      spatial: the size of the input, needed for "same" with strides: PyTorch's padding does not depend on the input.
    """
    import torch

    found = from_gconv(layer)
    no_mask(found, "PyTorch")
    no_activation(found, "PyTorch")
    c, rank = found.config, len(found.config.window)
    out_features = c.out_features(found.in_features)
    common: dict[str, Any] = dict(stride=c.strides, dilation=c.dilation, groups=found.groups, bias=c.use_bias)
    pairs, output_padding = found.explicit(spatial)
    same = c.padding == "same" and not c.transposed and set(c.strides) == {1}  # the one "same" that PyTorch has
    modes: dict[complex | str, str] = {value: name for name, value in PADDING_MODES.items()}
    direct = (same or all(lo == hi for lo, hi in pairs)) and c.padding_value in modes
    kind = getattr(torch.nn, f"{'ConvTranspose' if c.transposed else 'Conv'}{rank}d")
    # The convolution that computes, and what has to be padded beside it.
    common["padding"] = "same" if direct and same else tuple(lo if direct else 0 for lo, _ in pairs)
    if c.transposed:
        common["output_padding"] = output_padding
    elif direct:
        common["padding_mode"] = modes[c.padding_value]
    weight = _tensor(torch, to_channels_first(found.kernel))
    conv = kind(found.in_features, out_features, c.window, dtype=weight.dtype, **common)
    with torch.no_grad():
        conv.weight.copy_(weight)
        if found.bias is not None:
            conv.bias.copy_(_tensor(torch, found.bias))
    if direct:
        return conv
    if c.transposed:
        return torch.nn.Sequential(conv, _padding(torch, rank, [(-lo, -hi) for lo, hi in pairs], 0))
    return torch.nn.Sequential(_padding(torch, rank, pairs, c.padding_value), conv)


def _padding(torch, rank: int, pairs, value):
    names = {"symmetric-exclude-edge": "ReflectionPad", "replicate": "ReplicationPad", "circular": "CircularPad"}
    if isinstance(value, str) and value not in names:
        works = ", ".join(map(repr, names))
        raise ValueError(f"PyTorch has no `padding_value`={value!r}. Values that work: a number, {works}.")
    flat = tuple(p for pair in reversed(pairs) for p in pair)  # the last axis comes first
    if isinstance(value, str):
        return getattr(torch.nn, f"{names[value]}{rank}d")(flat)
    return getattr(torch.nn, f"ConstantPad{rank}d")(flat, value)


def _tensor(torch, value: np.ndarray):
    if value.dtype.name == "bfloat16":
        return torch.tensor(value.astype(np.float32)).to(torch.bfloat16)
    return torch.tensor(value)


def _entry(state: Mapping, prefix: str, name: str):
    if prefix + name in state:
        return state[prefix + name]
    others = [key.removesuffix(name) for key in state if key.endswith(name)]
    there = f"Prefixes that have one: {', '.join(map(repr, others))}." if others else f"It has {', '.join(map(repr, state))}."
    without = " A layer without one: bias=False." if name == "bias" else ""
    raise ValueError(f"the state dict has no entry {prefix + name!r}. {there}{without}")
