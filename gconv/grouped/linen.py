"""`GroupedConv` and `GroupedConvTranspose` of Flax Linen."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, fields
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import serialization
from flax.core import freeze
from jax.typing import ArrayLike, DTypeLike

from gconv import layers
from gconv.layers import Config, describe
from gconv.layers.attributes import Facts
from gconv.naming import translating
from gconv.optim.factor import DEFAULTS, Factor, learn_rate_and_l2
from gconv.options import integer, metadata_of
from gconv.typing import (
    Activation,
    Array,
    BiasInit,
    Groups,
    Implementation,
    KernelInit,
    NumChannelsPerGroup,
    Padding,
    PaddingValue,
    PerAxis,
    Precision,
    Sharding,
    Window,
)


class _Shell(Facts, nn.Module):
    """Parameters in Linen's way; everything else is the configuration's."""

    kernel_size: Window
    filters_per_group: int
    groups: Groups
    _: KW_ONLY
    strides: PerAxis = 1
    padding: Padding = 0
    dilation: PerAxis = 1
    activation: Activation | None = None
    num_channels_per_group: NumChannelsPerGroup = None
    use_bias: bool = True
    kernel_init: KernelInit = "glorot"
    bias_init: BiasInit = "zeros"
    kernel_learn_rate_factor: float = 1
    bias_learn_rate_factor: float = 1
    kernel_l2_factor: float = 1
    bias_l2_factor: float = 0
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: Precision = None
    implementation: Implementation | None = None
    preferred_element_type: DTypeLike | None = None
    mask: Array | None = None
    kernel_metadata: Mapping[str, Any] | None = None
    bias_metadata: Mapping[str, Any] | None = None

    if not TYPE_CHECKING:

        def __init_subclass__(cls, **options):
            super().__init_subclass__(**options)
            cls.__init__ = translating(cls.__init__)  # the one that Linen has just made of the fields

    def __post_init__(self):
        for name in ("kernel_metadata", "bias_metadata"):  # hashable, so that a module may be a static argument
            if getattr(self, name) is not None:
                object.__setattr__(self, name, freeze(metadata_of(name.removesuffix("_metadata"), getattr(self, name))))
        _config(self), _factor(self, "kernel"), _factor(self, "bias")  # every error that can come at construction does
        super().__post_init__()

    @property
    def config(self) -> Config:
        """The options in canonical form."""
        return _config(self)

    _options = [
        *("kernel_size", "filters_per_group", "groups", "strides", "padding", "dilation", "num_channels_per_group"),
        *("activation", "use_bias", "dtype", "param_dtype", "precision", "implementation", "preferred_element_type"),
    ]

    def _parameter(self, name: str, init, shape):
        metadata = metadata_of(name, getattr(self, f"{name}_metadata"))
        sharding = metadata.pop("out_sharding", None)
        if metadata:
            raise ValueError(
                f"`{name}_metadata` of a Linen layer can hold 'out_sharding' only, a Linen parameter carries nothing else: got "
                f"{sorted(metadata)}. Learn-rate and L2 factors have arguments of their own."
            )
        if sharding is not None:
            init = nn.with_partitioning(init, tuple(sharding))
        if self.is_mutable_collection("factors"):
            # Under a name of its own: NNX's bridge holds all collections of a module in one namespace.
            self.variable("factors", f"{name}_factor", lambda: _factor(self, name))
        elif self.is_mutable_collection("params") and not self.has_variable("params", name):
            _refuse_to_lose(self, name)
        return self.param(name, init, shape, self.config.param_dtype)

    @nn.compact
    def __call__(self, inputs: ArrayLike, out_sharding: Sharding = None) -> jax.Array:
        """Applies the layer to `(*batch, *spatial, channels)`; see `gconv.nnx.GroupedConv`."""
        layers.check_input(self.config, inputs)
        config, in_features = self.config, integer("the channels of the input", jnp.shape(inputs)[-1], 1)
        if self.has_variable("params", "kernel"):
            layers.check_channels(config, in_features, nn.unbox(self.get_variable("params", "kernel")))
        shape = config.kernel_shape(in_features)
        if self.mask is not None:
            layers.check_mask(self.mask, shape)
        init = layers.kernel_initializer(self.kernel_init, config, in_features)
        kernel = self._parameter("kernel", init, shape)
        bias = None
        if config.use_bias:
            init = layers.bias_initializer(self.bias_init, config, in_features)
            bias = self._parameter("bias", init, (config.out_features(in_features),))
        return layers.apply(config, in_features, inputs, kernel, bias, out_sharding, self.mask)

    def __str__(self) -> str:
        return describe(self, {})

    def __repr__(self) -> str:
        """The fields that are not the defaults, in a line."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name != "parent"}
        defaults = {f.name: f.default for f in fields(self)}
        shown = (f"{name}={_shown(value)}" for name, value in told.items() if not _is(value, defaults[name]))
        return f"{type(self).__name__}({', '.join(shown)})"


