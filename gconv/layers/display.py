"""What a user sees of a layer: MATLAB's listing."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from gconv.layers.config import Config, shown
from gconv.naming import translating


@translating
def describe(layer: Any, params: Mapping[str, Any] | None = None) -> str:
    """MATLAB's listing of a gconv layer.

    Args:
      layer: a `GroupedConv` or `GroupedConvTranspose` of `gconv.nnx` or `gconv.linen`.
      params: for a Linen layer, whose parameters live outside it, its `{"kernel": ..., "bias": ...}`, or what its `init`
        returned, `{"params": ...}`.

    Raises:
      TypeError: for what is no layer of gconv.
      ValueError: for parameters that are not one layer's.
    """
    c = getattr(layer, "config", None)
    if not isinstance(c, Config):
        made = isinstance(layer, type)
        kind = f"the class {layer.__name__}" if made else f"{type(layer).__module__.partition('.')[0]}'s {type(layer).__name__}"
        raise TypeError(
            f"`layer` must be a GroupedConv or GroupedConvTranspose of gconv, got {kind}. A layer of Flax converts: "
            "gconv.interop.from_flax(layer).to_nnx(). Of a whole model: gconv.explain(model, x)."
        )
    params = _parameters_of(layer, params)
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
    if max(c.input_dilation, default=1) > 1:  # which MATLAB's layer has not, nor a mask
        hyper["InputDilation"] = c.input_dilation
    if c.activation is not None:  # which is a layer of its own in MATLAB
        hyper["Activation"] = c.activation if isinstance(c.activation, str) else _Size(shown(c.activation))
    sizes = {name: _per_group_size(name, params.get(key), groups, c.window) for name, key in _LEARNABLE.items()}
    width = max(map(len, hyper)) + 3

    def rows(values: dict) -> str:
        return "\n".join(f"{name:>{width}}: {_matlab(value)}" for name, value in values.items())

    kind = f"{'Transposed' if c.transposed else ''}GroupedConvolution{len(c.window)}DLayer"
    return (
        f"{kind} with properties:\n\n{rows({'Name': getattr(layer, 'name', None) or ''})}\n\n"
        f"   Hyperparameters\n{rows(hyper)}\n\n   Learnable Parameters\n{rows(sizes)}\n"
    )


def parts_of_repr(parts: Iterable[Any]) -> Iterator[Any]:
    """NNX's parts of a layer's repr, with the arguments that are not the defaults in the place of the configuration."""
    for part in parts:
        key, value = getattr(part, "key", None), getattr(part, "value", None)
        if key == "config" and isinstance(value, Config):
            told = value.told().items()
            yield from (type(part)(name, option.name if isinstance(option, np.dtype) else option) for name, option in told)
        elif key != "out_features" and not (key in ("mask", "bias") and value is None or key == "name" and not value):
            yield part


def _parameters_of(layer, params: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if not params:
        return {name: getattr(layer, name, None) for name in ("kernel", "bias")}
    found = params["params"] if isinstance(params.get("params"), Mapping) else params
    if "kernel" not in found:
        raise ValueError(
            f"`params` must be those of one layer, {{'kernel': ..., 'bias': ...}}, got {{{', '.join(map(repr, found))}}}. "
            "Of a layer within a model: variables['params'][its name]."
        )
    return {name: value.unbox() if hasattr(value, "unbox") else value for name, value in found.items()}  # with_partitioning


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
