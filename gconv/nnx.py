"""Grouped convolution as Flax NNX layers: thin shells around `gconv.layers`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from gconv import layers
from gconv.layers import Config, describe
from gconv.mesh.placement import natural_specs
from gconv.optim.factor import DEFAULTS, checked, learn_rate_and_l2
from gconv.options import integer, metadata_of

# What may be given anew after construction, and what may not: no attribute that a user sets is ignored.
_FACTORS = tuple(f"{name}_{kind}_factor" for name in ("kernel", "bias") for kind in ("learn_rate", "l2"))
_OPTIONS = ("strides", "padding", "dilation", "padding_value", "output_padding", "dtype", "precision", "implementation")
_MADE = "is fixed when the layer is made. Make a new one, with another `{name}`"
_USED = "is used once, when the layer is made. The values are layer.kernel[...] and layer.bias[...], which may be set"
_FIXED = {
    **dict.fromkeys(("in_features", "kernel_size", "filters_per_group", "groups", "num_channels_per_group"), _MADE),
    **dict.fromkeys(("use_bias", "param_dtype"), _MADE),
    **dict.fromkeys(("kernel_init", "bias_init", "rngs"), _USED),
    **dict.fromkeys(
        ("kernel_metadata", "bias_metadata"), "is used once: layer.kernel.set_metadata(...), layer.bias.set_metadata(...)"
    ),
    **dict.fromkeys(("padding_mode", "padding_size"), "follows from `padding`, which may be set"),
    "out_features": "is groups * filters_per_group",
}
_MATLAB = {
    "Name": "name",
    "FilterSize": "kernel_size",
    "NumGroups": "groups",
    "NumFiltersPerGroup": "filters_per_group",
    "NumChannelsPerGroup": "num_channels_per_group",
    "Stride": "strides",
    "DilationFactor": "dilation",
    "Padding": "padding",
    "PaddingMode": "padding",
    "PaddingSize": "padding",
    "PaddingValue": "padding_value",
    "Weights": "kernel",
    "Bias": "bias",
    "WeightsInitializer": "kernel_init",
    "BiasInitializer": "bias_init",
    "WeightLearnRateFactor": "kernel_learn_rate_factor",
    "BiasLearnRateFactor": "bias_learn_rate_factor",
    "WeightL2Factor": "kernel_l2_factor",
    "BiasL2Factor": "bias_l2_factor",
}


def _option(name: str) -> property:
    return property(lambda self: getattr(self.config, name))


def _factor(name: str) -> property:
    """A factor as its parameter's metadata has it; None without the parameter."""
    parameter, kind = name.split("_", 1)

    def get(self) -> float | None:
        variable = getattr(self, parameter)
        default = getattr(DEFAULTS[parameter], kind.removesuffix("_factor"))
        return None if variable is None else variable.get_metadata().get(kind, default)

    return property(get)


class _Shell(nnx.Module):
    """Parameters in NNX's way; everything else is the configuration's."""

    in_features: int
    out_features: int
    config: Config
    kernel: nnx.Param
    bias: nnx.Param | None

    def _set_up(
        self,
        in_features,
        kernel_init,
        bias_init,
        kernel_learn_rate_factor,
        bias_learn_rate_factor,
        kernel_l2_factor,
        bias_l2_factor,
        kernel_metadata,
        bias_metadata,
        name,
        rngs,
        **options,
    ):
        super().__setattr__("in_features", integer("in_features", in_features, 1))
        self.config = config = layers.configure(**options)
        super().__setattr__("out_features", config.out_features(self.in_features))
        self.name = name
        of_kernel: dict[str, Any] = learn_rate_and_l2("kernel", kernel_learn_rate_factor, kernel_l2_factor)
        of_bias: dict[str, Any] = learn_rate_and_l2("bias", bias_learn_rate_factor, bias_l2_factor)
        if not isinstance(rngs, nnx.Rngs):
            raise TypeError(f"`rngs` must be flax.nnx.Rngs, got {type(rngs).__name__}. A value that works: nnx.Rngs(0).")
        # Keys are drawn in the order of nnx.Conv: kernel, then bias if there is one.
        init = layers.kernel_initializer(kernel_init, config, self.in_features)
        value = init(rngs.params(), config.kernel_shape(self.in_features), config.param_dtype)
        self.kernel = nnx.Param(value, **(of_kernel | metadata_of("kernel", kernel_metadata)))
        if config.use_bias:
            init = layers.bias_initializer(bias_init, config, self.in_features)
            value = init(rngs.params(), (self.out_features,), config.param_dtype)
            self.bias = nnx.Param(value, **(of_bias | metadata_of("bias", bias_metadata)))
        else:
            self.bias = nnx.data(None)

    def __call__(self, inputs: jax.Array, out_sharding=None) -> jax.Array:
        """Applies the layer.

        Args:
          inputs: `(*batch, *spatial, in_features)`, any number of batch axes.
          out_sharding: sharding of the output on a mesh with explicit axes, as in `flax.nnx.Conv`.

        Returns:
          `(*batch, *output, out_features)`.
        """
        bias = None if self.bias is None else self.bias[...]
        return layers.apply(self.config, self.in_features, inputs, self.kernel[...], bias, out_sharding)

    def __str__(self) -> str:
        return describe(self)

    def __setattr__(self, name: str, value) -> None:
        if name in _FACTORS:
            parameter, kind = name.split("_", 1)
            self._set_factor(parameter, kind, value)
        elif name in _OPTIONS and isinstance(getattr(type(self), name, None), property):
            self.config = layers.reconfigured(self.config, name, value)
        elif name in _FIXED:
            raise AttributeError(f"`{name}` of {type(self).__name__} {_FIXED[name].format(name=name)}.")
        elif name in _OPTIONS:
            raise AttributeError(f"{type(self).__name__} has no `{name}`.")
        elif name in _MATLAB:
            raise AttributeError(f"{type(self).__name__} has no `{name}`: what MATLAB calls so is `{_MATLAB[name]}`.")
        else:
            super().__setattr__(name, value)

    def _set_factor(self, parameter: str, kind: str, value) -> None:
        variable = getattr(self, parameter)
        if variable is None:
            raise AttributeError(f"`{parameter}_{kind}` has nothing to act on: the layer was made with use_bias=False.")
        variable.set_metadata(**{kind: checked(f"{parameter}_{kind}", value)})

    # MATLAB's read-only properties and the options, as attributes.
    kernel_size = property(lambda self: self.config.window)
    groups = property(lambda self: self.config.split(self.in_features)[0])
    num_channels_per_group = property(lambda self: self.config.split(self.in_features)[1])
    filters_per_group = _option("filters_per_group")
    padding_mode = _option("padding_mode")
    padding_size = _option("padding_size")
    use_bias = _option("use_bias")
    param_dtype = _option("param_dtype")
    # And those that may be set.
    strides = _option("strides")
    padding = _option("padding")
    dilation = _option("dilation")
    dtype = _option("dtype")
    precision = _option("precision")
    implementation = _option("implementation")
    kernel_learn_rate_factor = _factor("kernel_learn_rate_factor")
    kernel_l2_factor = _factor("kernel_l2_factor")
    bias_learn_rate_factor = _factor("bias_learn_rate_factor")
    bias_l2_factor = _factor("bias_l2_factor")


