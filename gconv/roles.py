"""The primitives: three roles of one trilinear form, and how JAX's transformations act on them.

T(x, w, y) = <y, conv(x, w)> is linear in each argument, so its three partial derivatives are the library:

    role   operands   result
    "y"    x, w       the convolution
    "x"    y, w       the input gradient, which is the transposed convolution
    "w"    x, y       the kernel gradient

Operands are canonical here: `x (N, *spatial, G*J)`, `w (*window, J, G*K)`, `y (N, *output, G*K)`, whose sizes but N stand in
the geometry. Which implementation runs is decided at lowering, per platform.
"""

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import jet
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from gconv import backends, native
from gconv.dtypes import wider
from gconv.geometry import Geometry
from gconv.mesh import partition
from gconv.version import __version__

OPERANDS = {"y": ("x", "w"), "x": ("y", "w"), "w": ("x", "y")}
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_CONFIG: Any = jax.config  # its options are attributes that its types do not know
PRIMITIVES = {role: Primitive(f"grouped_conv_{role}") for role in OPERANDS}


def bind(role: str, operands: dict, *, geometry: Geometry, dtype, precision, implementation):
    """One role of the operands, a dict with the keys OPERANDS[role]; the result has type `dtype`."""
    first, second = (operands[name] for name in OPERANDS[role])
    return PRIMITIVES[role].bind(
        first,
        second,
        geometry=geometry,
        dtype=jnp.dtype(dtype),
        precision=precision,
        implementation=implementation,
    )


# --- shapes ----------------------------------------------------------------------------------------------------------


def _shape(name: str, g: Geometry, batch) -> tuple:
    return {"x": g.x_shape(batch), "y": g.y_shape(batch), "w": g.kernel_shape}[name]


def abstract(role, first, second, *, geometry, dtype, **_):
    operands = dict(zip(OPERANDS[role], (first, second), strict=True))
    batch = next(aval.shape[0] for name, aval in operands.items() if name != "w")
    for name, aval in operands.items():
        if aval.shape != _shape(name, geometry, batch):
            raise TypeError(f"role {role!r}: operand {name!r} of shape {aval.shape} does not fit {geometry}.")
    # `update` keeps what else an abstract value knows: the manual mesh axes over which it varies in a shard_map.
    return first.update(shape=_shape(role, geometry, batch), dtype=dtype, weak_type=False)


# --- derivatives -----------------------------------------------------------------------------------------------------
# T is trilinear, so the transpose of role r in operand a is role a, with the cotangent in the place of r:
#     y: d/dx -> x(ct, w)   d/dw -> w(x, ct)
#     x: d/dy -> y(ct, w)   d/dw -> w(ct, y)
#     w: d/dx -> x(y, ct)   d/dy -> y(x, ct)


def _transpose(role, unknown, ct, *operands, dtype, **params):
    del dtype  # the cotangent's own; the result takes its operand's
    target, other = OPERANDS[role][unknown], OPERANDS[role][1 - unknown]
    return bind(target, {role: ct, other: operands[1 - unknown]}, dtype=operands[unknown].aval.dtype, **params)


# --- rematerialization ------------------------------------------------------------------------------------------------


