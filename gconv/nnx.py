"""Layers for Flax NNX, and where their variables live on a mesh."""

from gconv.grouped.nnx import GroupedConv as GroupedConv
from gconv.grouped.nnx import GroupedConvTranspose as GroupedConvTranspose
from gconv.mesh.nnx import shardings as shardings
from gconv.norm.nnx import BatchNorm as BatchNorm
from gconv.separable.nnx import SeparableConv as SeparableConv

__all__ = ["BatchNorm", "GroupedConv", "GroupedConvTranspose", "SeparableConv", "shardings"]


def __dir__() -> list[str]:
    return sorted(__all__)
