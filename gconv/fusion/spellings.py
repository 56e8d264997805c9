"""How programs spell the activations that a convolution can end with."""

import itertools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.special import erf, erfc

from gconv.fusion.activations import FUNCTIONS

_relu6s: tuple[Callable, ...] = (jax.nn.relu6, lambda x: jnp.maximum(jnp.minimum(x, 6), 0))


def spellings() -> Iterator[tuple[str, Callable]]:
    """The name of an activation and a function of an array that computes it, many times over.

    That of leaky_relu takes the slope as its second argument. All of one name agree everywhere, also at infinities and NaN, but
    for rounding.
    """
    for name, function in FUNCTIONS.items():
        yield name, (lambda x, slope: jax.nn.leaky_relu(x, slope)) if name == "leaky_relu" else function
    yield "leaky_relu", lambda x, slope: jnp.where(x > 0, x, slope * x)
    yield "leaky_relu", lambda x, slope: jnp.where(x < 0, slope * x, x)
    yield "leaky_relu", lambda x, slope: jnp.where(x <= 0, slope * x, x)
    yield "relu6", _relu6s[1]
    yield "sigmoid", _sigmoid
    yield "silu", lambda x: x * _sigmoid(x)
    yield "silu", lambda x: x / (1 + jnp.exp(-x))
    for function in _hard_sigmoids():
        yield "hard_sigmoid", function
        yield "hard_silu", lambda x, f=function: x * f(x)
    for relu6 in _relu6s:
        yield "hard_silu", lambda x, f=relu6: x * f(x + 3) / 6
        yield "hard_silu", lambda x, f=relu6: x * f(x + 3) * (1 / 6)
    for gate, product in itertools.product(_tanh_gates(), _halves()):
        yield "gelu", lambda x, gate=gate, product=product: product(x, gate(x))
    for gate, product in itertools.product(_erf_gates(), _halves()):
        yield "gelu_exact", lambda x, gate=gate, product=product: product(x, gate(x))


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + jnp.exp(-x))


def _hard_sigmoids() -> Iterator[Callable]:
    for relu6 in _relu6s:
        yield lambda x, f=relu6: f(x + 3) / 6
        yield lambda x, f=relu6: f(x + 3) * (1 / 6)
    yield lambda x: jnp.clip(x / 6 + 0.5, 0, 1)
    yield lambda x: jnp.clip(x * (1 / 6) + 0.5, 0, 1)
    yield lambda x: jnp.clip((x + 3) / 6, 0, 1)


def _halves() -> Iterator[Callable]:
    """x * gate / 2."""
    yield lambda x, gate: x * (0.5 * gate)
    yield lambda x, gate: (0.5 * x) * gate
    yield lambda x, gate: 0.5 * (x * gate)
    yield lambda x, gate: x * gate / 2
    yield lambda x, gate: x * (gate / 2)
    yield lambda x, gate: (x / 2) * gate


def _tanh_gates() -> Iterator[Callable]:
    root = math.sqrt(2 / math.pi)
    for cube in (lambda x: lax.integer_pow(x, 3), lambda x: x * x * x, lambda x: x * lax.integer_pow(x, 2), _cube_by_square):
        yield lambda x, cube=cube: 1 + jnp.tanh(root * (x + 0.044715 * cube(x)))
    for square in (lambda x: x * x, lambda x: lax.integer_pow(x, 2), jnp.square):
        yield lambda x, square=square: 1 + jnp.tanh(root * x * (1 + 0.044715 * square(x)))
        yield lambda x, square=square: 1 + jnp.tanh(x * root * (1 + 0.044715 * square(x)))
        yield lambda x, square=square: 1 + jnp.tanh(root * (x * (1 + 0.044715 * square(x))))


def _cube_by_square(x: Array) -> Array:
    return x * jnp.square(x)


def _erf_gates() -> Iterator[Callable]:
    root = math.sqrt(2)
    yield lambda x: 1 + erf(x / root)
    yield lambda x: 1 + erf(x * (1 / root))
    yield lambda x: erfc(-x / root)
    yield lambda x: erfc(-x * (1 / root))
    yield lambda x: erfc(x * (-1 / root))