def convolutions_saveable(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy of `jax.checkpoint`: what convolutions compute is kept, gconv's and lax's alike; all else is computed again.

    JAX's own policies know lax's primitives only. They combine:

    >>> import jax, gconv
    >>> policies = jax.checkpoint_policies
    >>> both = policies.save_from_both_policies(
    ...     gconv.convolutions_saveable, policies.dots_with_no_batch_dims_saveable
    ... )
    >>> relu_of_conv = lambda x, kernel: jax.nn.relu(gconv.grouped_conv(x, kernel))
    >>> block = jax.checkpoint(relu_of_conv, policy=both)

    Source: https://docs.jax.dev/en/latest/gradient-checkpointing.html
    """
    return primitive in _CONVOLUTIONS


_CONVOLUTIONS = {*PRIMITIVES.values(), lax.conv_general_dilated_p}


# --- vmap ------------------------------------------------------------------------------------------------------------
# Every index of T appears in two or three of its arguments: batch N in x and y, channels J in x and w, filters K in w and y,
# groups G in all. A mapped axis is one more index. It lives in the result and in the mapped operands: in one operand, so it
# joins the index which that operand shares with the result; in both, so it joins the groups. Nothing is ever broadcast.

SHARED = {frozenset("xy"): "N", frozenset("xw"): "J", frozenset("wy"): "K"}
FIELD = {"J": "channels", "K": "filters", "G": "groups"}


def _batch(role, operands, axes, *, geometry, dtype, **params):
    names = OPERANDS[role]
    mapped = {n: jnp.moveaxis(a, d, 0) for n, a, d in zip(names, operands, axes, strict=True) if d is not None}
    whole = {n: a for n, a, d in zip(names, operands, axes, strict=True) if d is None}
    size = next(iter(mapped.values())).shape[0]
    batch = next(a.shape[n in mapped] for n, a in (mapped | whole).items() if n != "w")
    index = "G" if len(mapped) == 2 else SHARED[frozenset((role, *mapped))]
    if index == "N":
        wider, wider_batch = geometry, batch * size
    elif size == 0:  # no geometry has zero groups, channels or filters
        return jnp.zeros((0, *_shape(role, geometry, batch)), dtype), 0
    else:
        wider, wider_batch = replace(geometry, **{FIELD[index]: size * getattr(geometry, FIELD[index])}), batch
    folded = {}
    for name, a in mapped.items():
        split = a.reshape(size, *_one_axis_per_index(name, geometry, batch))
        moved = jnp.moveaxis(split, 0, _axis(index, name, geometry) - 1)
        folded[name] = moved.reshape(_shape(name, wider, wider_batch))
    result = bind(role, whole | folded, geometry=wider, dtype=dtype, **params)
    split_shape = list(_one_axis_per_index(role, geometry, batch))
    position = _axis(index, role, geometry)
    split_shape.insert(len(split_shape) + position, size)
    moved = jnp.moveaxis(result.reshape(split_shape), position - 1, 0)
    return moved.reshape(size, *_shape(role, geometry, batch)), 0


def _one_axis_per_index(name: str, g: Geometry, batch) -> tuple:
    return {
        "x": (batch, *g.spatial, g.groups, g.channels),
        "y": (batch, *g.output, g.groups, g.filters),
        "w": (*g.window, g.channels, g.groups, g.filters),
    }[name]


def _axis(index: str, name: str, g: Geometry) -> int:
    """Where `index` stands in `_one_axis_per_index`, counted from the end."""
    if index == "N":
        return -g.rank - 3
    return {"x": "GJ", "y": "GK", "w": "JGK"}[name].index(index) - (3 if name == "w" else 2)


# --- lowering --------------------------------------------------------------------------------------------------------


def _lowering(role, platform):
    def lower(ctx, first, second, *, implementation, **params):
        if devices := partition.devices_of(ctx):
            if platform == "cpu":  # now: when the program comes out of a persistent cache, no part of it is lowered
                native.register_kernels()
            meaning = _meaning(role, platform, ctx.avals_in, params | {"implementation": implementation})
            run = partial(bind, precision=params.pop("precision"), implementation=implementation)
            return partition.lower(ctx, devices, role, OPERANDS[role], run, first, second, meaning=meaning, **params)
        operand = wider(*(aval.dtype for aval in ctx.avals_in))
        portable = must_be_portable(ctx)
        name = backends.choose(role, params["geometry"], operand, platform, ctx.avals_in[0].shape[0], implementation, portable)
        # An exported program may be called by one that XLA splits.
        split = split_by_xla(ctx) or ctx.module_context.lowering_parameters.for_export
        run = partial(_run, role, name, platform, split=split)
        with no_further():
            return mlir.lower_fun(run, multiple_results=False)(ctx, first, second, **params)

    return lower


_FURTHER = ContextVar("convolutions that are lowered may be gconv's", default=True)


@contextmanager
def no_further():
    """While convolutions of lax are lowered that gconv itself wrote, `gconv.install` leaves them to lax."""
    token = _FURTHER.set(False)
    try:
        yield
    finally:
        _FURTHER.reset(token)


def may_take_further() -> bool:
    """Whether a convolution of lax that is being lowered may become a role: it is not what a role was written out to."""
    return _FURTHER.get()


def _meaning(role, platform, operands, params) -> str:
    """In words, what decides the code that a role becomes on each of several devices: what to compute, and who is at hand."""
    types = ", ".join(str(a.dtype) for a in operands)
    kernels = native.instruction_set() if platform == "cpu" else None
    return f"{role}({types}) {params} on {platform} by gconv {__version__}, kernels: {kernels}"


def _run(role, name, platform, first, second, *, geometry, dtype, precision, split=False):
    run_role = partial(getattr(backends.TABLE[name], role), **backends.options(name, role, platform, split))
    first, second = (a.astype(backends.operand_type(a.dtype, geometry, platform)) for a in (first, second))
    with jax.named_scope(f"gconv_{role}_{name}"):  # so that a lowered text tells which implementation ran
        return run_role(first, second, geometry, dtype=dtype, precision=precision)


def must_be_portable(ctx) -> str | None:
    """Why the program may hold XLA's own operations only, or None where any code of this machine's will do.

    On several devices this is asked about one device's part, after `partition` has split the role; what it leaves to XLA is a
    shard_map over some axes of the mesh only, and a lowering without devices or without Shardy.
    """
    module = ctx.module_context
    if module.lowering_parameters.for_export:
        return "an exported program may run where gconv is not installed"
    if not all(isinstance(n, int) for aval in ctx.avals_in for n in aval.shape):
        return "a symbolic batch leaves open how much memory it needs"
    return "XLA's partitioner splits its own operations only" if split_by_xla(ctx) else None


def split_by_xla(ctx) -> bool:
    """Whether XLA's partitioner, and not `gconv.mesh.partition`, splits what is being lowered over devices."""
    axes = ctx.module_context.axis_context  # of a shard_map, or how many devices jit's partitioner splits the program over
    if hasattr(axes, "manual_axes"):
        return any(size > 1 and name not in axes.manual_axes for name, size in axes.mesh.shape.items())
    return getattr(axes, "num_devices", 1) > 1


# --- primitives that have a plain form: their derivatives are those of a function of the same operands ----------------


def of_some(function, operands, some):
    """The function of the operands at these places; the others are as they are."""

    def run(*values):
        whole = [*operands]
        for i, value in zip(some, values, strict=True):
            whole[i] = value
        return function(*whole)

    return run


def derivative(function, primals, tangents):
    """The function's value and its tangent; tangents that are zero are not followed."""
    moving = [i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero)]
    return jax.jvp(of_some(function, primals, moving), [primals[i] for i in moving], [tangents[i] for i in moving])


