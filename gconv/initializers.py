"""Initial values by MATLAB's names, with fans counted **per group**.

JAX's `variance_scaling` on a grouped kernel `(*window, channels, groups * filters)` counts the filters of all groups as
fan-out, which makes the initial weights too small. Here each scheme sees MATLAB's size `(*window, channels, filters, groups)`.

    name             value                                                             source
    "glorot"         uniform, variance 2 / (fan_in + fan_out)                          Glorot & Bengio 2010
    "he"             normal, not truncated, variance 2 / fan_in                        He et al. 2015
    "narrow-normal"  normal, standard deviation 0.01
    "orthogonal"     orthonormal columns (or rows) per group, from a QR decomposition  Saxe et al. 2013
    "zeros", "ones"

with fan_in = prod(window) * channels and fan_out = prod(window) * filters, both per group.

Every function here returns a JAX initializer `(key, shape, dtype) -> array` on the kernel's shape, so it also serves Flax's own
layers: `nnx.Conv(..., feature_group_count=4, kernel_init=gconv.initializers.glorot(groups=4))`. In a gconv layer `groups` may
be left out: the layer fills it in.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from gconv.layout import kernel_from_per_group

__all__ = ["PerGroup", "from_size", "glorot", "he", "narrow_normal", "ones", "orthogonal", "zeros"]


def __dir__() -> list[str]:
    return sorted(__all__)


F = TypeVar("F", bound=Callable[..., Any])


def _factory(function: F) -> F:
    """`function`, with an error that says so where it is given in the place of the initializer that it makes."""

    @functools.wraps(function)
    def call(*arguments, **options):
        if len(arguments) > 1 or arguments and hasattr(arguments[0], "dtype"):
            name = f"gconv.initializers.{function.__name__}"
            raise TypeError(f"`{name}` makes an initializer and is none: call it first. What works: {name}(), or with groups.")
        return function(*arguments, **options)

    return call  # type: ignore[return-value]


@dataclass(frozen=True)
class PerGroup:
    """A JAX initializer on `(*window, channels, groups * filters)` from a scheme on the per-group size.

    Attributes:
      scheme: `(key, size, dtype, fan_in, fan_out) -> array of that size`, size `(*window, channels, filters, groups)`.
      groups: the number of groups, or None until a layer fills it in.
      transposed: for a transposed convolution, which reads a kernel from its filters to its channels: swaps the fans.
    """

    scheme: Callable[..., Any]
    groups: int | None = None
    transposed: bool = False

    def __repr__(self) -> str:
        told = [f"groups={self.groups}"] if self.groups is not None else []
        return f"{getattr(self.scheme, '__name__', 'scheme').strip('_<>')}({', '.join(told)})"

    def within(self, groups: int, transposed: bool = False) -> "PerGroup":
        """The initializer inside a layer, whose groups count where it has none of its own."""
        return self if self.groups is not None else replace(self, groups=groups, transposed=transposed)

    def __call__(
        self, key: jax.Array | None, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None
    ) -> jax.Array:
        """The initial value, of a kernel's shape `(*window, channels, groups * filters)`."""
        if self.groups is None:
            raise ValueError(
                "`groups` is not known to this initializer: outside a gconv layer, name it, as in "
                "gconv.initializers.glorot(groups=4)."
            )
        *window, channels, out = shape
        if out % self.groups:
            raise ValueError(f"`groups` must divide the last axis of the kernel: shape {tuple(shape)}, groups={self.groups}.")
        size = (*window, channels, out // self.groups, self.groups)
        fans = math.prod(window) * channels, math.prod(window) * size[-2]
        value = kernel_from_per_group(self.scheme(key, size, dtype, *(fans[::-1] if self.transposed else fans)))
        return value if out_sharding is None else jax.sharding.reshard(value, out_sharding)


@_factory
def glorot(groups: int | None = None) -> PerGroup:
    """Uniform with variance `2 / (fan_in + fan_out)`, fans per group. See the module's table."""
    return PerGroup(_glorot, groups)


@_factory
def he(groups: int | None = None) -> PerGroup:
    """Normal, not truncated, with variance `2 / fan_in`, fan per group. See the module's table."""
    return PerGroup(_he, groups)


@_factory
def orthogonal(groups: int | None = None) -> PerGroup:
    """Per group an orthogonal `(prod(window) * channels, filters)` matrix. See the module's table."""
    return PerGroup(_orthogonal, groups)


@_factory
def narrow_normal(stddev: float = 0.01) -> PerGroup:
    """Normal with a small standard deviation. See the module's table."""
    return PerGroup(lambda key, size, dtype, *_: stddev * jax.random.normal(key, size, dtype), 1)


@_factory
def zeros() -> PerGroup:
    """All zeros."""
    return PerGroup(lambda key, size, dtype, *_: jnp.zeros(size, dtype), 1)


@_factory
def ones() -> PerGroup:
    """All ones."""
    return PerGroup(lambda key, size, dtype, *_: jnp.ones(size, dtype), 1)


def from_size(function: Callable[[tuple[int, ...]], Any], groups: int | None = None) -> PerGroup:
    """An initializer from a MATLAB-style function of the size.

    Args:
      function: `size -> array`, with MATLAB's size: `(*window, channels, filters, groups)` for a kernel, `(1, 1, filters,
        groups)` for the bias of an image layer. It may return a NumPy array. It is called once, at construction.
      groups: as in the other initializers.

    >>> import numpy as np, gconv.initializers
    >>> init = gconv.initializers.from_size(lambda size: np.full(size, 0.5), groups=2)
    >>> init(None, (3, 3, 1, 4)).shape
    (3, 3, 1, 4)
    """

    if not callable(function):
        raise TypeError(
            f"`function` must be a function of the size, got {type(function).__name__}. What works: lambda size: "
            "numpy.full(size, 0.5). An array is given as it is: kernel_init=array."
        )

    def scheme(key, size, dtype, *_):
        result = jnp.asarray(function(size), dtype)
        if result.shape != tuple(size):
            raise ValueError(f"the initializer's function returned shape {result.shape} for the size {tuple(size)}.")
        return result

    return PerGroup(scheme, groups)


KERNEL = {
    "glorot": glorot,
    "he": he,
    "narrow-normal": narrow_normal,
    "orthogonal": orthogonal,
    "zeros": zeros,
    "ones": ones,
}
BIAS = {name: KERNEL[name] for name in ("zeros", "narrow-normal", "ones")}


def _glorot(key, size, dtype, fan_in, fan_out):
    limit = math.sqrt(6 / (fan_in + fan_out))  # a uniform on [-a, a] has variance a^2 / 3
    if jnp.issubdtype(dtype, jnp.complexfloating):  # half of the variance in each part
        real = jnp.finfo(dtype).dtype
        parts = (jax.random.uniform(k, size, real, -limit, limit) for k in jax.random.split(key))
        return (jax.lax.complex(*parts) / math.sqrt(2)).astype(dtype)
    return jax.random.uniform(key, size, dtype, -limit, limit)


def _he(key, size, dtype, fan_in, fan_out):
    return math.sqrt(2 / fan_in) * jax.random.normal(key, size, dtype)


def _orthogonal(key, size, dtype, fan_in, fan_out):
    *front, filters, groups = size
    one_group, wide = jax.nn.initializers.orthogonal(), np.promote_types(dtype, np.float32)
    per_group = jax.vmap(lambda k: one_group(k, (*front, filters), wide))
    return jnp.moveaxis(per_group(jax.random.split(key, groups)), 0, -1).astype(dtype)
