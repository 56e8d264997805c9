"""Weights and layers from and to MATLAB, PyTorch, Keras, Haiku, Equinox, Flax and ONNX, without loss, geometry included.

Every `from_...` returns a `Convolution`, which makes gconv's layers (`to_nnx`, `to_linen`) or is called itself; every `to_...`
takes a gconv layer. A library is imported only to make an object of its own.

`dtype`, `precision` and `preferred_element_type` travel where the other library keeps them with a layer: all with Flax, `dtype`
with Keras, as its policy. Elsewhere a layer computes in the type of its parameters, which always travels. A `mask` travels to
Flax and Haiku, `input_dilation` to Flax.
"""

from gconv.interop.convolution import Convolution as Convolution
from gconv.interop.convolution import from_arrays as from_arrays
from gconv.interop.convolution import from_gconv as from_gconv
from gconv.interop.equinox import from_equinox as from_equinox
from gconv.interop.equinox import to_equinox as to_equinox
from gconv.interop.flax import from_flax as from_flax
from gconv.interop.flax import to_flax as to_flax
from gconv.interop.haiku import from_haiku as from_haiku
from gconv.interop.haiku import to_haiku as to_haiku
from gconv.interop.keras import from_keras as from_keras
from gconv.interop.keras import to_keras as to_keras
from gconv.interop.lax import as_lax as as_lax
from gconv.interop.matlab import bias_from_matlab as bias_from_matlab
from gconv.interop.matlab import bias_to_matlab as bias_to_matlab
from gconv.interop.matlab import from_matlab as from_matlab
from gconv.interop.matlab import kernel_from_matlab as kernel_from_matlab
from gconv.interop.matlab import kernel_to_matlab as kernel_to_matlab
from gconv.interop.matlab import load_mat as load_mat
from gconv.interop.matlab import save_mat as save_mat
from gconv.interop.matlab import to_matlab as to_matlab
from gconv.interop.onnx import from_onnx as from_onnx
from gconv.interop.onnx import to_onnx as to_onnx
from gconv.interop.separable import Separable as Separable
from gconv.interop.torch import from_torch as from_torch
from gconv.interop.torch import to_torch as to_torch

__all__ = [
    "Convolution",
    "Separable",
    "as_lax",
    "bias_from_matlab",
    "bias_to_matlab",
    "from_arrays",
    "from_equinox",
    "from_flax",
    "from_gconv",
    "from_haiku",
    "from_keras",
    "from_matlab",
    "from_onnx",
    "from_torch",
    "kernel_from_matlab",
    "kernel_to_matlab",
    "load_mat",
    "save_mat",
    "to_equinox",
    "to_flax",
    "to_haiku",
    "to_keras",
    "to_matlab",
    "to_onnx",
    "to_torch",
]


def __dir__() -> list[str]:
    return sorted(__all__)
