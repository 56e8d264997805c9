"""One convolution with its parameters, free of any framework: what every converter makes and reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from gconv import geometry, layers
from gconv.layers import Config
from gconv.optim.factor import Factor
from gconv.options import Pairs


@dataclass(frozen=True, eq=False)
class Convolution:
    """A grouped convolution, transposed or not: its parameters in gconv's layout and its geometry.

    Every `gconv.interop.from_...` returns one, and every `to_...` takes one, or a gconv layer. It can be called, and it makes
    the layer of either Flax API:

    >>> import numpy as np, gconv.interop
    >>> weight, bias = np.ones((8, 2, 3, 3)), np.zeros(8)                                           # PyTorch's layout
    >>> found = gconv.interop.from_torch({"weight": weight, "bias": bias}, stride=2, padding=1, groups=2)
    >>> found.kernel.shape, found(np.ones((1, 7, 7, 4))).shape
    ((3, 3, 2, 8), (1, 4, 4, 8))
    >>> layer = found.to_nnx()                      # a gconv.nnx.GroupedConv
    >>> module, variables = found.to_linen()        # a gconv.linen.GroupedConv and what its `init` would return

    Attributes:
      kernel: NumPy, `(*window, channels, groups * filters)`; of a transposed one `(*window, filters, groups * channels)`.
      bias: NumPy `(groups * filters,)`, or None.
      config: the geometry, and how it is computed.
      kernel_factor, bias_factor: how the parameters train; what is None in them is left to the defaults of the layers.
      name: of the layer, or "".
    """

    kernel: np.ndarray
    bias: np.ndarray | None
    config: Config
    kernel_factor: Factor = Factor()
    bias_factor: Factor = Factor()
    name: str = ""

    @property
    def in_features(self) -> int:
        """Channels of the input."""
        return self.kernel.shape[-1] if self.config.transposed else self.kernel.shape[-2] * self.groups

    @property
    def groups(self) -> int:
        """The number of groups, an integer."""
        assert isinstance(self.config.groups, int)
        return self.config.groups

    @property
    def effective_window(self) -> tuple[int, ...]:
        """The extent of the dilated window."""
        return geometry.effective_window(self.config.window, self.config.dilation)

    def __call__(self, x) -> jax.Array:
        """The convolution of `x (*batch, *spatial, in_features)`, channels last."""
        return layers.apply(self.config, self.in_features, x, self.kernel, self.bias)

    def to_nnx(self, **options):
        """A `gconv.nnx.GroupedConv` or `GroupedConvTranspose`; `options` are further arguments of it."""
        from flax import nnx as flax_nnx

        from gconv import nnx

        kind = nnx.GroupedConvTranspose if self.config.transposed else nnx.GroupedConv
        arguments = {"rngs": flax_nnx.Rngs(0), "kernel_init": self.kernel, **self._arguments(), **options}
        return kind(self.in_features, self.config.window, self.config.filters_per_group, self.groups, **arguments)

    def to_linen(self, **options):
        """`(module, variables)`: a `gconv.linen.GroupedConv` or `GroupedConvTranspose`, its parameters and their factors."""
        from gconv import linen

        kind = linen.GroupedConvTranspose if self.config.transposed else linen.GroupedConv
        arguments = {k: v for k, v in self._arguments().items() if k != "bias_init"} | options
        params = {"kernel": jnp.array(self.kernel)} | ({} if self.bias is None else {"bias": jnp.array(self.bias)})
        module = kind(self.config.window, self.config.filters_per_group, self.groups, **arguments)
        factors = {f"{name}_factor": factor for name, factor in _factors_of(module).items() if name in params}
        return module, {"params": params, "factors": factors}

    def _arguments(self) -> dict[str, Any]:
        c = self.config
        values: dict[str, Any] = dict(strides=c.strides, padding=c.padding, dilation=c.dilation, use_bias=c.use_bias)
        values |= {"output_padding": c.output_padding} if c.transposed else {"padding_value": c.padding_value}
        # A float64 array keeps its type where JAX has 64-bit types, as any array does.
        values["param_dtype"] = jax.dtypes.canonicalize_dtype(self.kernel.dtype)
        values |= dict(dtype=c.dtype, precision=c.precision, implementation=c.implementation)
        for name, factor in (("kernel", self.kernel_factor), ("bias", self.bias_factor)):
            said = {f"{name}_{kind}_factor": getattr(factor, kind) for kind in ("learn_rate", "l2")}
            values |= {argument: value for argument, value in said.items() if value is not None}
        values |= {"name": self.name} if self.name else {}
        return values | ({} if self.bias is None else {"bias_init": self.bias})

    def explicit(self, spatial: Sequence[int] | None = None) -> tuple[Pairs, tuple[int, ...]]:
        """The padding as numbers: `((low, high) per axis, output_padding)`.

        Args:
          spatial: the size of the input, needed where the padding depends on it: "same" with strides.
        """
        c, effective = self.config, self.effective_window
        if c.transposed and c.padding in ("same", "same_lower"):  # of any size: n * stride samples from n
            pairs = geometry.resolve_padding(c.padding, c.strides, effective, c.strides)
            return pairs, tuple(max(s - e, 0) for s, e in zip(c.strides, effective, strict=True))
        if spatial is None and c.padding_size is None:
            raise ValueError(
                f'`padding`="{c.padding}" with strides={c.strides} pads by the size of the input, which has no equivalent '
                f"there: give the size as `spatial`. A value that works, for images of 224 x 224: spatial=(224, 224)."
            )
        if spatial is not None and len(spatial) != len(c.window):
            raise ValueError(f"`spatial` must have one size per spatial axis, {len(c.window)}, got {tuple(spatial)}.")
        return geometry.resolve_padding(c.padding, spatial or effective, effective, c.strides), c.output_padding


def from_arrays(
    kernel,
    bias=None,
    *,
    groups: int | None = None,
    strides=1,
    padding=0,
    dilation=1,
    padding_value: complex | str = 0,
    transposed: bool = False,
    output_padding=0,
    dtype=None,
    precision=None,
) -> Convolution:
    """A `Convolution` of arrays in gconv's layout and gconv's options, checked as the layers check theirs.

    Arrays do not tell `groups`. None takes 1, and is refused where that could go wrong without a word: for one channel per
    group, which depthwise weights have, and for a transposed convolution without a bias, whose length would tell.
    """
    kernel, bias = array("kernel", kernel), None if bias is None else array("bias", bias)
    rank = kernel.ndim - 2
    if not 1 <= rank <= 3 or 0 in kernel.shape:
        raise ValueError(
            f"the weights must have 1, 2 or 3 window axes beside two for channels, all of positive size: got shape "
            f"{kernel.shape} in gconv's layout. A shape that works: (3, 3, 1, 8)."
        )
    groups = _groups_of(kernel, bias, transposed) if groups is None else groups
    inputs, filters = (kernel.shape[-1], kernel.shape[-2]) if transposed else (kernel.shape[-2] * groups, kernel.shape[-1])
    geometry.split_channels(groups, kernel.shape[-1], "the last channels of the weights")
    config = layers.configure(
        kernel.shape[:rank],
        filters if transposed else filters // groups,
        groups,
        strides=strides,
        padding=padding,
        dilation=dilation,
        padding_value=padding_value,
        output_padding=output_padding,
        transposed=transposed,
        use_bias=bias is not None,
        dtype=dtype,
        precision=precision,
    )
    if bias is not None:
        geometry.check_bias(bias.shape, config.out_features(inputs), groups)
    return Convolution(kernel, bias, config)


def _groups_of(kernel, bias, transposed: bool) -> int:
    """The number of groups of weights that come without it, where there is one answer."""
    inner, outer = kernel.shape[-2:]
    if transposed and bias is not None:
        groups, rest = divmod(bias.size, inner)
        return groups if rest == 0 and groups and outer % groups == 0 else 1  # the bias is checked later
    if outer == 1 or not transposed and inner > 1:
        return 1
    if transposed:
        raise ValueError(
            f"`groups` must be given: transposed weights of {inner} output channels per group and {outer} input channels make "
            f"{inner} * groups output channels. Values that work: 1, or another divisor of {outer}."
        )
    raise ValueError(
        f"`groups` must be given: weights of 1 input channel per group and {outer} output channels are those of an input of "
        f"one channel (groups=1), and of a depthwise convolution (groups={outer}). Values that work: 1, {outer}, or another "
        f"divisor of {outer}."
    )


def from_gconv(source) -> Convolution:
    """The `Convolution` of a gconv layer.

    Args:
      source: a layer of `gconv.nnx`; of `gconv.linen` as `(module, variables)`; or a `Convolution`, which is returned as it is.
    """
    if isinstance(source, Convolution):
        return source
    module, params = source if isinstance(source, tuple) and len(source) == 2 else (source, None)
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise TypeError(
            f"the layer must be one of gconv.nnx, a pair (module, variables) of gconv.linen, or a "
            f"gconv.interop.Convolution, got {type(source).__name__}. Another library's converts first: "
            "gconv.interop.from_torch, from_keras, ..."
        )
    if params is None:
        if not hasattr(module, "kernel"):
            raise TypeError("a layer of gconv.linen keeps no parameters: give the pair (module, variables).")
        params = {"kernel": module.kernel, "bias": module.bias}
    elif isinstance(params, Mapping) and "params" in params:
        params = params["params"]
    kernel = array("kernel", params.get("kernel"))
    bias = array("bias", params.get("bias")) if config.use_bias else None
    groups = config.groups
    if isinstance(groups, str):
        groups = kernel.shape[-1] // (1 if config.transposed else config.filters_per_group)
    factors = _factors_of(module)
    found = Convolution(
        kernel,
        bias,
        replace(config, groups=groups, integer_window=False),
        factors["kernel"],
        Factor() if bias is None else factors["bias"],
        module.name or "",
    )
    if kernel.shape != found.config.kernel_shape(found.in_features):
        raise ValueError(f"`kernel` of shape {kernel.shape} does not fit the layer, whose window is {config.window}.")
    return found


def _factors_of(module) -> dict[str, Factor]:
    """What a layer of either Flax API declares: the attributes have the same names."""
    return {
        name: Factor(getattr(module, f"{name}_learn_rate_factor"), getattr(module, f"{name}_l2_factor"))
        for name in ("kernel", "bias")
    }


# --- what the converters share ---------------------------------------------------------------------------------------


def array(name: str, value) -> np.ndarray:
    """A NumPy copy of a parameter of any library: training goes on there without changing it here."""
    if value is None:
        raise ValueError(f"`{name}` is missing.")
    if hasattr(value, "assign") and hasattr(value, "value"):  # a variable of Keras, around its backend's array
        value = value.value
    if hasattr(value, "detach"):  # PyTorch's, whose bfloat16 NumPy does not know
        value = value.detach().cpu()
        half = str(value.dtype) == "torch.bfloat16"
        value = value.float().numpy().astype(ml_dtypes.bfloat16) if half else value.numpy()
    elif not hasattr(value, "shape"):
        raise TypeError(f"`{name}` must be an array, got {type(value).__name__}.")
    elif hasattr(value, "get_metadata"):  # a variable of Flax NNX
        value = value[...]
    found = np.array(value)
    if not found.dtype.isnative:  # big-endian, as files of other machines have it, and JAX does not
        found = found.astype(found.dtype.newbyteorder("="))
    if not jnp.issubdtype(found.dtype, jnp.inexact):
        raise TypeError(f"`{name}` must have a floating or complex dtype, got {found.dtype}.")
    return found


def from_channels_first(weight: np.ndarray) -> np.ndarray:
    """`(out, in, *window)` -> `(*window, in, out)`."""
    return np.ascontiguousarray(weight.transpose(*range(2, weight.ndim), 1, 0)) if weight.ndim > 1 else weight


def to_channels_first(kernel: np.ndarray) -> np.ndarray:
    """`(*window, in, out)` -> `(out, in, *window)`."""
    return np.ascontiguousarray(kernel.transpose(kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2)))


def flipped(kernel: np.ndarray, groups: int) -> np.ndarray:
    """Between the two kernels of a transposed convolution; its own inverse, but for which channels come first.

    The one of the convolution that is transposed, `(*window, filters, groups * channels)`, is gconv's; the one that slides over
    the input with zeros put between its samples, `(*window, channels, groups * filters)`, is that of JAX's `conv_transpose`.
    """
    *window, inner, outer = kernel.shape
    split = np.flip(kernel, axis=tuple(range(len(window)))).reshape(*window, inner, groups, outer // groups)
    return np.ascontiguousarray(split.swapaxes(-1, -3).reshape(*window, outer // groups, groups * inner))


def transposed_by_pads(kernel, bias, pads: Sequence[tuple[int, int]], *, strides, dilation, **options) -> Convolution:
    """The transposed convolution that pads its input, with zeros put between, by `pads`: as JAX and Keras say it.

    Where gconv crops, that pads less than the window: by `effective - 1` less the crop. More at the end is `output_padding`.
    Without strides no zeros are put between: then it is an ordinary convolution as well, whose padding has no limits.

    Args:
      kernel: gconv's, of the convolution that is transposed, with one group.
    """
    effective = geometry.effective_window(kernel.shape[: len(pads)], dilation)
    crops = [(e - 1 - before, e - 1 - after) for e, (before, after) in zip(effective, pads, strict=True)]
    limits = [max(s, d) - 1 for s, d in zip(strides, dilation, strict=True)]
    options |= dict(groups=1, strides=strides, dilation=dilation)
    if all(low >= 0 and high >= -limit for (low, high), limit in zip(crops, limits, strict=True)):
        options |= {"padding": tuple((low, max(high, 0)) for low, high in crops)}
        return from_arrays(kernel, bias, transposed=True, output_padding=tuple(max(-high, 0) for _, high in crops), **options)
    if max(strides) == 1 and min(p for pair in pads for p in pair) >= 0:
        return from_arrays(flipped(kernel, 1), bias, padding=tuple(tuple(pair) for pair in pads), **options)
    most = tuple((e - 1, e - 1 + limit) for e, limit in zip(effective, limits, strict=True))
    raise ValueError(
        f"`padding` of a transposed convolution with strides={tuple(strides)} can reach {most} samples before the first and "
        f"after the last, per axis (the dilated window - 1, at the end the stride or the dilation - 1 more): got "
        f"{tuple(tuple(pair) for pair in pads)}. A value that works: {most}."
    )


def pads_of_dilated(found: Convolution) -> tuple[tuple[int, int], ...]:
    """The padding of which `transposed_by_pads` makes it."""
    pairs, extra = found.explicit()
    return tuple((e - 1 - lo, e - 1 - hi + op) for e, (lo, hi), op in zip(found.effective_window, pairs, extra, strict=True))


def only_zeros(found: Convolution, library: str, remedy: str) -> None:
    """An error unless the padding is of zeros."""
    if found.config.padding_value != 0:
        raise ValueError(f"{library} has no `padding_value`={found.config.padding_value!r} in its convolutions. {remedy}")
