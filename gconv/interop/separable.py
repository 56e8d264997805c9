"""A separable convolution with its parameters, free of any framework: two convolutions, the second of window 1."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from jax.typing import ArrayLike

from gconv.interop.convolution import Convolution, from_gconv

if TYPE_CHECKING:
    from gconv import linen, nnx


class Separable(NamedTuple):
    """A channel-wise convolution and a pointwise one, each a `Convolution`; it can be called, and it makes either Flax layer.

    Attributes:
      depthwise: applied first.
      pointwise: applied to its result.
    """

    depthwise: Convolution
    pointwise: Convolution

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Both convolutions of `x (*batch, *spatial, channels)`, channels last."""
        return self.pointwise(self.depthwise(x))

    def to_nnx(self, **options: Any) -> "nnx.SeparableConv":
        """A `gconv.nnx.SeparableConv`; `options` are further arguments of it."""
        from flax import nnx as flax_nnx

        from gconv import nnx

        own = {f"{name}_options": {"kernel_init": one.kernel} | one._arguments() for name, one in self._asdict().items()}
        arguments = self._arguments() | own | {"rngs": flax_nnx.Rngs(0)} | options
        return nnx.SeparableConv(self.depthwise.in_features, **arguments)

    def to_linen(self, **options: Any) -> "tuple[linen.SeparableConv, dict[str, Any]]":
        """`(module, variables)`: a `gconv.linen.SeparableConv`, its parameters and their factors."""
        from gconv import linen

        made = {name: one.to_linen()[1] for name, one in self._asdict().items()}
        own = {f"{name}_options": one._arguments() for name, one in self._asdict().items()}
        for given in own.values():
            given.pop("bias_init", None), given.pop("name", None)
        variables = {kind: {name: of[kind] for name, of in made.items()} for kind in ("params", "factors")}
        return linen.SeparableConv(**self._arguments() | own | options), variables

    def _arguments(self) -> dict[str, Any]:
        c = self.depthwise.config
        sizes = dict(kernel_size=c.window, out_features=self.pointwise.kernel.shape[-1])
        return sizes | {"depth_multiplier": c.filters_per_group}


def separable_from_gconv(source: Any) -> Separable | None:
    """The `Separable` of a layer of gconv, of `(module, variables)` of Linen or of a pair of convolutions; None of another.

    Raises:
      ValueError: for a layer with norms, which are no part of it.
    """
    layer: Any
    other: Any
    layer, other = source if isinstance(source, tuple) and len(source) == 2 else (source, None)
    if hasattr(layer, "depthwise_options"):  # of Linen
        from gconv.grouped.linen import GroupedConv
        from gconv.separable.linen import parts_of

        made, params = parts_of(layer), other.get("params", other)
        norms, names = made.norms, Separable._fields
        pair = [(GroupedConv(**given), params[name]) for name, given in zip(names, made[:2], strict=True)]
    elif hasattr(layer, "depthwise_norm"):
        norms, pair = (layer.depthwise_norm, layer.pointwise_norm), [layer.depthwise, layer.pointwise]
    elif other is not None and not isinstance(other, Mapping):
        norms, pair = (None, None), [layer, other]
    else:
        return None
    if norms != (None, None):
        raise ValueError("the layer has norms, which are no part of a separable convolution elsewhere: norm=None would work.")
    return Separable(*map(from_gconv, pair))
