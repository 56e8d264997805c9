"""gconv: grouped convolution for JAX.

`gconv.nnx`, `gconv.linen`, `gconv.optim`, `gconv.interop` and `gconv.initializers` are loaded when they are first used, so that
the functions alone need neither Flax nor optax.
"""

import importlib

from gconv.acceleration import accelerate as accelerate
from gconv.acceleration import accelerated as accelerated
from gconv.acceleration import conv_general_dilated as conv_general_dilated
from gconv.acceleration import install as install
from gconv.acceleration import uninstall as uninstall
from gconv.causal import causal_conv1d as causal_conv1d
from gconv.explanation import explain as explain
from gconv.explanation import implementations as implementations
from gconv.layers import describe as describe
from gconv.mesh.placement import natural_specs as natural_specs
from gconv.native import register_kernels as register_kernels
from gconv.op import grouped_conv as grouped_conv
from gconv.op import grouped_conv_transpose as grouped_conv_transpose
from gconv.roles import convolutions_saveable as convolutions_saveable
from gconv.version import __version__ as __version__

_SUBMODULES = ("initializers", "interop", "linen", "nnx", "optim")


def __getattr__(name: str):
    if name in _SUBMODULES:
        return importlib.import_module(f"gconv.{name}")
    raise AttributeError(f"module 'gconv' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_SUBMODULES])
