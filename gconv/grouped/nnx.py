"""`GroupedConv` and `GroupedConvTranspose` of Flax NNX."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from gconv import layers
from gconv.layers import Config, attributes, describe
from gconv.layers.attributes import Fact, FactorOf, Facts, Option
from gconv.layers.display import parts_of_repr
from gconv.naming import signature_of, translating
from gconv.optim.factor import learn_rate_and_l2
from gconv.options import Pairs, integer, metadata_of
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


class _Shell(Facts, nnx.Module):
    """Parameters in NNX's way; everything else is the configuration's."""

    in_features: int
    out_features: int
    config: Config
    name: str
    kernel: nnx.Param
    bias: nnx.Param | None
    mask: Array | None

    def _set_up(
        self,
        in_features,
        kernel_init,
        bias_init,
        kernel_learn_rate_factor,
        bias_learn_rate_factor,
        kernel_l2_factor,
        bias_l2_factor,
        mask,
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
        shape = config.kernel_shape(self.in_features)
        if mask is not None:
            layers.check_mask(mask, shape)
        # Keys are drawn in the order of nnx.Conv: kernel, then bias if there is one.
        init = layers.kernel_initializer(kernel_init, config, self.in_features)
        value = init(rngs.params(), shape, config.param_dtype)
        self.kernel = nnx.Param(value, **(of_kernel | metadata_of("kernel", kernel_metadata)))
        if config.use_bias:
            init = layers.bias_initializer(bias_init, config, self.in_features)
            value = init(rngs.params(), (self.out_features,), config.param_dtype)
            self.bias = nnx.Param(value, **(of_bias | metadata_of("bias", bias_metadata)))
        else:
            self.bias = nnx.data(None)
        self.mask = mask

    def __call__(self, inputs: ArrayLike, out_sharding: Sharding = None) -> jax.Array:
        """Applies the layer.

        Args:
          inputs: `(*batch, *spatial, in_features)`, any number of batch axes.
          out_sharding: sharding of the output on a mesh with explicit axes, as in `flax.nnx.Conv`.

        Returns:
          `(*batch, *output, out_features)`.
        """
        bias = None if self.bias is None else self.bias[...]
        return layers.apply(self.config, self.in_features, inputs, self.kernel[...], bias, out_sharding, self.mask)

    def __str__(self) -> str:
        return describe(self)

    def __nnx_repr__(self) -> Iterator[Any]:
        yield from parts_of_repr(super().__nnx_repr__())

    if not TYPE_CHECKING:  # type checkers know the attributes

        def __init_subclass__(cls, **options):
            super().__init_subclass__(**options)
            cls.__signature__ = signature_of(cls)  # else help shows that of NNX's metaclass, which takes anything

        def __getattr__(self, name: str):
            reason = attributes.why_not_there(type(self), name)
            raise AttributeError(reason or f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

        def __setattr__(self, name: str, value) -> None:
            if isinstance(getattr(type(self), name, None), (Option, FactorOf)):
                object.__setattr__(self, name, value)
            elif reason := attributes.why_not_set(self, name):
                raise AttributeError(reason)
            elif name == "mask":  # data as in nnx.Conv, and also where there was none before
                super().__setattr__(name, nnx.data(value))
            else:
                super().__setattr__(name, value)

    # MATLAB's read-only properties.
    kernel_size = Fact[tuple[int, ...]](lambda c: c.window, "The window, one integer per spatial axis.")
    filters_per_group = Fact[int](lambda c: c.filters_per_group, "Output channels of each group.")
    use_bias = Fact[bool](lambda c: c.use_bias, "Whether there is a bias.")
    param_dtype = Fact[Any](lambda c: c.param_dtype, "Type of the parameters.")

    @property
    def groups(self) -> int:
        """The number of groups."""
        return self.config.split(self.in_features)[0]

    @property
    def num_channels_per_group(self) -> int:
        """Input channels of each group."""
        return self.config.split(self.in_features)[1]

    # The options, which may be set.
    strides = Option[tuple[int, ...], PerAxis]()
    padding = Option[str | Pairs, Padding]()
    dilation = Option[tuple[int, ...], PerAxis]()
    activation = Option[Any, Activation | None]()
    dtype = Option[Any, DTypeLike | None]()
    precision = Option[Any, Precision]()
    implementation = Option[str | None, Implementation | None]()
    preferred_element_type = Option[Any, DTypeLike | None]()
    kernel_learn_rate_factor = FactorOf("kernel", "learn_rate_factor")
    kernel_l2_factor = FactorOf("kernel", "l2_factor")
    bias_learn_rate_factor = FactorOf("bias", "learn_rate_factor")
    bias_l2_factor = FactorOf("bias", "l2_factor")


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
      padding: as in `gconv.grouped_conv`; 0 by default, as in MATLAB, where Flax has "SAME".
      strides, dilation, input_dilation, padding_value: as in `gconv.grouped_conv`.
      activation: what the result goes through, as in `gconv.grouped_conv`: None, a name such as "relu", or a function without
        parameters of its own.
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
      precision, implementation, preferred_element_type: as in `gconv.grouped_conv`.
      mask: an array of the kernel's shape, or None: the layer convolves with `kernel * mask`, as `flax.nnx.Conv` does. It is
        part of the layer's state and no parameter. May be given anew: `layer.mask = ...`.
      kernel_metadata, bias_metadata: metadata of the parameters, such as `out_sharding`; wins over the factors above.
      name: shown by the display.
      rngs: `flax.nnx.Rngs`, whose "params" stream draws the initial values.

    The factors, `name`, `mask`, `strides`, `padding`, `dilation`, `input_dilation`, `padding_value`, `activation`, `dtype`,
    `precision`, `implementation` and `preferred_element_type` may be given anew as attributes; what shapes or draws the
    parameters may not.

    Raises:
      ValueError, TypeError: at construction, naming the argument, its numbers and a value that works.
      AttributeError: where an attribute is set that would have no effect, naming what to do instead.
    """

    @translating
    def __init__(
        self,
        in_features: int,
        kernel_size: Window,
        filters_per_group: int,
        groups: Groups,
        *,
        strides: PerAxis = 1,
        padding: Padding = 0,
        dilation: PerAxis = 1,
        input_dilation: PerAxis = 1,
        padding_value: PaddingValue = 0,
        activation: Activation | None = None,
        num_channels_per_group: NumChannelsPerGroup = None,
        use_bias: bool = True,
        kernel_init: KernelInit = "glorot",
        bias_init: BiasInit = "zeros",
        kernel_learn_rate_factor: float = 1,
        bias_learn_rate_factor: float = 1,
        kernel_l2_factor: float = 1,
        bias_l2_factor: float = 0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: Precision = None,
        implementation: Implementation | None = None,
        preferred_element_type: DTypeLike | None = None,
        mask: Array | None = None,
        kernel_metadata: Mapping[str, Any] | None = None,
        bias_metadata: Mapping[str, Any] | None = None,
        name: str = "",
        rngs: nnx.Rngs,
    ):
        self._set_up(**{key: value for key, value in locals().items() if key != "self"})

    input_dilation = Option[tuple[int, ...], PerAxis]()
    padding_value = Option[complex | str, PaddingValue]()


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

    @translating
    def __init__(
        self,
        in_features: int,
        kernel_size: Window,
        filters_per_group: int,
        groups: Groups,
        *,
        strides: PerAxis = 1,
        padding: Padding = 0,
        dilation: PerAxis = 1,
        output_padding: PerAxis = 0,
        activation: Activation | None = None,
        num_channels_per_group: NumChannelsPerGroup = None,
        use_bias: bool = True,
        kernel_init: KernelInit = "glorot",
        bias_init: BiasInit = "zeros",
        kernel_learn_rate_factor: float = 1,
        bias_learn_rate_factor: float = 1,
        kernel_l2_factor: float = 1,
        bias_l2_factor: float = 0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: Precision = None,
        implementation: Implementation | None = None,
        preferred_element_type: DTypeLike | None = None,
        mask: Array | None = None,
        kernel_metadata: Mapping[str, Any] | None = None,
        bias_metadata: Mapping[str, Any] | None = None,
        name: str = "",
        rngs: nnx.Rngs,
    ):
        self._set_up(transposed=True, **{key: value for key, value in locals().items() if key != "self"})

    output_padding = Option[tuple[int, ...], PerAxis]()
