"""Operands that vary along the channels only, and the few numbers that they hold."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from gconv.fusion.program import Atom, Node, Value, typeof, values

# Operations of one number for each channel that can be done on those numbers alone.
ELEMENTWISE = ("add", "sub", "mul", "div", "neg", "sqrt", "rsqrt", "convert_element_type", "copy", "pvary", "pcast")
DEPTH = 16  # of such operations, one on another

Read = Callable[[Atom], Array]


class Channels(NamedTuple):
    """One number for each channel.

    Attributes:
      values: the values of the program that they are computed from.
      compute: the numbers, `(channels,)` or `(1,)`, given how a value is read.
    """

    values: tuple[Value, ...]
    compute: Callable[[Read], Array]


def channels(atom: Atom, axis: int, depth: int = DEPTH) -> Channels | None:
    """What an operand holds if it varies along `axis` alone; an operand without axes varies along none. None otherwise."""
    shape = typeof(atom).shape
    if not jnp.issubdtype(typeof(atom).dtype, jnp.floating):
        return None
    if _is_line(shape, axis):
        return _line(atom)
    node = atom.node if isinstance(atom, Value) else None
    if node is None or node.equation.ctx.compute_type is not None:
        return None
    if node.name == "broadcast_in_dim":
        return _of_broadcast(node, axis)
    if node.name not in ELEMENTWISE or not depth:
        return None
    found = [part for a in node.inputs if (part := channels(a, axis, depth - 1)) is not None]
    if len(found) < len(node.inputs):
        return None

    def compute(read: Read) -> Array:
        lines = [part.compute(read) for part in found]
        size = max(line.shape[0] for line in lines)
        return node.bind([jnp.broadcast_to(line, (size,)) for line in lines])[0]

    return Channels(tuple(v for part in found for v in part.values), compute)


def _is_line(shape: tuple, axis: int) -> bool:
    return all(n == 1 for i, n in enumerate(shape) if i != axis)


def _line(atom: Atom) -> Channels:
    return Channels(tuple(values([atom])), lambda read: jnp.asarray(read(atom), typeof(atom).dtype).reshape(-1))


def _of_broadcast(node: Node, axis: int) -> Channels | None:
    """A broadcast repeats the axes that it adds, and those of size 1."""
    (operand, *sizes), dims = node.inputs, node.params["broadcast_dimensions"]
    others = [n for n, to in zip(typeof(operand).shape, dims, strict=True) if to != axis]
    return None if sizes or any(n != 1 for n in others) else _line(operand)
