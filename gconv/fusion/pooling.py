"""The sums over all pixels of an image that follow a convolution: of global pooling, and of squeeze-and-excite."""

import math

from jax import Array

from gconv.dtypes import accumulator
from gconv.fusion.program import Node, Value, typeof
from gconv.norm import primitives

# Numbers from which on the kernel takes no longer than XLA's loop: 2 threads of a Zen 3, 2026-11-29, one and eight images,
# 2 x 2 to 112 x 112 pixels of 8 to 1,280 channels, with a call's overhead: 0.84 to 1.04 with fewer, 0.97 to 4.0 with more.
LEAST = 1 << 14


def summed(node: Node) -> Value | None:
    """The images, channels last, whose pixels a node adds up in the type that sums are formed in; None for all else."""
    if node.name != "reduce_sum" or node.params.get("out_sharding") is not None or node.equation.ctx.compute_type is not None:
        return None
    (x,), (total,) = node.inputs, node.outputs
    shape = typeof(x).shape
    axes = tuple(range(1, len(shape) - 1))
    if not isinstance(x, Value) or not axes or tuple(sorted(node.params["axes"])) != axes:
        return None
    if x.node is not None and x.node.name == "convert_element_type" and isinstance(x.node.inputs[0], Value):
        x = x.node.inputs[0]  # jnp.mean and jnp.sum widen half precision first
    if accumulator(typeof(x).dtype) != typeof(total).dtype:
        return None
    return x if all(isinstance(n, int) for n in shape) and math.prod(shape) >= LEAST else None


def pool(x: Array) -> Array:
    """`(N, C)` of `(N, *spatial, C)`."""
    return primitives.bind("totals", x)
