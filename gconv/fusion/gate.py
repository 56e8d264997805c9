"""The product of squeeze-and-excite, x * gate, before a pointwise convolution: one number for each image and channel.

The CPU kernels multiply the pixels that a thread works on while they are in its caches, so the product never becomes an array.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from gconv.fusion.channels import Read
from gconv.fusion.convolutions import Convolution
from gconv.fusion.program import Atom, Node, Value, typeof


class Gate(NamedTuple):
    """A product that a convolution can form itself.

    Attributes:
      node: what forms it otherwise.
      source: what is multiplied, channels last.
      factors: the numbers, of which each is repeated along the pixels.
      shape: theirs, `(N or 1, C or 1)`.
    """

    node: Node
    source: Value
    factors: Value
    shape: tuple[int, int]

    def compute(self, read: Read) -> Array:
        """`(N, C)`, one number for each image and channel."""
        images, *_, channels = typeof(self.source).shape
        return jnp.broadcast_to(jnp.asarray(read(self.factors)).reshape(self.shape), (images, channels))


def gate_of(conv: Convolution) -> Gate | None:
    """The product that a convolution reads, if it is one with a gate, and the convolution pointwise; otherwise None."""
    if not (conv.is_pointwise and conv.role == "y" and conv.in_place) or "gate" in conv.parts:
        return None
    product = conv.inputs[0]
    node = product.node if isinstance(product, Value) and len(product.readers) == 1 and not product.is_result else None
    if node is None or node.name != "mul" or node.equation.ctx.compute_type is not None:
        return None
    shape = typeof(product).shape
    if not all(isinstance(n, int) for n in shape) or math.prod(shape[1:-1]) < 2:
        return None
    for source, factors in (node.inputs, node.inputs[::-1]):
        if isinstance(source, Value) and typeof(source).shape == shape and (found := _repeated(factors)):
            # A convolution whose result nothing else reads may take the factors in itself, as a scale.
            return Gate(node, source, *found) if len({*source.readers}) > 1 else None
    return None


def _repeated(atom: Atom) -> tuple[Value, tuple[int, int]] | None:
    """What is repeated along the pixels, and its shape without them."""
    if not isinstance(atom, Value):
        return None
    shape = typeof(atom).shape
    if not shape:
        return atom, (1, 1)
    if all(n == 1 for n in shape[1:-1]):
        return atom, (shape[0], shape[-1])
    node = atom.node
    if node is None or node.name != "broadcast_in_dim" or len(node.inputs) > 1 or node.equation.ctx.compute_type is not None:
        return None
    (operand,), sizes = node.inputs, [1] * len(shape)
    for n, axis in zip(typeof(operand).shape, node.params["broadcast_dimensions"], strict=True):
        sizes[axis] = n
    if not isinstance(operand, Value) or any(n != 1 for n in sizes[1:-1]):
        return None
    return operand, (sizes[0], sizes[-1])
