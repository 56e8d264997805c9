"""`jax.lax.conv_general_dilated` by another name, for code that cannot be rewritten: same arguments, same results.

Data flows: lax checks the call -> what it computes, as one role of a geometry, if it is one -> `gconv.roles`, or lax itself.
"""

import operator
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes, use_abstract_mesh
from jax.typing import DTypeLike

from gconv import backends, roles, sharding
from gconv.geometry import Geometry, effective_window
from gconv.op import precision_in_force

# As it was when gconv was imported, so that gconv may be put in its place: `jax.lax.conv_general_dilated = gconv....`.
_LAX = lax.conv_general_dilated


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: lax.ConvDimensionNumbers | tuple[str, str, str] | None = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: NamedSharding | PartitionSpec | None = None,
    *,
    implementation: str | None = None,
) -> Array:
    """`jax.lax.conv_general_dilated`, with gconv's implementations where they apply.

    The same function of the same arguments, for code and libraries that call lax or accept a replacement for it::

        jax.lax.conv_general_dilated(*arguments) == gconv.conv_general_dilated(*arguments)

    >>> import jax.numpy as jnp, gconv
    >>> from flax import nnx
    >>> layer = nnx.Conv(32, 32, (3, 3), feature_group_count=32, rngs=nnx.Rngs(0),
    ...                  conv_general_dilated=gconv.conv_general_dilated)
    >>> layer(jnp.ones((8, 16, 16, 32))).shape
    (8, 16, 16, 32)
    >>> gconv.conv_general_dilated(jnp.ones((8, 6, 32)), jnp.ones((12, 2, 5)), (2,), "SAME", feature_group_count=3).shape
    (8, 12, 16)

    gconv takes over, in any layout, with 1, 2 or 3 spatial axes of known, nonzero size and a numeric dtype:

    - grouped and depthwise convolutions: `feature_group_count` above 1 and no `lhs_dilation`;
    - transposed convolutions, grouped or not: `lhs_dilation` above 1 and all `window_strides` 1.

    Everything else goes to lax unchanged, and lax checks every call: wrong arguments raise its errors. One exception: bfloat16
    in 1-D, which lax cannot compile for CUDA (jax issue 37922), is there computed in float32, by lax.

    Args:
      lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
      batch_group_count, precision, preferred_element_type, out_sharding: as in `jax.lax.conv_general_dilated`.
      implementation: None to let gconv choose, which always works, or a name of `gconv.implementations()`, which runs or
        raises with the reason.

    Returns:
      An array of the shape, dtype and (on a mesh with explicit axes) sharding that lax gives it.

    Raises:
      ValueError, TypeError: lax's own; and a ValueError for an `implementation` that cannot run the call.

    Differentiable to any order in both modes. Unlike lax's, kernel gradients of groups are right also on a mesh with an axis
    that shards nothing. Source: https://docs.jax.dev/en/latest/_autosummary/jax.lax.conv_general_dilated.html
    """
    backends.check_name(implementation)
    by_lax = partial(
        _LAX,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    )
    dilated = lhs_dilation is not None and any(d != 1 for d in lhs_dilation)
    plain = implementation is None and feature_group_count == 1 and not dilated
    detour = plain and getattr(lhs, "dtype", None) == jnp.bfloat16 and lhs.ndim == 3  # for CUDA: see backends.operand_type
    if plain and not detour:
        return by_lax(lhs, rhs)  # most calls of most models: spare them the time of a second look
    result = jax.eval_shape(by_lax, lhs, rhs)  # raises lax's errors; below, the arguments fit together
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    lhs_factors, rhs_factors = ((1,) * (lhs.ndim - 2) if d is None else d for d in (lhs_dilation, rhs_dilation))
    options = (window_strides, padding, lhs_factors, rhs_factors, feature_group_count)
    if reason := _why_not(lhs.shape, rhs.shape, result, layout, *options, batch_group_count, detour):
        if implementation is not None:
            raise ValueError(
                f"implementation={implementation!r} cannot run this convolution: {reason}. "
                "implementation=None leaves it to lax."
            )
        return by_lax(lhs, rhs)
    role, geometry = _role_and_geometry(lhs.shape, rhs.shape, result.shape, layout, *options)
    run = partial(
        _run,
        role=role,
        geometry=geometry,
        layout=layout,
        dtype=result.dtype,
        precision=precision_in_force(precision),
        implementation="lax" if detour else implementation,
    )
    return _as_sharded_by_lax(run, result.sharding)(jnp.asarray(lhs), jnp.asarray(rhs))


# --- what the call computes ------------------------------------------------------------------------------------------


