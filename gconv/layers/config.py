"""The options of a layer, checked and in canonical form."""

from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gconv import backends, geometry, options
from gconv.fusion import activations
from gconv.op import result_dtype

FLOATS = ("float32", "float64", "float16", "bfloat16", "complex64", "complex128")
# What else the types are called -> their names.
DTYPE_ALIASES = {
    **dict.fromkeys(("bf16", "brain"), "bfloat16"),
    **dict.fromkeys(("fp16", "f16"), "float16"),
    **dict.fromkeys(("fp32", "f32", "tf32"), "float32"),
    **dict.fromkeys(("fp64", "f64"), "float64"),
}


@dataclass(frozen=True)
class Config:
    """The options of a layer, checked and in canonical form; hashable."""

    window: tuple[int, ...]
    filters_per_group: int
    groups: int | str
    strides: tuple[int, ...]
    padding: str | options.Pairs
    dilation: tuple[int, ...]
    padding_value: complex | str = 0
    output_padding: tuple[int, ...] = ()
    input_dilation: tuple[int, ...] = ()  # () of a transposed one, which has none
    transposed: bool = False
    activation: Any = None
    use_bias: bool = True
    channels_per_group: int | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    implementation: str | None = None
    preferred_element_type: Any = None
    integer_window: bool = False  # whether `kernel_size` was one integer, which Flax's users mean in 1-D

    def __repr__(self) -> str:
        """What is not the default, in a line."""
        return f"Config({', '.join(f'{name}={shown(value)}' for name, value in self.told().items())})"

    def told(self) -> dict[str, Any]:
        """The arguments of a layer that are needed to make this one again, in their order."""
        ones, zeros = (1,) * len(self.window), (0,) * len(self.window)
        plain = {"strides": ones, "dilation": ones, "input_dilation": ones, "output_padding": zeros, "padding": (0, 0)}
        found = {}
        for field in fields(self):
            name, value = _ARGUMENTS.get(field.name, field.name), getattr(self, field.name)
            same = value == field.default if field.default is not MISSING else False
            usual = value == plain.get(name) or name == "padding" and set(value) == {(0, 0)}
            if not (same or usual or name in ("transposed", "integer_window")):
                found[name] = value
        return found

    @property
    def padding_mode(self) -> str:
        """ "manual", or the name that fixes the padding when the input is known."""
        return self.padding if isinstance(self.padding, str) else "manual"

    @property
    def padding_size(self) -> tuple[int, ...] | None:
        """Low and high of each axis in turn (MATLAB's [t b l r]), or None where it depends on the input's size."""
        if self.padding in ("same", "same_lower") and any(s > 1 for s in self.strides):
            return None
        effective = geometry.effective_window(self.window, self.dilation)
        # At stride 1 "same" does not depend on the input's size, so any size tells it.
        pairs = geometry.resolve_padding(self.padding, effective, effective, self.strides)
        return tuple(p for pair in pairs for p in pair)

    def split(self, in_features: int) -> tuple[int, int]:
        """`(groups, channels per group)` of an input with `in_features` channels."""
        groups, channels = geometry.split_channels(self.groups, in_features)
        if self.channels_per_group not in (None, channels):
            raise ValueError(
                f"`num_channels_per_group` contradicts `groups`: {in_features} channels in groups={groups} make {channels}, "
                f"got {self.channels_per_group}. Values that work: {channels}, or None to derive it."
            )
        return groups, channels

    def kernel_shape(self, in_features: int) -> tuple[int, ...]:
        groups, channels = self.split(in_features)
        if self.transposed:  # the kernel of the convolution that is transposed: its input channels are our filters
            return (*self.window, self.filters_per_group, in_features)
        return (*self.window, channels, self.out_features(in_features))

    def out_features(self, in_features: int) -> int:
        return self.split(in_features)[0] * self.filters_per_group

    def stack_of(self, kernel_shape: tuple[int, ...], in_features: int) -> tuple[int, ...]:
        """The axes in front of one layer's, where `nnx.vmap` or `nnx.scan` made a stack of layers; () of one layer."""
        own = self.kernel_shape(in_features)
        if tuple(kernel_shape[-len(own) :]) != own:
            raise ValueError(
                f"`kernel` must have shape {own}, or with the axes of a stack of layers in front of it: got "
                f"{tuple(kernel_shape)}. Of nnx.vmap and nnx.scan, an axis that works: 0."
            )
        return tuple(kernel_shape[: -len(own)])


