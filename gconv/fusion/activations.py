"""What a layer can end with: the names of activations, and the functions of JAX that they are.

Those in FUNCTIONS the kernels know. The names in OTHERS stand for functions of `jax.nn` that are applied to the result.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax import Array

from gconv.options import did_you_mean

# In the order of gconv/native/epilogue.h.
FUNCTIONS: dict[str, Callable[..., Array]] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_silu": jax.nn.hard_silu,
    "tanh": jax.nn.tanh,
    "gelu": jax.nn.gelu,
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
}
ALIASES = {"swish": "silu", "hard_swish": "hard_silu", "gelu_tanh": "gelu", "gelu_erf": "gelu_exact"}
OTHERS = ("elu", "softplus", "soft_sign", "selu", "celu", "mish")
# Of leaky_relu, in JAX and in Flax.
SLOPE = 0.01


@dataclass(frozen=True)
class Activation:
    """An activation that the kernels know; hashable.

    Attributes:
      name: a key of FUNCTIONS.
      slope: of leaky_relu, what it multiplies negative numbers with.
    """

    name: str
    slope: float = SLOPE

    def __repr__(self) -> str:
        return self.name if self.slope == SLOPE else f"{self.name}(slope={self.slope})"

    @property
    def number(self) -> int:
        """By which the kernels know it; 0 is none."""
        return 1 + [*FUNCTIONS].index(self.name)

    def __call__(self, x: Array) -> Array:
        return jax.nn.leaky_relu(x, self.slope) if self.name == "leaky_relu" else FUNCTIONS[self.name](x)


Function = Activation | Callable[..., Array]


def parse(activation: Any) -> Function | None:
    """What a user may write, as an Activation where the kernels know it, else as a function, or None.

    Raises:
      ValueError: a name that is none of these, with the nearest one.
    """
    if activation is None or isinstance(activation, Activation):
        return activation
    if isinstance(activation, str):
        name = ALIASES.get(activation, activation)
        if name in FUNCTIONS:
            return Activation(name)
        if name in OTHERS:
            return getattr(jax.nn, name)
    elif callable(activation):
        return known(activation) or activation
    near = did_you_mean(activation, [*FUNCTIONS, *ALIASES, *OTHERS]) if isinstance(activation, str) else ""
    works = near or f" Names that work: {', '.join((*FUNCTIONS, *OTHERS))}."
    raise ValueError(f"`activation` must be None, a name or a function of an array, got {activation!r}.{works}")


def known(function: Callable) -> Activation | None:
    """The activation that a function of `jax.nn` is, with the options of a `functools.partial`; None for any other function."""
    plain, options = function, {}
    if isinstance(function, functools.partial) and not function.args:
        plain, options = function.func, function.keywords
    if plain is jax.nn.gelu and options.keys() <= {"approximate"}:
        return Activation("gelu" if options.get("approximate", True) else "gelu_exact")
    if plain is jax.nn.leaky_relu and options.keys() <= {"negative_slope"}:
        slope = options.get("negative_slope", SLOPE)
        return Activation("leaky_relu", float(slope)) if isinstance(slope, (int, float)) else None
    return None if options else next((Activation(name) for name, f in FUNCTIONS.items() if f is plain), None)


def canonical(activation: Any) -> str | Function | None:
    """What a user may write, in one form for each activation: a name where there is one that says all."""
    found = parse(activation)
    if isinstance(found, Activation):
        return found.name if found == Activation(found.name) else found
    return next((name for name in OTHERS if getattr(jax.nn, name) is found), found)
