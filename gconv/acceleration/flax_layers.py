"""Flax's layers that cannot be handed another function: the same layers, which compute by gconv."""

from types import SimpleNamespace
from typing import Any

import jax
from flax import nnx

from gconv.acceleration.install import accelerated
from gconv.norm.nnx import BatchNorm as BatchNorm


class ConvTranspose(nnx.ConvTranspose):
    """`flax.nnx.ConvTranspose`, whose convolution is computed by gconv. Nothing else differs, not even the name."""

    __call__ = accelerated(nnx.ConvTranspose.__call__)


class Sequential(nnx.Sequential):
    """`flax.nnx.Sequential`, in which a batch norm of gconv's takes the relu that follows it into its own passes.

    The layers stay as they are, alone and for all who call them otherwise.
    """

    @staticmethod
    def has_pairs(model: nnx.Sequential) -> bool:
        """Whether a batch norm is followed by relu."""
        layers = [*model.layers]
        return any(isinstance(a, nnx.BatchNorm) and b is jax.nn.relu for a, b in zip(layers, layers[1:], strict=False))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The layers one after the other."""
        layers: list[Any] = []
        index = 0
        while index < len(self.layers):
            layer: Any = self.layers[index]
            following = self.layers[index + 1] if index + 1 < len(self.layers) else None
            pair = type(layer) is BatchNorm and layer.activation is None and following is jax.nn.relu
            layers.append(layer.with_relu if pair else layer)
            index += 1 + pair
        view: Any = SimpleNamespace(layers=layers)  # all that Flax's call looks at
        return nnx.Sequential.__call__(view, *args, **kwargs)
