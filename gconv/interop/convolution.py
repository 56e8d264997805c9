"""One convolution with its parameters, free of any framework: what every converter makes and reads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from gconv import geometry, layers
from gconv.interop.layouts import array, flipped
from gconv.layers import Config
from gconv.layers.config import shown
from gconv.naming import translating
from gconv.optim.factor import Factor
from gconv.options import Pairs
from gconv.typing import Activation, Padding, PaddingValue, PerAxis, Precision

if TYPE_CHECKING:
    from gconv import linen
    from gconv.nnx import GroupedConv, GroupedConvTranspose


@dataclass(frozen=True, eq=False, repr=False)
class Convolution:
    """A grouped convolution, transposed or not: its parameters in gconv's layout and its geometry.

    Every `gconv.interop.from_...` returns one, and every `to_...` takes one, or a gconv layer. It can be called, and it makes
    the layer of either Flax API:

    >>> import numpy as np, gconv.interop
    >>> state = {"weight": np.ones((8, 2, 3, 3)), "bias": np.zeros(8)}      # PyTorch's layout
    >>> found = gconv.interop.from_torch(state, stride=2, padding=1, groups=2)
    >>> found.kernel.shape, found(np.ones((1, 7, 7, 4))).shape
    ((3, 3, 2, 8), (1, 4, 4, 8))
    >>> layer = found.to_nnx()                  # a gconv.nnx.GroupedConv
    >>> module, variables = found.to_linen()    # a gconv.linen.GroupedConv, and its variables

    Attributes:
      kernel: NumPy, `(*window, channels, groups * filters)`; of a transposed one `(*window, filters, groups * channels)`.
      bias: NumPy `(groups * filters,)`, or None.
      config: the geometry, and how it is computed.
      mask: NumPy, of the kernel's shape, by which it is multiplied first, or None.
      kernel_factor: how the kernel trains; what is None in it is left to the default of the layers.
      bias_factor: how the bias trains; likewise.
      name: of the layer, or "".
    """

    kernel: np.ndarray[Any, Any]
    bias: np.ndarray[Any, Any] | None
    config: Config
    kernel_factor: Factor = Factor()
    bias_factor: Factor = Factor()
    name: str = ""
    mask: np.ndarray[Any, Any] | None = None

    def __repr__(self) -> str:
        """What is not the default, in a line; arrays by their shapes."""
        told = {"kernel": f"<{self.kernel.dtype} {self.kernel.shape}>"}
        told |= {name: shown(v) for name, v in self.config.told().items() if name not in ("kernel_size", "filters_per_group")}
        told |= {"name": repr(self.name)} if self.name else {}
        told |= {"mask": f"<{self.mask.dtype}>"} if self.mask is not None else {}
        kind = "transposed" if self.config.transposed else ""
        return f"Convolution({', '.join(filter(None, (kind, *(f'{name}={value}' for name, value in told.items()))))})"

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

    def __call__(self, x: ArrayLike) -> jax.Array:
        """The convolution of `x (*batch, *spatial, in_features)`, channels last."""
        return layers.apply(self.config, self.in_features, x, self.kernel, self.bias, mask=self.mask)

    def to_nnx(self, **options: Any) -> "GroupedConv | GroupedConvTranspose":
        """A `gconv.nnx.GroupedConv` or `GroupedConvTranspose`; `options` are further arguments of it."""
        from flax import nnx as flax_nnx

        from gconv import nnx

        kind = nnx.GroupedConvTranspose if self.config.transposed else nnx.GroupedConv
        arguments = {"rngs": flax_nnx.Rngs(0), "kernel_init": self.kernel, **self._arguments(), **options}
        return kind(self.in_features, self.config.window, self.config.filters_per_group, self.groups, **arguments)

    def to_linen(self, **options: Any) -> "tuple[linen.GroupedConv | linen.GroupedConvTranspose, dict[str, Any]]":
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
        values["activation"] = c.activation
        if c.transposed:
            values["output_padding"] = c.output_padding
        else:
            values |= dict(padding_value=c.padding_value, input_dilation=c.input_dilation)
        # A float64 array keeps its type where JAX has 64-bit types, as any array does.
        values["param_dtype"] = jax.dtypes.canonicalize_dtype(self.kernel.dtype)
        values |= dict(dtype=c.dtype, precision=c.precision, implementation=c.implementation)
        values |= dict(preferred_element_type=c.preferred_element_type, mask=self.mask)
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


@translating
def from_arrays(
    kernel: Any,
    bias: Any = None,
    *,
    groups: int | None = None,
    strides: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    padding_value: PaddingValue = 0,
    transposed: bool = False,
    output_padding: PerAxis = 0,
    input_dilation: PerAxis = 1,
    activation: Activation | None = None,
    dtype: DTypeLike | None = None,
    precision: Precision = None,
    preferred_element_type: DTypeLike | None = None,
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
        input_dilation=input_dilation,
        transposed=transposed,
        activation=activation,
        use_bias=bias is not None,
        dtype=dtype,
        precision=precision,
        preferred_element_type=preferred_element_type,
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


def from_gconv(source: Any) -> Convolution:
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
        None if module.mask is None else np.asarray(module.mask),
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


def transposed_by_pads(kernel, bias, pads: Sequence[tuple[int, int]], *, strides, dilation, **options) -> Convolution:
    """The transposed convolution that pads its input, with zeros put between, by `pads`: as JAX and Keras say it.

    Where gconv crops, that pads less than the window: by `effective - 1` less the crop. More at the end is `output_padding`.
    What pads more than that is an ordinary convolution of a dilated input, whose padding has no limits.

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
    pairs = tuple(tuple(pair) for pair in pads)
    if min(p for pair in pairs for p in pair) < 0:
        works = tuple((max(low, 0), max(high, 0)) for low, high in pairs)
        raise ValueError(f"`padding` of a transposed convolution must be at least 0, got {pairs}. A value that works: {works}.")
    return from_arrays(flipped(kernel, 1), bias, padding=pairs, **options | dict(strides=1, input_dilation=strides))


