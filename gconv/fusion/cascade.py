"""Convolutions that follow each other, row by row, as one primitive: what lies between them never becomes an array.

A network's inverted bottleneck expands the channels of each pixel, convolves each channel and reduces them again. Its expanded
channels are the largest arrays of the network by far; written to memory and read back, they take longer than their sums. The
CPU kernels compute some rows of the last result, and of those before it the rows that these need, which stay in the caches
(gconv/native/cascade). Everywhere else, and in every transformation, it is the composition of its links.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gconv import backends, roles
from gconv.fusion import epilogue
from gconv.fusion.activations import Activation
from gconv.fusion.composition import composed
from gconv.geometry import Geometry
from gconv.mesh.sharding import equally_varying

# Bytes between convolutions from which on they run row by row. On 2 threads of a Zen 3 with 512 KiB of second cache each,
# 2026-11-29, MobileNetV2 took 0.93 to 0.98 of the time so with eight images; below, what lies between is in the caches anyway.
LEAST = 3 << 20
# Bytes of it that a row of the result may need: with more it would not stay in a second cache. gconv/native/cascade makes
# stripes of as many rows as fit.
NEAR = 384 << 10


class Link(NamedTuple):
    """A convolution, role "y", with what follows it: the parameters of `epilogue.bind`.

    Attributes:
      parts: which of `epilogue.PARTS` there are; a residual in the last link only.
    """

    geometry: Geometry
    precision: Any
    implementation: str | None
    frozen: bool
    parts: tuple[str, ...]
    activation: Activation | None


def bind(x: Array, links: tuple[Link, ...], operands: list[list[Array]]) -> Array:
    """The result of the last link.

    Args:
      x: the first link's source, `(N, H, W, G*J)`, in the floating type that all arrays between and the result have.
      operands: of each link its kernel, in the same type, and its parts in the types of `epilogue.typed`.
    """
    arrays = [x, *(a for of_link in operands for a in of_link)]
    return PRIMITIVE.bind(*equally_varying(dict(enumerate(arrays))).values(), links=links)


def compose(x, *operands, links: tuple[Link, ...]) -> Array:
    """One link after the other."""
    for link, (kernel, *parts) in _apart(operands, links):
        x = epilogue.bind(
            "y",
            {"x": x, "w": kernel},
            geometry=link.geometry,
            dtype=x.dtype,
            precision=link.precision,
            implementation=link.implementation,
            frozen=link.frozen,
            activation=link.activation,
            **dict(zip(link.parts, parts, strict=True)),
        )
    return x


def pays(geometries: list[Geometry], batch: int, dtype) -> bool:
    """Whether what lies between convolutions leaves the caches, and what a row of the result needs of it does not."""
    if not isinstance(batch, int):
        return False
    element, rows, near, between = jnp.dtype(dtype).itemsize, 1, 0, 0
    for g in reversed(geometries[1:]):
        (height, width), reach = g.spatial, (g.window[0] - 1) * g.dilation[0] + 1
        rows = min(height, (rows - 1) * g.strides[0] + reach)
        near += rows * width * g.in_channels * element
        between += math.prod(g.x_shape(batch)) * element
    return between >= LEAST and near <= NEAR


def _apart(operands, links: tuple[Link, ...]) -> Iterator[tuple[Link, tuple]]:
    at = 0
    for link in links:
        size = 1 + len(link.parts)
        yield link, operands[at : at + size]
        at += size


# --- the primitive ----------------------------------------------------------------------------------------------------


def _abstract(x, *_, links):
    return x.update(shape=links[-1].geometry.y_shape(x.shape[0]), weak_type=False)


def _fits(ctx, *, links: tuple[Link, ...]) -> bool:
    """Whether each link is the kernels'."""
    x, portable = ctx.avals_in[0], roles.must_be_portable(ctx)
    chosen = (backends.choose("y", n.geometry, x.dtype, "cpu", x.shape[0], n.implementation, portable) for n in links)
    return all(name == "native" for name in chosen)


def _by_kernels(x, *operands, links: tuple[Link, ...]) -> Array:
    with jax.named_scope("gconv_cascade_native"):  # so that a lowered text tells which implementation ran
        return backends.native.cascade(x, operands, links)


PRIMITIVE = composed(
    "grouped_conv_cascade",
    compose,
    parameters=("links",),
    abstract=_abstract,
    fits=_fits,
    kernels=_by_kernels,
    alone=lambda params: {"links": tuple(link._replace(frozen=False) for link in params["links"])},  # kernels are arguments
)
