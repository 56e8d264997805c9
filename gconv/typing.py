"""What arguments may be, for type checkers and for annotations of one's own functions.

    def block(width: int, padding: gconv.typing.Padding = "same") -> flax.nnx.Module: ...

Names are taken in any case; checkers know them in lower case, and Flax's in capitals too.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

Window = int | Sequence[int]
PerAxis = int | Sequence[int]
PaddingName = Literal["same", "same_lower", "valid", "causal", "SAME", "SAME_LOWER", "VALID", "CAUSAL"]
Padding = int | Sequence[int] | Sequence[tuple[int, int]] | Sequence[Sequence[int]] | PaddingName
PaddingMode = Literal["symmetric-include-edge", "symmetric-exclude-edge", "replicate", "circular"]
PaddingValue = complex | PaddingMode
Groups = int | Literal["channel-wise"]
NumChannelsPerGroup = int | Literal["auto"] | None
Implementation = Literal["native", "xla", "lax"]
ActivationName = Literal[
    "relu",
    "relu6",
    "leaky_relu",
    "sigmoid",
    "silu",
    "swish",
    "hard_sigmoid",
    "hard_silu",
    "hard_swish",
    "tanh",
    "gelu",
    "gelu_tanh",
    "gelu_exact",
    "gelu_erf",
    "elu",
    "softplus",
    "soft_sign",
    "selu",
    "celu",
    "mish",
]
Activation = ActivationName | Callable[[Any], Any]
Norm = Literal["batch"] | None
Platform = Literal["cpu", "cuda", "rocm", "tpu"]
Sharding = NamedSharding | PartitionSpec | None
Solver = Literal["sgdm", "rmsprop", "adam"]
GradientThresholdMethod = Literal["l2norm", "global-l2norm", "absolute-value"]
LearnRateSchedule = Literal["none", "piecewise"]

Precision = jax.lax.PrecisionLike


class Initializer(Protocol):
    """A function of a key, a shape and a dtype that gives an array: JAX's, Flax's and `gconv.initializers`'."""

    def __call__(self, key: Any, shape: Any, dtype: Any, /) -> Any:
        """The initial value."""


KernelInitName = Literal["glorot", "he", "narrow-normal", "orthogonal", "zeros", "ones"]
BiasInitName = Literal["zeros", "narrow-normal", "ones"]
Array = jax.Array | np.ndarray[Any, Any]
KernelInit = KernelInitName | Initializer | Array
BiasInit = BiasInitName | Initializer | Array
Schedule = Callable[[jax.Array], jax.Array | float]

__all__ = [
    "Activation",
    "ActivationName",
    "Array",
    "BiasInit",
    "BiasInitName",
    "GradientThresholdMethod",
    "Groups",
    "Implementation",
    "Initializer",
    "KernelInit",
    "KernelInitName",
    "LearnRateSchedule",
    "Norm",
    "NumChannelsPerGroup",
    "Padding",
    "PaddingMode",
    "PaddingName",
    "PaddingValue",
    "PerAxis",
    "Platform",
    "Precision",
    "Schedule",
    "Sharding",
    "Solver",
    "Window",
]