class GroupedConv(_Shell):
    """Grouped convolution with the semantics of MATLAB's `groupedConvolution2dLayer`, in 1-D, 2-D and 3-D.

    Parameters and layouts are those of `flax.nnx.Conv(in_features, groups * filters_per_group, kernel_size,
    feature_group_count=groups)`, so checkpoints interchange.

    >>> import jax.numpy as jnp, gconv
    >>> from flax import nnx
    >>> layer = gconv.nnx.GroupedConv(6, 3, 4, 2, padding="same", rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((8, 32, 32, 6))).shape
    (8, 32, 32, 8)
    >>> layer.kernel.shape, layer.bias.shape
    ((3, 3, 3, 8), (8,))

    Args:
      in_features: channels of the input.
      kernel_size: the window; an integer means a square 2-D window, as in MATLAB (`flax.nnx.Conv` reads it as 1-D). One, two or
        three integers choose 1-D, 2-D or 3-D. With a single integer an input needs a batch: `(batch, length, in_features)`
        would be one image.
      filters_per_group: output channels of each group; the output has `groups * filters_per_group`.
      groups: a positive integer that divides `in_features`, or `"channel-wise"` (one group per channel).
      strides, padding, dilation, padding_value: as in `gconv.grouped_conv`; the default padding is 0 as in MATLAB (in
        Flax "SAME").
      num_channels_per_group: None or "auto" derives it; a number is checked.
      use_bias: whether to add a bias.
      kernel_init: `"glorot"`, `"he"`, `"narrow-normal"`, `"orthogonal"`, `"zeros"`, `"ones"` (fans per group, see
        `gconv.initializers`), a JAX initializer `(key, shape, dtype)` on the kernel's shape, `gconv.initializers.from_size` of
        a MATLAB-style function, or an array as the initial value, `(*window, channels, groups * filters)` or MATLAB's
        `(*window, channels, filters, groups)`.
      bias_init: `"zeros"`, `"narrow-normal"`, `"ones"`, an initializer, or an array, `(groups * filters,)` or MATLAB's
        `(1, 1, filters, groups)`.
      kernel_learn_rate_factor, bias_learn_rate_factor: times the global learning rate; 0 freezes. Stored as metadata of the
        parameter (`learn_rate_factor`) and read by `gconv.optim.factors`. May be set later, before the optimizer is made:
        `layer.kernel_learn_rate_factor = 0`.
      kernel_l2_factor, bias_l2_factor: times the global L2 regularization; stored as `l2_factor`.
      dtype: dtype of the computation; None infers it from input and parameters, as `flax.nnx.Conv` does.
      param_dtype: dtype of the parameters.
      precision, implementation: as in `gconv.grouped_conv`.
      kernel_metadata, bias_metadata: metadata of the parameters, such as `out_sharding`; wins over the factors above.
      name: shown by the display.
      rngs: `flax.nnx.Rngs`, whose "params" stream draws the initial values.

    The factors, `name`, `strides`, `padding`, `dilation`, `padding_value`, `dtype`, `precision` and `implementation` may be
    given anew as attributes; what shapes or draws the parameters may not.

    Raises:
      ValueError, TypeError: at construction, naming the argument, its numbers and a value that works.
      AttributeError: where an attribute is set that would have no effect, naming what to do instead.
    """

    def __init__(
        self,
        in_features: int,
        kernel_size: int | Sequence[int],
        filters_per_group: int,
        groups: int | str,
        *,
        strides: int | Sequence[int] = 1,
        padding: int | str | Sequence = 0,
        dilation: int | Sequence[int] = 1,
        padding_value: complex | str = 0,
        num_channels_per_group: int | str | None = None,
        use_bias: bool = True,
        kernel_init: Any = "glorot",
        bias_init: Any = "zeros",
        kernel_learn_rate_factor: float = 1,
        bias_learn_rate_factor: float = 1,
        kernel_l2_factor: float = 1,
        bias_l2_factor: float = 0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision=None,
        implementation: str | None = None,
        kernel_metadata: Mapping[str, Any] | None = None,
        bias_metadata: Mapping[str, Any] | None = None,
        name: str = "",
        rngs: nnx.Rngs,
    ):
        self._set_up(**{key: value for key, value in locals().items() if key != "self"})

    padding_value = _option("padding_value")