# --- outside jit ------------------------------------------------------------------------------------------------------


def compiled_once(primitive, *names: str):
    """Compiles a primitive once for each value of these parameters and calls it, like lax's own primitives; also where
    `jax.disable_jit` is in force."""

    def run(*operands, **params):
        return primitive.bind(*operands, **params)

    run.__name__ = run.__qualname__ = primitive.name  # of the program, in profiles and logs
    run._apply_primitive = True  # type: ignore[attr-defined]  # debug_nans says what was found, and does not run it in parts
    compiled = jax.jit(run, static_argnames=names)

    def call(*operands, **params):
        if not _CONFIG.jax_disable_jit:
            return compiled(*operands, **params)
        with jax.disable_jit(False):
            return compiled(*operands, **params)

    return call


for _role, _primitive in PRIMITIVES.items():
    _primitive.def_abstract_eval(partial(abstract, _role))
    _primitive.def_impl(compiled_once(_primitive, "geometry", "dtype", "precision", "implementation"))
    ad.defbilinear(_primitive, partial(_transpose, _role, 0), partial(_transpose, _role, 1))
    batching.primitive_batchers[_primitive] = partial(_batch, _role)
    # The rule that `jax.experimental.jet` has for lax's convolution is that of any bilinear primitive, its first argument.
    if _bilinear := getattr(jet.jet_rules.get(lax.conv_general_dilated_p), "func", None):
        jet.jet_rules[_primitive] = partial(_bilinear, _primitive)
    for _platform in PLATFORMS:
        mlir.register_lowering(_primitive, _lowering(_role, _platform), platform=_platform)
    # Whatever else has a plug-in for JAX (METAL, neuron, oneapi, ...) takes what lax lowers to.
    mlir.register_lowering(_primitive, _lowering(_role, "another platform"))
