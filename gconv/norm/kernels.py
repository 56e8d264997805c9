"""The passes of batch norm, and sums over pixels, as C++ kernels on CPU: `gconv/native/norm` holds them.

The signatures are those of `plain`.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gconv import native
from gconv.dtypes import accumulator

TYPES = ("float32", "float64", "bfloat16", "float16")
PASSES = ("moments", "apply", "sums", "backward", "totals")


def why_not(dtype, platform: str, shape: tuple) -> str | None:
    """No library, another platform, a type that it has no kernels for, or no numbers at all."""
    if platform != "cpu":
        return f"its kernels run on CPU, not on {platform!r}"
    if jnp.dtype(dtype).name not in TYPES:
        return f"it has kernels for {', '.join(TYPES)}, not for {jnp.dtype(dtype).name}"
    if not math.prod(shape):
        return f"there are no numbers in {shape}"
    library, reason = native.load()
    if library is not None and not hasattr(library, native.NORM_ENTRY):
        return f"its library was built of the sources of another version: {native.HOW_TO_BUILD}"
    return reason


def moments(x: Array) -> Array:
    """`(2, C)`: mean and variance."""
    return _call("moments", x, relu=False, residual=())[0]


def apply(x: Array, factors: Array, *residual: Array, relu: bool) -> Array:
    """`y`."""
    return _call("apply", x, factors, *residual, relu=relu, residual=residual)[0]


def sums(x: Array, factors: Array, *operands: Array, relu: bool) -> Array:
    """`(2, C)`: the sums of dz and of dz * (x - mean)."""
    return _call("sums", x, factors, *operands, relu=relu, residual=operands[:-1])[0]


def backward(x: Array, factors: Array, *operands: Array, relu: bool) -> tuple[Array, ...]:
    """The cotangents of x and of the residual if there is one."""
    return tuple(_call("backward", x, factors, *operands, relu=relu, residual=operands[:-2]))


def totals(x: Array) -> Array:
    """`(N, C)`: the sum over the pixels of each image."""
    images, channels = x.shape[0], x.shape[-1]
    parts = partitions(x.size // (images * channels), channels)
    scratch = jax.ShapeDtypeStruct((8 * images * parts * channels,), jnp.uint8)
    return _run("totals", [jax.ShapeDtypeStruct((images, channels), accumulator(x.dtype)), scratch], x, partitions=parts)[0]


def _call(name: str, x: Array, *operands: Array, relu: bool, residual: tuple) -> list[Array]:
    channels = x.shape[-1]
    rows = x.size // channels
    large = jax.ShapeDtypeStruct((rows, channels), x.dtype)
    parts = partitions(rows, channels)
    if name in ("moments", "sums"):  # partial sums are float64 whatever the type, and JAX may not have it enabled
        scratch = jax.ShapeDtypeStruct((16 * parts * channels,), jnp.uint8)
        results = [jax.ShapeDtypeStruct((2, channels), accumulator(x.dtype)), scratch]
    else:
        results = [large] * (1 + (name == "backward" and len(residual)))
    given = (a.reshape(large.shape) if a.shape == x.shape and a.ndim != 2 else a for a in (x, *operands))
    found = _run(name, results, *given, relu=relu, residual=bool(residual), partitions=parts)
    return [a.reshape(x.shape) if result is large else a for a, result in zip(found, results, strict=True)]


def _run(name: str, results: list, *operands: Array, partitions: int, relu=False, residual=False) -> Sequence[Array]:
    native.register_kernels()
    run = jax.ffi.ffi_call(native.NORM_TARGET, results)
    number = np.int64(PASSES.index(name))
    return run(*operands, **{"pass": number}, relu=relu, residual=residual, partitions=np.int64(partitions))


@functools.cache
def partitions(rows: int, channels: int) -> int:
    """How many partial sums: of the shape alone, so that results have the same bits on any number of threads."""
    return max(1, min(rows // 64, rows * channels // (1 << 14), 64))