def configure(
    kernel_size,
    filters_per_group,
    groups,
    *,
    strides=1,
    padding=0,
    dilation=1,
    padding_value=0,
    output_padding=0,
    input_dilation=1,
    transposed: bool = False,
    activation=None,
    num_channels_per_group=None,
    use_bias: bool = True,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    precision=None,
    implementation: str | None = None,
    preferred_element_type: DTypeLike | None = None,
) -> Config:
    """The arguments of a layer as a `Config`, or an error at construction that says what is wrong."""
    window = options.window_of(kernel_size)
    rank = len(window)
    backends.check_name(implementation)
    dtype, param_dtype = _inexact("dtype", dtype), _inexact("param_dtype", param_dtype)
    preferred = _inexact("preferred_element_type", preferred_element_type)
    precision = tuple(precision) if isinstance(precision, list) else precision
    # Refuses a precision that lax does not know, and where the operands' type is known, one that is too narrow for their sums.
    result_dtype(jnp.dtype("float32") if dtype is None else dtype, precision, None if dtype is None else preferred)
    if not isinstance(use_bias, bool):
        raise TypeError(f"`use_bias` must be True or False, got {use_bias!r}. An initial bias: bias_init=array.")
    if options.is_list(filters_per_group):
        raise TypeError(
            f"`filters_per_group` must be an integer, got {filters_per_group!r}. The window comes before it, the other way "
            f"round than in Flax: kernel_size={filters_per_group!r}."
        )
    strides, dilation = options.per_axis("strides", strides, rank), options.per_axis("dilation", dilation, rank)
    padding = options.parse_padding(padding, rank)
    output_padding = options.per_axis("output_padding", output_padding, rank, minimum=0)
    geometry.check_output_padding(output_padding, strides, dilation, padding)
    factors = () if transposed else options.per_axis("input_dilation", input_dilation, rank)
    fill = options.parse_padding_value(padding_value)
    options.check_fill_of_dilated(fill, factors or (1,))
    auto = num_channels_per_group in (None, "auto")
    return Config(
        window=window,
        filters_per_group=options.integer("filters_per_group", filters_per_group, 1),
        groups=options.parse_groups(groups),
        strides=strides,
        padding=padding,
        dilation=dilation,
        padding_value=fill,
        output_padding=output_padding,
        input_dilation=factors,
        transposed=transposed,
        activation=_activation(activation),
        use_bias=use_bias,
        channels_per_group=None if auto else options.integer("num_channels_per_group", num_channels_per_group, 1),
        dtype=dtype,
        param_dtype=param_dtype,
        precision=precision,
        implementation=implementation,
        preferred_element_type=preferred,
        integer_window=not options.is_list(kernel_size),
    )


def reconfigured(config: Config, name: str, value) -> Config:
    """The configuration with one argument of the layer given anew, checked as at construction."""
    given = {field.name: getattr(config, field.name) for field in fields(config)}
    given["kernel_size"], given["num_channels_per_group"] = given.pop("window"), given.pop("channels_per_group")
    integer_window = given.pop("integer_window")
    return replace(configure(**given | {name: value}), integer_window=integer_window)


def shown(value) -> str:
    """A value of a configuration in a line: types and functions by their names."""
    return repr(value.name) if isinstance(value, np.dtype) else getattr(value, "__name__", None) or repr(value)


# Fields whose argument has another name.
_ARGUMENTS = {"window": "kernel_size", "channels_per_group": "num_channels_per_group"}


def _activation(activation):
    """In one form for each activation. A function with arrays in it would hide them from the optimizer."""
    if any(leaf is not activation for leaf in jax.tree.leaves(activation)):
        raise TypeError(
            f"`activation` must be a function without parameters, got {type(activation).__name__}. A layer with parameters "
            "comes after this one, as in nnx.Sequential(conv, activation)."
        )
    return activations.canonical(activation)


def _inexact(name: str, dtype):
    if dtype is None and name != "param_dtype":
        return None
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if dtype is None or found is None or not jnp.issubdtype(found, jnp.inexact):
        written = str(dtype).rpartition(".")[-1]  # of another library's type, such as torch.float32
        near = options.did_you_mean(written, FLOATS, DTYPE_ALIASES) if found is None else ""
        works = near or " A value that works: jnp.float32."
        raise TypeError(f"`{name}` must be a floating or complex dtype, got {dtype!r}.{works}")
    return found