class GroupedConv(_Shell):
    """Grouped convolution with the semantics of MATLAB's `groupedConvolution2dLayer`, in 1-D, 2-D and 3-D.

    The arguments are those of `gconv.nnx.GroupedConv`, without `in_features` and `rngs`: Linen reads the channels off the input
    and gets its keys from `init`. `kernel_metadata` and `bias_metadata` may hold `out_sharding` (`nn.with_partitioning`).

    >>> import jax, jax.numpy as jnp, gconv
    >>> layer = gconv.linen.GroupedConv(3, 4, 2, padding="same")
    >>> x = jnp.ones((8, 32, 32, 6))
    >>> variables = layer.init(jax.random.key(0), x)
    >>> layer.apply({"params": variables["params"]}, x).shape
    (8, 32, 32, 8)
    """

    _: KW_ONLY
    input_dilation: PerAxis = 1
    padding_value: PaddingValue = 0

    _options = [*_Shell._options, "input_dilation", "padding_value"]


class GroupedConvTranspose(_Shell):
    """The transposed twin of `GroupedConv`; see `gconv.nnx.GroupedConvTranspose`.

    >>> import jax, jax.numpy as jnp, gconv
    >>> layer = gconv.linen.GroupedConvTranspose(4, 3, 2, strides=2, padding=1)
    >>> layer.init_with_output(jax.random.key(0), jnp.ones((1, 16, 16, 8)))[0].shape
    (1, 32, 32, 6)
    """

    _: KW_ONLY
    output_padding: PerAxis = 0

    _options = [*_Shell._options, "output_padding", "transposed"]
    transposed = True


# Functions rather than methods: Linen wraps those, and they must work before the module is set up.


def _is(value, default) -> bool:
    """Whether a field has its default."""
    return value is default or isinstance(value, (str, int, float, tuple)) and value == default


def _shown(value) -> str:
    """A field in a line: arrays by their shapes, functions by their names."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"<{value.dtype} {tuple(value.shape)}>"
    return getattr(value, "__name__", None) or repr(value)


def _config(module: _Shell) -> Config:
    return layers.configure(**{name: getattr(module, name) for name in module._options})


def _factor(module: _Shell, name: str) -> Factor:
    given = (getattr(module, f"{name}_{kind}_factor") for kind in ("learn_rate", "l2"))
    return Factor(*learn_rate_and_l2(name, *given).values())


def _refuse_to_lose(module: _Shell, name: str) -> None:
    """A parameter is being made where its factors cannot be kept: it must not train as if it had declared none."""
    declared, default = _factor(module, name), DEFAULTS[name]
    kinds = [kind for kind in ("learn_rate", "l2") if getattr(declared, kind) != getattr(default, kind)]
    if kinds:
        said = ", ".join(f"{name}_{kind}_factor={getattr(declared, kind)}" for kind in kinds)
        layer_name = "/".join((type(module).__name__, *module.path))
        raise ValueError(
            f'the layer {layer_name} declares {said}, which would be lost: the collection "factors" is not kept here. '
            'Of nn.scan, nn.vmap and other lifted transformations around it: variable_axes={"params": 0, "factors": 0}. '
            'Of `init`: mutable=["params", "factors"]. Otherwise leave the factor to the rules of gconv.optim.factors: '
            f'rules={{"**/{name}": Factor(...)}}.'
        )


serialization.register_serialization_state(
    Factor,
    lambda f: {"learn_rate": f.learn_rate, "l2": f.l2},
    lambda f, state: Factor(float(state["learn_rate"]), float(state["l2"])),
    override=True,
)
