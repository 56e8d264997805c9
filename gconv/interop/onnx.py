"""ONNX: the nodes `Conv` and `ConvTranspose`, channels first there, with all their ways to pad."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gconv.geometry import effective_window
from gconv.interop.convolution import Convolution, from_arrays, from_gconv, no_activation, no_mask
from gconv.interop.layouts import array, from_channels_first, to_channels_first
from gconv.naming import translating

AUTO_PAD = {"SAME_UPPER": "same", "SAME_LOWER": "same_lower", "VALID": "valid"}


@translating
def from_onnx(node: Any, initializers: Any, *, spatial: Sequence[int] | None = None) -> Convolution:
    """A node `Conv` or `ConvTranspose` of an ONNX graph as a `Convolution`.

    >>> import numpy as np, onnx, gconv.interop
    >>> node = onnx.helper.make_node(
    ...     "Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER", strides=[2, 2], group=3
    ... )
    >>> found = gconv.interop.from_onnx(node, {"w": np.ones((6, 1, 4, 4))})
    >>> found.config.padding, found(np.ones((1, 8, 8, 3))).shape
    ('same_lower', (1, 4, 4, 6))

    Args:
      node: an `onnx.NodeProto`.
      initializers: the weights by name, arrays or `onnx.TensorProto`; or `model.graph.initializer`.
      spatial: the size of the input, needed for `output_shape`, which ONNX turns into a padding by it.

    Source: https://onnx.ai/onnx/operators/onnx__Conv.html and onnx__ConvTranspose.html. Where `auto_pad` of a ConvTranspose
    leaves an odd surplus, the standard crops it at the end for SAME_UPPER and at the start for SAME_LOWER, and so does this;
    where the stride exceeds the window, the result is `n * stride` long, as the standard says; in onnxruntime 1.32 it is not.
    """
    transposed = getattr(node, "op_type", None) == "ConvTranspose"
    if not transposed and getattr(node, "op_type", None) != "Conv":
        raise ValueError(f"`node` must be a Conv or ConvTranspose, got {getattr(node, 'op_type', type(node).__name__)}.")
    names = [*node.input, ""][1:3]
    weight = _initializer(initializers, names[0])
    bias = _initializer(initializers, names[1]) if names[1] else None
    rank = weight.ndim - 2
    if not 1 <= rank <= 3:
        raise ValueError(f"`{names[0]}` must have 1, 2 or 3 window axes after two for channels, got shape {weight.shape}.")
    attributes = {a.name: _value(a) for a in node.attribute}
    window = tuple(attributes.get("kernel_shape", weight.shape[2:]))
    if window != weight.shape[2:]:
        raise ValueError(f"`kernel_shape`={list(window)} contradicts the weights of shape {weight.shape}.")
    auto_pad = attributes.get("auto_pad", "NOTSET")
    if auto_pad not in ("NOTSET", *AUTO_PAD):
        raise ValueError(f"`auto_pad` must be NOTSET, {', '.join(AUTO_PAD)}, got {auto_pad!r}.")
    options: dict[str, Any] = dict(
        groups=attributes.get("group", 1),
        strides=tuple(attributes.get("strides", (1,) * rank)),
        dilation=tuple(attributes.get("dilations", (1,) * rank)),
    )
    pads = attributes.get("pads", (0,) * 2 * rank)
    options["padding"] = AUTO_PAD.get(auto_pad, tuple(zip(pads[:rank], pads[rank:], strict=True)))
    kernel = from_channels_first(weight)
    if not transposed:
        return from_arrays(kernel, bias, **options)
    options["output_padding"] = extra = tuple(attributes.get("output_padding", (0,) * rank))
    effective = effective_window(window, options["dilation"])
    if (size := attributes.get("output_shape")) is not None:
        if spatial is None:
            raise ValueError(f"`output_shape`={list(size)} becomes a padding by the size of the input: give it as `spatial`.")
        base = [(n - 1) * s + e for n, s, e in zip(spatial, options["strides"], effective, strict=True)]
        options |= _crop([b + op - n for b, op, n in zip(base, extra, size[-rank:], strict=True)], auto_pad, extra)
    elif auto_pad.startswith("SAME") and any(extra):
        options |= _crop([e - s + op for e, s, op in zip(effective, options["strides"], extra, strict=True)], auto_pad, extra)
    return from_arrays(kernel, bias, transposed=True, **options)


@translating
def to_onnx(
    layer: Any, *, name: str = "conv", input: str = "x", output: str = "y", spatial: Sequence[int] | None = None
) -> tuple[list[Any], list[Any]]:
    """A gconv layer as nodes and initializers of an ONNX graph, `(nodes, initializers)`; needs onnx.

    One node, `Conv` or `ConvTranspose`; before it a `Pad` where something else than zeros is added.

    >>> import gconv, onnx
    >>> from flax import nnx
    >>> layer = gconv.nnx.GroupedConv(6, 3, 4, 3, strides=2, padding="same", rngs=nnx.Rngs(0))
    >>> nodes, initializers = gconv.interop.to_onnx(layer)
    >>> [node.op_type for node in nodes], [tensor.name for tensor in initializers]
    (['Conv'], ['conv.weight', 'conv.bias'])

    Args:
      layer: a layer of `gconv.nnx`, a pair `(module, variables)` of `gconv.linen`, or a `Convolution`.
      name: of the node; the initializers are called `name.weight`, `name.bias`, `name.pads` and `name.fill`.
      input, output: the names of the tensors that it reads and makes, both channels first.
      spatial: the size of the input, needed for "same" with strides and a `padding_value` other than 0; with strides and
        dilation it spares `auto_pad`, which onnxruntime has not for dilated windows.
    """
    from onnx import helper, numpy_helper

    found = from_gconv(layer)
    no_mask(found, "ONNX")
    no_activation(found, "ONNX")
    c = found.config
    nodes, tensors = [], {f"{name}.weight": to_channels_first(found.kernel)}
    if found.bias is not None:
        tensors[f"{name}.bias"] = found.bias
    inputs = [input, *tensors]
    options: dict[str, Any] = dict(strides=c.strides, dilations=c.dilation, group=found.groups, kernel_shape=c.window)
    auto_pad = {value: key for key, value in AUTO_PAD.items()}
    if c.padding_value != 0:
        modes = {"symmetric-exclude-edge": "reflect", "replicate": "edge", "circular": "wrap"}
        if isinstance(c.padding_value, str) and c.padding_value not in modes:
            works = ", ".join(map(repr, modes))
            raise ValueError(f"ONNX has no `padding_value`={c.padding_value!r}. Values that work: a number, {works}.")
        pairs = ((0, 0), (0, 0), *found.explicit(spatial)[0])
        pads = {f"{name}.pads": np.array([lo for lo, _ in pairs] + [hi for _, hi in pairs], np.int64)}
        mode = "constant"
        if isinstance(c.padding_value, str):
            mode = modes[c.padding_value]
        else:
            pads[f"{name}.fill"] = np.array(c.padding_value, found.kernel.dtype)
        nodes.append(helper.make_node("Pad", [input, *pads], [f"{name}.padded"], mode=mode, name=f"{name}.pad"))
        tensors |= pads
        inputs[0] = f"{name}.padded"
    elif c.padding in auto_pad and not c.transposed and (set(c.dilation) == {1} or c.padding_size is spatial is None):
        options["auto_pad"] = auto_pad[c.padding]
    else:
        pairs, extra = found.explicit(spatial)  # of dilated windows, too: onnxruntime has no auto_pad for them
        options["pads"] = [lo for lo, _ in pairs] + [hi for _, hi in pairs]
        options |= {"output_padding": extra} if c.transposed else {}
    kind = "ConvTranspose" if c.transposed else "Conv"
    nodes.append(helper.make_node(kind, inputs, [output], name=name, **options))
    return nodes, [numpy_helper.from_array(value, key) for key, value in tensors.items()]


def _crop(totals, auto_pad: str, extra) -> dict[str, Any]:
    """The surplus as a padding, the odd one at the end for SAME_UPPER, at the start otherwise; what lacks adds at the end."""
    crops = [max(t, 0) for t in totals]
    low = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in crops]
    pairs = tuple((lo, t - lo) for lo, t in zip(low, crops, strict=True))
    return {"padding": pairs, "output_padding": tuple(op + max(-t, 0) for op, t in zip(extra, totals, strict=True))}


def _initializer(initializers, name: str) -> np.ndarray:
    if not isinstance(initializers, Mapping):
        if not isinstance(initializers, Iterable):
            raise TypeError(f"`initializers` must be a mapping or model.graph.initializer, got {type(initializers).__name__}.")
        initializers = {tensor.name: tensor for tensor in initializers}
    if name not in initializers:
        there = ", ".join(map(repr, list(initializers)[:8])) or "none"
        raise ValueError(f"`initializers` has no {name!r}, which the node reads; it has {there}.")
    value = initializers[name]
    if hasattr(value, "raw_data"):  # a TensorProto, whose encodings onnx itself knows
        from onnx import numpy_helper

        value = numpy_helper.to_array(value)
    return array(name, value)


def _value(attribute):
    """An `onnx.AttributeProto` that is an integer, integers, or a string."""
    if attribute.type == 2:
        return attribute.i
    return attribute.s.decode() if attribute.type == 3 else tuple(attribute.ints)
