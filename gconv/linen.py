"""Layers for Flax Linen.

Linen's parameters are plain arrays, equal in name, shape and layout to `flax.linen.Conv`'s. What they cannot carry stands
beside them: the collection "factors", made by `init`, holds the learn-rate and L2 factors for `gconv.optim.factors(variables)`.
It is needed nowhere else; `apply` takes `{"params": ...}` alone. Lifted transformations carry the collections that they are
told to: around a layer whose factors are not the defaults, `nn.scan` and `nn.vmap` need
`variable_axes={"params": 0, "factors": 0}`.
"""

from gconv.grouped.linen import GroupedConv as GroupedConv
from gconv.grouped.linen import GroupedConvTranspose as GroupedConvTranspose
from gconv.norm.linen import BatchNorm as BatchNorm
from gconv.separable.linen import SeparableConv as SeparableConv

__all__ = ["BatchNorm", "GroupedConv", "GroupedConvTranspose", "SeparableConv"]


def __dir__() -> list[str]:
    return sorted(__all__)
