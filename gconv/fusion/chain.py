"""What follows a convolution: from its result along single readers as far as an epilogue can go.

    result -> per-channel sums and factors -> one residual sum -> one activation

with changes of type and of shape in between, as long as the channels stay an axis of their own. Nothing is guessed from names:
an operand is per channel if it is a broadcast along the other axes, and an activation is one if it is equal to one.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from gconv.dtypes import accumulator
from gconv.fusion import patterns
from gconv.fusion.activations import Activation
from gconv.fusion.channels import Channels, channels
from gconv.fusion.convolutions import Convolution
from gconv.fusion.program import Atom, Node, Value, typeof

AFFINE = ("add", "add_any", "sub", "mul", "div", "neg")
LAYOUT = ("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose")


@dataclass(frozen=True, slots=True)
class Layout:
    """A change of shape: the axes change places, or else only sizes change."""

    before: tuple
    after: tuple
    permutation: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Chain:
    """What follows a convolution up to `value`.

    Attributes:
      nodes: all that is in between, whose results nothing else reads.
      affine: the sums and factors, in order: "add", "sub", "mul", "div", "neg" or "rsub", which is the operand minus the value.
      residual: what is added after them, and at which of the layouts.
      axis: of the value, the axis of the channels.
    """

    value: Value
    axis: int
    nodes: tuple[Node, ...] = ()
    affine: tuple[tuple[str, Channels | None], ...] = ()
    residual: Value | None = None
    residual_at: int = 0
    activation: Activation | None = None
    layouts: tuple[Layout, ...] = ()

    @property
    def parts(self) -> tuple:
        return (len(self.affine), self.residual is not None, self.activation is not None)


def follow(node: Node, conv: Convolution) -> tuple[list[Chain], str]:
    """All that may become an epilogue, from the shortest to the longest, and why it goes no further."""
    chain = Chain(node.outputs[0], conv.axis)
    found: list[Chain] = []
    while True:
        following = _next(chain, conv)
        if isinstance(following, str):
            return found, following
        chain = following
        if chain.value.aval.dtype == conv.dtype and chain.parts != (found[-1].parts if found else (0, False, False)):
            found.append(chain)


def _next(chain: Chain, conv: Convolution) -> Chain | str:
    """The chain with the next thing that follows, or why there is none."""
    if chain.value.is_result:
        return "its result is a result of the function"
    if conv.activation is not None:
        return "has an activation already"
    if chain.activation is None and (found := patterns.find(chain.value)):
        return replace(chain, value=found.result, nodes=(*chain.nodes, *found.nodes), activation=found.activation)
    if len(chain.value.readers) != 1:
        return f"its result has {len(chain.value.readers)} readers"
    (reader,) = chain.value.readers
    if reader.equation.ctx.compute_type is not None:
        return f"followed by {reader.name} on {reader.equation.ctx.compute_type}"
    longer = replace(chain, value=reader.outputs[0], nodes=(*chain.nodes, reader))
    if reader.name == "convert_element_type":
        dtype = longer.value.aval.dtype
        return longer if dtype in (conv.dtype, accumulator(conv.dtype)) else f"followed by a conversion to {dtype}"
    if reader.name == "copy":
        return longer
    if chain.activation is None and reader.name in LAYOUT and (layout := _layout(reader)):
        axis = _axis_after(layout, chain.axis)
        if axis is not None:
            return replace(longer, axis=axis, layouts=(*chain.layouts, layout))
    if chain.activation is None and reader.name in AFFINE:
        return _affine(chain, longer, reader, conv)
    return f"followed by {reader.name}"


# --- sums and factors ------------------------------------------------------------------------------------------------


def _affine(chain: Chain, longer: Chain, reader: Node, conv: Convolution) -> Chain | str:
    has_residual = chain.residual is not None or "residual" in conv.parts
    if has_residual:
        return f"followed by {reader.name} after a residual"
    if reader.name == "neg":
        return replace(longer, affine=(*chain.affine, ("neg", None)))
    first, second = reader.inputs
    turned = second is chain.value
    other = first if turned else second
    name = "add" if reader.name == "add_any" else reader.name
    found = channels(other, chain.axis)
    if found is not None and not (turned and name == "div"):
        return replace(longer, affine=(*chain.affine, ("rsub" if turned and name == "sub" else name, found)))
    if name == "add" and isinstance(residual := _residual(other, chain, conv), Value):
        return replace(longer, residual=residual, residual_at=len(chain.layouts))
    return f"followed by {reader.name} of what varies along other axes than the channels"


def _residual(other: Atom, chain: Chain, conv: Convolution) -> Value | None:
    """What is added, in the type of the result. What is broadcast is cheaper to add afterwards."""
    if not isinstance(other, Value) or other.aval.shape != chain.value.aval.shape:
        return None
    node = other.node
    if node is not None and node.name == "convert_element_type" and other.aval.dtype != conv.dtype:
        (operand,) = node.inputs
        other = operand if isinstance(operand, Value) else other
    if other.node is not None and other.node.name == "broadcast_in_dim":
        return None
    return other if other.aval.dtype == conv.dtype else None


# --- shapes ----------------------------------------------------------------------------------------------------------


def _layout(node: Node) -> Layout | None:
    """How a node changes the shape, if it adds, drops and repeats no number."""
    before, after, params = typeof(node.inputs[0]).shape, node.outputs[0].aval.shape, node.params
    if params.get("dimensions") is not None and node.name == "reshape" or params.get("sharding") is not None:
        return None
    if node.name == "transpose":
        return Layout(before, after, tuple(params["permutation"]))
    if node.name == "broadcast_in_dim" and (len(node.inputs) > 1 or math.prod(before) != math.prod(after)):
        return None
    return Layout(before, after, None)


def _axis_after(layout: Layout, axis: int) -> int | None:
    """Where an axis then is, or None if it is no longer an axis of its own."""
    before, after = layout.before, layout.after
    if layout.permutation is not None:
        return layout.permutation.index(axis)
    at = math.prod(before[:axis])
    return next((i for i, n in enumerate(after) if n == before[axis] and math.prod(after[:i]) == at), None)


def changed(array: Any, layouts: tuple[Layout, ...]) -> Any:
    """An array after changes of shape."""
    for layout in layouts:
        array = array.reshape(layout.after) if layout.permutation is None else array.transpose(layout.permutation)
    return array


def changed_back(array: Any, layouts: tuple[Layout, ...]) -> Any:
    """An array of the shape after these changes, as it was before them."""
    for layout in reversed(layouts):
        if layout.permutation is None:
            array = array.reshape(layout.before)
        else:
            array = array.transpose(sorted(range(len(layout.before)), key=layout.permutation.__getitem__))
    return array