def _why_not(lhs_shape, rhs_shape, result, layout, strides, padding, lhs_dilation, rhs_dilation, groups, batch_groups, detour):
    """Why gconv does not take the call over, or None. The call is one that lax accepts."""
    rank = len(lhs_shape) - 2
    if not 1 <= rank <= 3:
        return f"gconv has 1, 2 or 3 spatial axes, and lhs.shape={lhs_shape} has {rank}"
    if batch_groups != 1:
        return f"gconv has no groups of the batch, batch_group_count={batch_groups}"
    transposed = any(d != 1 for d in lhs_dilation)
    if not transposed and groups == 1 and not detour:
        return "it has one group and no lhs_dilation, which lax does well"
    if transposed and any(s != 1 for s in strides):
        return f"it has both lhs_dilation={tuple(lhs_dilation)} and window_strides={tuple(strides)}: no transposed convolution"
    if any(sorted(spec) != list(range(rank + 2)) for spec in layout) or not len(lhs_dilation) == len(rhs_dilation) == rank:
        return f"its options do not fit {rank} spatial axes"
    batch, *sizes = (lhs_shape[i] for i in layout.lhs_spec)  # the batch may be symbolic, no other size may
    numbers = [*sizes, *rhs_shape, *strides, *lhs_dilation, *rhs_dilation, groups]
    if not all(isinstance(n, (int, np.integer)) for n in numbers):
        return f"gconv needs sizes and options that are known integers, got {numbers}"
    if any(isinstance(n, int) and n == 0 for n in (batch, *numbers, *result.shape)):
        return f"there is nothing to compute: {lhs_shape} and {rhs_shape} make {result.shape}"
    if min(strides) < 1:
        return f"window_strides={tuple(strides)} are not all positive"
    if not jnp.issubdtype(result.dtype, np.number):
        return f"gconv has numeric dtypes, got {result.dtype}"
    return None


def _role_and_geometry(lhs_shape, rhs_shape, out_shape, layout, strides, padding, lhs_dilation, rhs_dilation, groups):
    """The role that computes the call, and the geometry of the convolution that it belongs to."""
    channels_in, *spatial = (int(lhs_shape[i]) for i in layout.lhs_spec[1:])
    channels_out, _, *window = (int(rhs_shape[i]) for i in layout.rhs_spec)
    strides, factors, dilation = (tuple(map(int, v)) for v in (strides, lhs_dilation, rhs_dilation))
    effective = effective_window(window, dilation)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(spatial, effective, strides, padding)
    pairs = tuple((operator.index(lo), operator.index(hi)) for lo, hi in padding)
    groups = int(groups)
    per_group = channels_in // groups, channels_out // groups
    if all(f == 1 for f in factors):
        return "y", Geometry(tuple(spatial), tuple(window), strides, pairs, dilation, groups, *per_group)
    # A convolution over `lhs` with f - 1 zeros between its samples is the transpose of one with strides f, whose input is our
    # result, whose output is `lhs`, and whose padding p makes ours e - 1 - p at either end. At the high end f amounts of
    # padding have the same windows: take the first that does not crop, if there is one.
    ends = [(e - 1 - lo, e - 1 - hi) for (lo, hi), e in zip(pairs, effective, strict=True)]
    pairs = tuple((lo, max(hi, min(hi + f - 1, 0))) for (lo, hi), f in zip(ends, factors, strict=True))
    size = tuple(int(out_shape[i]) for i in layout.out_spec[2:])
    return "x", Geometry(size, tuple(window), factors, pairs, dilation, groups, *per_group[::-1])


# --- running it ------------------------------------------------------------------------------------------------------


def _run(lhs, rhs, *, role, geometry, layout, **options):
    """The role between the layouts of the call."""
    g = geometry
    lhs_axes, (filters, channels, *window), out_axes = (layout.lhs_spec, layout.rhs_spec, layout.out_spec)
    first = lhs.transpose(_channels_last(lhs_axes))
    kernel = rhs.transpose(*window, channels, filters)
    if role == "x":
        # lax's kernel reads `lhs`, the geometry's makes it: flip the window, swap channels and filters in each group.
        split = jnp.flip(kernel, axis=range(g.rank)).reshape(*g.window, g.filters, g.groups, g.channels)
        kernel = split.swapaxes(-1, -3).reshape(g.kernel_shape)
    operands = sharding.equally_varying({"x" if role == "y" else "y": first, "w": kernel})
    result = roles.bind(role, operands, geometry=g, **options)
    return result.transpose(np.argsort(_channels_last(out_axes)))


def _channels_last(axes) -> tuple:
    batch, channels, *spatial = axes
    return (batch, *spatial, channels)


def _as_sharded_by_lax(run, result):
    """`run`, whose result has the sharding that lax's rule gives it, where a mesh has explicit axes and asks for one.

    Inside, the compiler partitions the work.
    """
    if result is None or AxisType.Explicit not in result.mesh.axis_types:
        return run

    def sharded(lhs, rhs):
        with use_abstract_mesh(getattr(result.mesh, "abstract_mesh", result.mesh)):
            return auto_axes(run, out_sharding=result.spec)(lhs, rhs)

    return sharded
