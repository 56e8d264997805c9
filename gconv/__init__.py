"""gconv: grouped convolution for JAX.

`gconv.nnx`, `gconv.linen`, `gconv.optim`, `gconv.interop` and `gconv.initializers` are loaded when they are first used, so that
the functions alone need neither Flax nor optax.
"""

import importlib
import sys
from typing import TYPE_CHECKING

from gconv.acceleration import accelerate as accelerate
from gconv.acceleration import accelerated as accelerated
from gconv.acceleration import conv_general_dilated as conv_general_dilated
from gconv.acceleration import install as install
from gconv.acceleration import uninstall as uninstall
from gconv.causal import causal_conv1d as causal_conv1d
from gconv.explanation import explain as explain
from gconv.explanation import implementations as implementations
from gconv.fusion.fuse import fuse as fuse
from gconv.layers import describe as describe
from gconv.mesh.placement import natural_specs as natural_specs
from gconv.native import register_kernels as register_kernels
from gconv.norm import batch_norm as batch_norm
from gconv.op import grouped_conv as grouped_conv
from gconv.op import grouped_conv_transpose as grouped_conv_transpose
from gconv.roles import convolutions_saveable as convolutions_saveable
from gconv.version import __version__ as __version__

if TYPE_CHECKING:  # at run time when they are first used
    from gconv import initializers as initializers
    from gconv import interop as interop
    from gconv import linen as linen
    from gconv import nnx as nnx
    from gconv import optim as optim

__all__ = [
    "__version__",
    "accelerate",
    "accelerated",
    "batch_norm",
    "causal_conv1d",
    "conv_general_dilated",
    "convolutions_saveable",
    "describe",
    "explain",
    "fuse",
    "grouped_conv",
    "grouped_conv_transpose",
    "implementations",
    "install",
    "natural_specs",
    "register_kernels",
    "uninstall",
]
_SUBMODULES = ("initializers", "interop", "linen", "nnx", "optim")


if not TYPE_CHECKING:  # which would make every name one of gconv's

    def __getattr__(name: str):
        if name in _SUBMODULES:
            return importlib.import_module(f"gconv.{name}")
        raise AttributeError(f"module 'gconv' has no attribute {name!r}", name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES])
