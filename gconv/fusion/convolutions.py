"""The convolutions of a program, whoever wrote them, as roles of geometries that something can follow.

A matrix product of the channels of each pixel, as of `nnx.Linear`, is one more of them: its window is one pixel.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType

from gconv import backends, roles
from gconv.acceleration.equation import of_matrix_product, read
from gconv.acceleration.lowering import DROP_IN, equation_of
from gconv.fusion import epilogue
from gconv.fusion.activations import Activation
from gconv.fusion.program import Atom, Node, typeof
from gconv.geometry import Geometry

FLOATS = ("float16", "bfloat16", "float32", "float64")


def _same(array: Array) -> Array:
    return array


@dataclass(frozen=True, slots=True)
class Convolution:
    """What computes a node's result, and how that lies.

    Attributes:
      inputs: the node's operands that are the role's, the kernel last, and `operands` which of them is which.
      parts: what follows the convolution already, in the node itself; likewise `activation`.
      axis: of the result, the axis of its channels.
      matrix: whether it is a matrix product.
      in_place: whether the node's arrays lie as the role's do, images first and channels last.
      result, canonical: from the role's result to the node's, and back.
    """

    role: str
    geometry: Geometry
    inputs: tuple[Atom, ...]
    operands: Callable[..., dict[str, Array]]
    dtype: Any
    precision: Any
    implementation: str | None
    axis: int
    parts: dict[str, Atom] = field(default_factory=dict)
    activation: Activation | None = None
    matrix: bool = False
    in_place: bool = False
    result: Callable[[Array], Array] = _same
    canonical: Callable[[Array], Array] = _same

    @property
    def is_pointwise(self) -> bool:
        """Whether it is one group whose window is one pixel, which meets every pixel."""
        g = self.geometry
        return g.groups == 1 and {*g.window, *g.strides} == {1} and {n for pair in g.padding for n in pair} == {0}


def is_convolution(node: Node) -> bool:
    """Whether a node is a convolution of lax's or of gconv's, or a matrix product like one."""
    primitive = node.equation.primitive
    known = (lax.conv_general_dilated_p, epilogue.PRIMITIVE, *roles.PRIMITIVES.values())
    return primitive in known or is_matrix_product(node)


def is_matrix_product(node: Node) -> bool:
    """Whether a node sums over the last axis of an array and the first of a matrix: `x @ matrix`."""
    if node.equation.primitive is not lax.dot_general_p:
        return False
    x, matrix = (len(typeof(a).shape) for a in node.inputs)
    return x >= matrix == 2 and node.params["dimension_numbers"] == (((x - 1,), (0,)), ((), ()))


def convolution(node: Node, frozen: bool) -> Convolution | str:
    """What a node that is one computes, or why nothing can follow it; `frozen`: whether its kernel is the same in all calls."""
    (result,) = node.outputs
    if str(result.aval.dtype) not in FLOATS:
        return f"results in {result.aval.dtype}"
    if result.aval.weak_type:
        return "its type gives way to others, as a number's does"
    if any(AxisType.Explicit in _mesh(a.aval).axis_types for a in (*node.inputs, result)):
        return "on a mesh with explicit axes"
    if node.equation.ctx.compute_type is not None:
        return f"computed on {node.equation.ctx.compute_type}"
    if is_matrix_product(node):
        return _of_matrix_product(node, frozen)
    return _of_lax(node) if node.equation.primitive is lax.conv_general_dilated_p else _of_gconv(node)


def describe(node: Node) -> str:
    """The role, the window and the channels, in words."""
    if is_matrix_product(node):
        channels, filters = typeof(node.inputs[1]).shape
        return f"y  matrix, {channels} -> {filters} channels"
    params = dict(node.params)
    if "geometry" not in params:
        equation = equation_of([a.aval for a in node.inputs], params)
        reading = read(equation)
        if isinstance(reading, str):
            return f"window {tuple(equation.rhs_shape[i] for i in equation.dimension_numbers.rhs_spec[2:])}"
        params = {"role": reading.role, "geometry": reading.geometry}
    role = params.get("role") or next(r for r, p in roles.PRIMITIVES.items() if p is node.equation.primitive)
    g = params["geometry"]
    sizes = (g.filters, g.channels) if role == "x" else (g.channels, g.filters)
    each = f"{sizes[0]} -> {sizes[1]} channels"
    return f"{role}  window {g.window}, {each if g.groups == 1 else f'{g.groups} groups of {each}'}"


def _mesh(aval):
    return aval.sharding.mesh


def _of_lax(node: Node) -> Convolution | str:
    equation = equation_of([a.aval for a in node.inputs], node.params)
    reading = read(equation)
    if isinstance(reading, str):
        return reading
    if reading.role == "w":
        return "a kernel gradient"
    if equation.batch_group_count > 1:
        return "groups in the batch"
    numbers = equation.dimension_numbers
    batch, feature, *spatial = numbers.out_spec
    rank = len(spatial)
    named = (node.equation.ctx.xla_metadata or {}).get(DROP_IN, "None")
    return Convolution(
        role=reading.role,
        geometry=reading.geometry,
        inputs=tuple(node.inputs),
        operands=reading.operands,
        dtype=node.outputs[0].aval.dtype,
        precision=node.params["precision"],
        implementation=None if named == "None" else named,
        axis=feature,
        in_place=numbers.lhs_spec == numbers.out_spec == (0, rank + 1, *range(1, rank + 1)),
        result=lambda value: value.transpose(np.argsort((batch, *spatial, feature))),
        canonical=lambda value: value.transpose((batch, *spatial, feature)),
    )


def _of_gconv(node: Node) -> Convolution | str:
    params = node.params
    role = params.get("role") or next(r for r, p in roles.PRIMITIVES.items() if p is node.equation.primitive)
    if role == "w":
        return "a kernel gradient"
    first, second, *parts = node.inputs
    return Convolution(
        role=role,
        geometry=params["geometry"],
        inputs=(first, second),
        operands=lambda *arrays: dict(zip(roles.OPERANDS[role], arrays, strict=True)),
        dtype=params["dtype"],
        precision=params["precision"],
        implementation=params["implementation"],
        axis=len(node.outputs[0].aval.shape) - 1,
        in_place=True,
        parts=dict(zip(params.get("parts", ()), parts, strict=True)),
        activation=params.get("activation"),
    )


def _of_matrix_product(node: Node, frozen: bool) -> Convolution | str:
    x, matrix, y = (typeof(a) for a in (*node.inputs, *node.outputs))
    (*pixels, channels), (_, filters) = x.shape, matrix.shape
    if not all(isinstance(n, int) for n in (*x.shape, filters)):
        return "its sizes are not known"
    if not x.dtype == matrix.dtype == y.dtype:
        return f"{x.dtype} times {matrix.dtype} in {y.dtype}"
    batch, geometry = of_matrix_product(pixels, channels, filters)
    problem = (geometry, y.dtype, jax.default_backend(), batch)
    if reason := backends.reason_against_matrix("fused matrix", *problem, frozen=frozen):
        return reason
    return Convolution(
        role="y",
        geometry=geometry,
        inputs=tuple(node.inputs),
        operands=lambda x, w: {"x": x.reshape(geometry.x_shape(batch)), "w": w.reshape(geometry.kernel_shape)},
        dtype=y.dtype,
        precision=node.params["precision"],
        implementation=None,
        axis=len(pixels),
        matrix=True,
        result=lambda value: value.reshape(y.shape),
        canonical=lambda value: value.reshape(geometry.y_shape(batch)),
    )
