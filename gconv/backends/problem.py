"""What the rules of `gconv.backends.choice` ask about: one role of one convolution on one platform, and its plain facts."""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from gconv.geometry import Geometry


@dataclass(frozen=True)
class Problem:
    """One role of one convolution, for one platform.

    Attributes:
      role: "y" (the convolution), "x" (the input gradient) or "w" (the kernel gradient).
      g: the convolution, of known sizes.
      dtype: of the operands.
      platform: by JAX's lowering names.
      batch: the number of images, or a symbol of JAX's where it is not known.
      frozen: whether the kernel is the same in every call of a program, which then packs it once.
    """

    role: str
    g: Geometry
    dtype: Any
    platform: str
    batch: Any
    frozen: bool = False

    @property
    def type(self) -> str:
        return jnp.dtype(self.dtype).name

    @property
    def taps(self) -> int:
        return math.prod(self.g.window)

    @property
    def skip(self) -> int:
        """One pixel of so many has a result: the product of the strides."""
        return math.prod(self.g.strides)

    @property
    def sources(self) -> int:
        """The channels of a group that a result of role "y" or "x" is a sum over."""
        return self.g.filters if self.role == "x" else self.g.channels

    @property
    def results(self) -> int:
        """The channels of a group that result of role "y" or "x"."""
        return self.g.channels if self.role == "x" else self.g.filters

    @property
    def pairs(self) -> int:
        """The pairs of a channel and a filter of a group."""
        return self.g.channels * self.g.filters

    @property
    def row(self) -> int:
        """The numbers in one row of results of role "y" or "x"."""
        g = self.g
        return g.spatial[-1] * g.in_channels if self.role == "x" else g.output[-1] * g.out_channels

    @property
    def pixels(self) -> float:
        """Of `y`, in all images; infinite where the batch is not known."""
        return self.batch * math.prod(self.g.output) if isinstance(self.batch, int) else math.inf

    @property
    def products(self) -> float:
        """That the role sums; infinite where the batch is not known."""
        return products(self.g, self.batch) if isinstance(self.batch, int) else math.inf


def products(geometry: Geometry, batch):
    """How many products any role sums."""
    return batch * math.prod(geometry.output) * math.prod(geometry.window) * geometry.out_channels * geometry.channels