class GroupedConvTranspose(_Shell):
    """The transposed twin of `GroupedConv`: PyTorch's `ConvTranspose` with groups, channels last.

    The kernel `(*window, filters_per_group, in_features)` and `padding`, `strides`, `dilation` are those of the convolution
    that is transposed (see `gconv.grouped_conv_transpose`): one from `groups * filters_per_group` to `in_features` channels.

    >>> import jax.numpy as jnp, gconv
    >>> from flax import nnx
    >>> layer = gconv.nnx.GroupedConvTranspose(8, 4, 3, 2, strides=2, padding=1, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((1, 16, 16, 8))).shape
    (1, 32, 32, 6)

    Args:
      in_features: channels of the input.
      filters_per_group: output channels of each group; the output has `groups * filters_per_group`.
      output_padding: as in `gconv.grouped_conv_transpose`.

    The other arguments are those of `GroupedConv`; fans are counted in the layer's own direction.
    """

    def __init__(
        self,
        in_features: int,
        kernel_size: int | Sequence[int],
        filters_per_group: int,
        groups: int | str,
        *,
        strides: int | Sequence[int] = 1,
        padding: int | str | Sequence = 0,
        dilation: int | Sequence[int] = 1,
        output_padding: int | Sequence[int] = 0,
        num_channels_per_group: int | str | None = None,
        use_bias: bool = True,
        kernel_init: Any = "glorot",
        bias_init: Any = "zeros",
        kernel_learn_rate_factor: float = 1,
        bias_learn_rate_factor: float = 1,
        kernel_l2_factor: float = 1,
        bias_l2_factor: float = 0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision=None,
        implementation: str | None = None,
        kernel_metadata: Mapping[str, Any] | None = None,
        bias_metadata: Mapping[str, Any] | None = None,
        name: str = "",
        rngs: nnx.Rngs,
    ):
        self._set_up(transposed=True, **{key: value for key, value in locals().items() if key != "self"})

    output_padding = _option("output_padding")


def shardings(model: nnx.Module, mesh: Mesh, *, groups: str | None = "groups") -> nnx.State:
    """Where a model's variables live on a mesh: kernels and biases of gconv's layers over their groups, all others everywhere.

    An optimizer made afterwards keeps its state where the parameters are.

    >>> import jax, jax.numpy as jnp, gconv
    >>> from flax import nnx
    >>> mesh = jax.make_mesh((1, 1), ("data", "groups"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    >>> model = nnx.Sequential(gconv.nnx.GroupedConv(6, 3, 4, 2, rngs=nnx.Rngs(0)), nnx.BatchNorm(8, rngs=nnx.Rngs(0)))
    >>> nnx.update(model, jax.device_put(nnx.state(model), gconv.nnx.shardings(model, mesh)))
    >>> model.layers[0].kernel[...].sharding.spec
    P(None, None, None, 'groups')

    Args:
      model: any NNX module; stacks of layers, which `nnx.vmap` makes, keep the stack's axes whole.
      mesh: whose axis `groups` splits the groups of the layers that it divides; see `gconv.natural_specs`.

    Returns:
      A state like `nnx.state(model)` with a `NamedSharding` in the place of every value, for `jax.device_put`,
      `jax.lax.with_sharding_constraint` and the arguments of `jax.jit`.
    """
    specs = {
        (*path, name): spec
        for path, module in nnx.iter_modules(model)
        if isinstance(module, _Shell)
        for name, spec in natural_specs(module, mesh, data=None, groups=groups)._asdict().items()
    }
    return nnx.map_state(
        lambda path, variable: variable.replace(NamedSharding(mesh, specs.get(path, PartitionSpec()))), nnx.state(model)
    )
