"""A convolution, or a matrix product, and what follows it in a network, as one primitive:

    activation(scale * convolution(gate * x) + shift + residual)

with every part optional: per-channel `scale` and `shift`, which are what a bias or a batch norm with known statistics comes to;
a `residual` of the result's shape; an activation; and before a pointwise convolution the `gate` of squeeze-and-excite. On CPU
the kernels finish each result while it lies in the nearest caches, so that nothing is read or written twice. Everywhere else,
and in every transformation that is not written out here, it is the composition of its parts: derivatives of any order, meshes,
exported programs and other platforms know nothing of it.

To the kernels a matrix product is a convolution whose window is one pixel. In the composition it is XLA's matrix product.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from gconv import backends, roles
from gconv.dtypes import accumulator, wider
from gconv.fusion.activations import Activation
from gconv.fusion.composition import composed
from gconv.geometry import Geometry
from gconv.mesh.sharding import equally_varying

PARTS = backends.native.PARTS


def bind(
    role: str,
    operands: dict,
    *,
    geometry: Geometry,
    dtype,
    precision,
    implementation,
    matrix: bool = False,
    frozen: bool = False,
    scale: Array | None = None,
    shift: Array | None = None,
    residual: Array | None = None,
    gate: Array | None = None,
    activation: Activation | None = None,
) -> Array:
    """Role "y" or "x" of the operands, a dict with the keys `roles.OPERANDS[role]`, and what follows it.

    Args:
      matrix: whether it is a matrix product: role "y" of one group, whose window is one pixel, with no padding and no strides.
      frozen: whether the kernel operand is a constant of the program that this becomes part of, or computed from constants. The
        program then packs it once. To know it is the caller's part.
      scale, shift: `(channels of the result,)` or None, in any floating type.
      residual: of the result's canonical shape, `(N, *output, G*K)` for "y", or None, in any floating type.
      gate: `(N, G*J)` or None, in any floating type: for role "y" what x is multiplied by before. The product is rounded to the
        type of x, but not by the kernels in half precision.
      activation: an `Activation` or None.

    Returns:
      The result in the floating type `dtype`. What follows the convolution is computed in float32, or in float64 where `dtype`
      is, from the convolution's result in `dtype`, and rounded once.
    """
    dtype = jnp.dtype(dtype)
    parts = typed({"scale": scale, "shift": shift, "residual": residual, "gate": gate}, dtype)
    varying = equally_varying({**operands, **parts})
    options = dict(geometry=geometry, dtype=dtype, precision=precision, implementation=implementation, matrix=matrix)
    if not parts and activation is None:
        return alone(role, varying, **options)
    first, second = (varying[name] for name in roles.OPERANDS[role])
    return PRIMITIVE.bind(
        first,
        second,
        *(varying[name] for name in PARTS if name in parts),
        role=role,
        parts=tuple(name for name in PARTS if name in parts),
        activation=activation,
        frozen=frozen,
        **options,
    )


def typed(given: dict[str, Array | None], dtype) -> dict[str, Array]:
    """The parts that there are, in the types that they have beside a result in `dtype`."""
    wide = accumulator(dtype)
    return {name: a.astype(dtype if name == "residual" else wide) for name, a in given.items() if a is not None}


def compose(first, second, *operands, role, parts, activation, frozen=False, **options) -> Array:
    """The same, each part an operation of its own. Nothing is packed here, so `frozen` says nothing.

    With a gate it is the product, and then the same without it, which may again be the kernels'.
    """
    given, operand = dict(zip(parts, operands, strict=True)), dict(zip(roles.OPERANDS[role], (first, second), strict=True))
    if (gate := given.pop("gate", None)) is not None:
        between = gate.reshape(gate.shape[0], *(1,) * (first.ndim - 2), gate.shape[1])
        operand["x"] = (first.astype(gate.dtype) * between).astype(first.dtype)
        return bind(role, operand, activation=activation, frozen=frozen, **options, **given)
    return finish(alone(role, operand, **options), given, activation)


def alone(role: str, operands: dict, *, matrix: bool = False, **options) -> Array:
    """The convolution or the matrix product that nothing follows."""
    if not matrix:
        return roles.bind(role, operands, **options)
    x, w = operands["x"], operands["w"]
    contracted = (((x.ndim - 1,), (0,)), ((), ()))
    how = dict(precision=options["precision"], preferred_element_type=options["dtype"])
    return lax.dot_general(x, w.reshape(w.shape[-2:]), contracted, **how)


def finish(result: Array, parts: dict[str, Array], activation: Activation | None) -> Array:
    """What follows the convolution, of its result."""
    if not parts and activation is None:
        return result
    y = result.astype(accumulator(result.dtype))
    along = lambda a: a.reshape((1,) * (y.ndim - 1) + a.shape)
    if "scale" in parts:
        y = y * along(parts["scale"])
    if "shift" in parts:
        y = y + along(parts["shift"])
    if "residual" in parts:
        y = y + parts["residual"].astype(y.dtype)
    return (y if activation is None else activation(y)).astype(result.dtype)


# --- shapes ----------------------------------------------------------------------------------------------------------


def _abstract(first, second, *operands, role, geometry, dtype, parts, **_):
    result = roles.abstract(role, first, second, geometry=geometry, dtype=dtype)
    for name, aval in zip(parts, operands, strict=True):
        of_channels = (first.shape[0], first.shape[-1]) if name == "gate" else result.shape[-1:]
        wanted = result.shape if name == "residual" else of_channels
        if aval.shape != wanted:
            raise TypeError(f"{name} must have shape {wanted}, got {aval.shape}: the result is {result.shape}.")
    return result


# --- vmap -------------------------------------------------------------------------------------------------------------


def _batch(operands, axes, *, role, parts, **params):
    """Where all that has images is mapped, and nothing else, there are more images. Otherwise each part goes its own way."""
    names = (*roles.OPERANDS[role], *parts)
    mapped = [axis is not None for axis in axes]
    if mapped != [name in ("x", "y", "residual", "gate") for name in names]:
        return jax.vmap(partial(compose, role=role, parts=parts, **params), in_axes=tuple(axes))(*operands), 0
    moved = [a if axis is None else jnp.moveaxis(a, axis, 0) for a, axis in zip(operands, axes, strict=True)]
    size, images = moved[0].shape[:2]
    rows = [a.reshape(size * images, *a.shape[2:]) if is_mapped else a for a, is_mapped in zip(moved, mapped, strict=True)]
    result = PRIMITIVE.bind(*rows, role=role, parts=parts, **params)
    return result.reshape(size, images, *result.shape[1:]), 0


# --- the primitive ----------------------------------------------------------------------------------------------------


def _fits(ctx, *, role, geometry, dtype, precision, implementation, matrix, frozen, parts, **_) -> bool:
    """Whether the role is the kernels', with its gate."""
    first, second = ctx.avals_in[:2]
    operand, portable = wider(first.dtype, second.dtype), roles.must_be_portable(ctx)
    problem = (geometry, operand, "cpu", first.shape[0])
    if matrix:
        is_theirs = backends.reason_against_matrix("fused matrix", *problem, portable, frozen=frozen) is None
    else:
        is_theirs = backends.choose(role, *problem, implementation, portable) == "native"
    with_gate = "gate" not in parts or (is_theirs and backends.native.takes_gate(geometry, operand, first.shape[0], precision))
    return is_theirs and with_gate and backends.native.gives(operand, dtype)


def _by_kernels(first, second, *operands, role, geometry, dtype, precision, parts, activation, frozen, **_):
    run = getattr(backends.native, role)
    given = dict(zip(parts, operands, strict=True))
    epilogue = backends.native.Epilogue(given, *((activation.number, activation.slope) if activation else ()))
    with jax.named_scope(f"gconv_{role}_native"):  # so that a lowered text tells which implementation ran
        return run(first, second, geometry, dtype=dtype, precision=precision, epilogue=epilogue, frozen=frozen)


PRIMITIVE = composed(
    "grouped_conv_epilogue",
    compose,
    parameters=("role", "geometry", "dtype", "precision", "implementation", "matrix", "frozen", "parts", "activation"),
    abstract=_abstract,
    fits=_fits,
    kernels=_by_kernels,
    alone=lambda params: {**params, "frozen": False},  # the kernel is an argument
    batch=_batch,
)
