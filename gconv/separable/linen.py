"""`SeparableConv` of Flax Linen."""

from collections.abc import Mapping
from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import freeze
from jax.typing import ArrayLike, DTypeLike

from gconv.grouped.linen import GroupedConv
from gconv.naming import translating
from gconv.norm.linen import BatchNorm
from gconv.separable.arguments import Parts, parts
from gconv.typing import Activation, Implementation, Norm, Padding, PaddingValue, PerAxis, Precision, Window

_FIELDS = (
    *("kernel_size", "out_features", "strides", "padding", "dilation", "padding_value", "depth_multiplier", "norm"),
    *("activation", "use_bias", "depthwise_options", "pointwise_options", "norm_options", "dtype", "param_dtype"),
    *("precision", "implementation"),
)


class SeparableConv(nn.Module):
    """A channel-wise convolution, then a pointwise one of window 1; see `gconv.nnx.SeparableConv`.

    The arguments are those of `gconv.nnx.SeparableConv`, without `in_features` and `rngs`. The submodules are `depthwise`,
    `depthwise_norm`, `pointwise` and `pointwise_norm`.

    >>> import jax, jax.numpy as jnp, gconv
    >>> block = gconv.linen.SeparableConv(3, 64, padding="same", norm="batch", activation="relu")
    >>> x = jnp.ones((8, 16, 16, 32))
    >>> variables = block.init(jax.random.key(0), x, use_running_average=False)
    >>> y, changed = block.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    >>> y.shape, sorted(changed["batch_stats"])
    ((8, 16, 16, 64), ['depthwise_norm', 'pointwise_norm'])
    """

    kernel_size: Window
    out_features: int
    _: KW_ONLY
    strides: PerAxis = 1
    padding: Padding = 0
    dilation: PerAxis = 1
    padding_value: PaddingValue = 0
    depth_multiplier: int = 1
    norm: Norm | tuple[Norm, Norm] = None
    activation: Activation | None | tuple[Activation | None, Activation | None] = None
    use_bias: bool | None | tuple[bool | None, bool | None] = None
    depthwise_options: Mapping[str, Any] | None = None
    pointwise_options: Mapping[str, Any] | None = None
    norm_options: Mapping[str, Any] | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: Precision = None
    implementation: Implementation | None = None

    def __post_init__(self):
        for name in ("depthwise_options", "pointwise_options", "norm_options"):  # hashable, as in GroupedConv
            if isinstance(getattr(self, name), Mapping):
                object.__setattr__(self, name, freeze(dict(getattr(self, name))))
        made = parts_of(self)  # every error that can come at construction does
        GroupedConv(**made.depthwise, parent=None), GroupedConv(**made.pointwise, parent=None)
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: ArrayLike, use_running_average: bool | None = None) -> jax.Array:
        """Applies the layers to `(*batch, *spatial, channels)`; `use_running_average` is that of `flax.linen.BatchNorm`."""
        made = parts_of(self)
        y: Any = inputs
        for name, options, norm in zip(("depthwise", "pointwise"), made[:2], made.norms, strict=True):
            y = GroupedConv(**options, name=name)(y)
            if norm is not None:
                y = BatchNorm(**norm, name=f"{name}_norm")(y, use_running_average)
        return y


SeparableConv.__init__ = translating(SeparableConv.__init__)  # type: ignore[method-assign]  # which Linen made of the fields


def parts_of(module: SeparableConv) -> Parts:
    """The arguments of the submodules."""
    return parts(**{name: getattr(module, name) for name in _FIELDS})