def pads_of_dilated(found: Convolution) -> tuple[tuple[int, int], ...]:
    """The padding of which `transposed_by_pads` makes it."""
    pairs, extra = found.explicit()
    return tuple((e - 1 - lo, e - 1 - hi + op) for e, (lo, hi), op in zip(found.effective_window, pairs, extra, strict=True))


def with_mask(convert: Callable[[np.ndarray], Convolution], kernel: np.ndarray, mask) -> Convolution:
    """`convert(kernel)`, with the mask of the kernel: where its numbers go, the mask's go."""
    found = convert(kernel)
    if mask is None:
        return found
    mask = np.asarray(mask)
    return replace(found, mask=convert(mask.astype(kernel.dtype)).kernel.astype(mask.dtype))


def no_mask(found: Convolution, library: str) -> None:
    """An error where a layer has a mask or an input dilation, which another library has not."""
    if found.mask is not None:
        raise ValueError(
            f"{library} has no `mask` in its convolutions. What works: layer.kernel[...] = layer.kernel[...] * layer.mask, "
            "then layer.mask = None; what is masked trains there."
        )
    if max(found.config.input_dilation, default=1) > 1:
        raise ValueError(
            f"{library} has no `input_dilation` in its convolutions, the layer has {found.config.input_dilation}. Without "
            "strides a GroupedConvTranspose with these strides computes the same."
        )


def no_activation(found: Convolution, library: str) -> None:
    """An error where a layer has an activation, which another library keeps in a layer of its own."""
    if found.config.activation is not None:
        raise ValueError(
            f"{library} has no `activation` in its convolutions, the layer has {shown(found.config.activation)}. What works: "
            "layer.activation = None, and the activation after the layer there."
        )


def only_zeros(found: Convolution, library: str, remedy: str) -> None:
    """An error unless the padding is of zeros."""
    if found.config.padding_value != 0:
        raise ValueError(f"{library} has no `padding_value`={found.config.padding_value!r} in its convolutions. {remedy}")
