"""`SeparableConv` of Flax NNX."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from gconv.grouped.nnx import GroupedConv
from gconv.naming import translating
from gconv.norm.nnx import BatchNorm
from gconv.options import integer
from gconv.separable.arguments import parts
from gconv.typing import Activation, Implementation, Norm, Padding, PaddingValue, PerAxis, Precision, Window


class SeparableConv(nnx.Module):
    """A channel-wise convolution, then a pointwise one of window 1: with far fewer weights nearly what a dense one does.

    >>> import jax.numpy as jnp, gconv
    >>> from flax import nnx
    >>> block = gconv.nnx.SeparableConv(
    ...     32, 3, 64, strides=2, padding="same", norm="batch", activation="relu", rngs=nnx.Rngs(0)
    ... )
    >>> block(jnp.ones((8, 32, 32, 32))).shape
    (8, 16, 16, 64)
    >>> block.depthwise.kernel.shape, block.pointwise.kernel.shape, block.depthwise.bias
    ((3, 3, 1, 32), (1, 1, 32, 64), None)

    It is made of the attributes `depthwise` and `pointwise`, which are `gconv.nnx.GroupedConv`, and `depthwise_norm` and
    `pointwise_norm`, which are `gconv.nnx.BatchNorm` or None: `depthwise`, its norm, `pointwise`, its norm.

    Args:
      in_features: channels of the input.
      kernel_size: the window of the channel-wise convolution, as in `GroupedConv`.
      out_features: channels of the output.
      strides, padding, dilation, padding_value: of the channel-wise convolution, as in `GroupedConv`.
      depth_multiplier: filters of the channel-wise convolution for each channel.
      norm: None or "batch", for both convolutions, or a pair: after the channel-wise one, after the pointwise one.
      activation: as in `GroupedConv`, for both convolutions or as a pair. It follows the norm where there is one. Keras'
        `SeparableConv2D` has one at the end: `activation=(None, "relu")`.
      use_bias: whether the convolutions have a bias, for both or as a pair. None leaves out what the next layer makes useless:
        before a norm, and of the channel-wise convolution without an activation.
      depthwise_options, pointwise_options: more arguments of either convolution, such as
        `{"kernel_init": "he", "bias_learn_rate_factor": 2}`; they win over those above.
      norm_options: more arguments of the norms, such as `{"momentum": 0.9}`.
      dtype, param_dtype, precision, implementation: of all layers, as in `GroupedConv`.
      rngs: `flax.nnx.Rngs`, whose "params" stream draws the initial values.

    Raises:
      ValueError, TypeError: at construction, naming the argument, its numbers and a value that works.
    """

    @translating
    def __init__(
        self,
        in_features: int,
        kernel_size: Window,
        out_features: int,
        *,
        strides: PerAxis = 1,
        padding: Padding = 0,
        dilation: PerAxis = 1,
        padding_value: PaddingValue = 0,
        depth_multiplier: int = 1,
        norm: Norm | tuple[Norm, Norm] = None,
        activation: Activation | None | tuple[Activation | None, Activation | None] = None,
        use_bias: bool | None | tuple[bool | None, bool | None] = None,
        depthwise_options: Mapping[str, Any] | None = None,
        pointwise_options: Mapping[str, Any] | None = None,
        norm_options: Mapping[str, Any] | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: Precision = None,
        implementation: Implementation | None = None,
        rngs: nnx.Rngs,
    ):
        given = {name: value for name, value in locals().items() if name not in ("self", "in_features", "rngs", "__class__")}
        made = parts(**given)
        self.in_features = integer("in_features", in_features, 1)
        self.out_features = made.pointwise["filters_per_group"]
        self.depthwise = GroupedConv(self.in_features, **made.depthwise, rngs=rngs)
        self.pointwise = GroupedConv(self.depthwise.out_features, **made.pointwise, rngs=rngs)
        norms = zip((self.depthwise, self.pointwise), made.norms, strict=True)
        self.depthwise_norm, self.pointwise_norm = (
            None if one is None else BatchNorm(conv.out_features, **one, rngs=rngs) for conv, one in norms
        )

    def __call__(self, inputs: ArrayLike, use_running_average: bool | None = None) -> jax.Array:
        """Applies the layers.

        Args:
          inputs: `(*batch, *spatial, in_features)`, any number of batch axes.
          use_running_average: of the norms; None takes the constructor's or the mode's, as in `flax.nnx.BatchNorm`.

        Returns:
          `(*batch, *output, out_features)`.
        """
        y = self.depthwise(inputs)
        y = y if self.depthwise_norm is None else self.depthwise_norm(y, use_running_average)
        y = self.pointwise(y)
        return y if self.pointwise_norm is None else self.pointwise_norm(y, use_running_average)
